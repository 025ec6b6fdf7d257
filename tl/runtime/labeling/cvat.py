"""Read and write CVAT's XML "CVAT for images 1.1": tags are classes, points and the elements of skeletons are points.

Source: https://docs.cvat.ai/docs/other/xml_format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from xml.etree import ElementTree

from tl.errors import DataError
from tl.runtime.labeling.export import (
    PIXEL_CENTER,
    Passed,
    ToolFile,
    ToolImage,
    ToolPoint,
    check_points,
    names_of,
    number,
    reading_of,
    size_of,
    used_point_names,
)
from tl.runtime.landmarks.sets import MISSING, OCCLUDED, LandmarkSet
from tl.runtime.sources.names import composed

TOOL = "CVAT"
# CVAT's own names of subsets, the first of which is that of images that belong to none -> split.
_SPLITS = {"default": "", "Train": "train", "Validation": "val", "Test": "test"}
_SUBSETS = {split: subset for subset, split in _SPLITS.items()}


def is_cvat(text: str) -> bool:
    """Return whether an XML text, which may be cut off, is of CVAT."""
    return "<annotations" in text[:4096]


def has_points(text: str) -> bool:
    """Return whether an XML text has a shape of points. It need not be parsed: in a text, `<` is written `&lt;`."""
    return re.search(r"<points[\s/>]", text) is not None


def read(text: str, where: str) -> ToolFile:
    """Return all images. Raises `DataError` naming the image."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # which CVAT never writes, and which may expand without end
        raise DataError(f"{where}: has a document type: export it from CVAT again")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{where}: not a readable XML file ({error})") from error
    if root.tag != "annotations":
        raise DataError(f"{where}: expected <annotations> of CVAT for images 1.1, found <{root.tag}>")
    if root.find("track") is not None:
        raise DataError(f"{where}: is of a video: export it as CVAT for images 1.1")
    declared = [composed((label.findtext("name") or "").strip()) for label in root.iterfind("meta/*/labels/label")]
    passed = Passed()
    images = []
    for element in root.iterfind("image"):
        place = f"{where}: image {element.get('name')}"
        with reading_of(place, TOOL):
            images.append(_read_image(element, place, declared, passed))
    return ToolFile(where, tuple(images), used_point_names(images, declared), passed.remarks())


def write(landmarks: LandmarkSet, size: Callable[[str], tuple[int, int]]) -> str:
    """Return XML with one shape for each point. `size`: name -> (height, width) of the upright image."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in landmarks.keypoint_names:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "type").text = "points"
    for count, image in enumerate(landmarks.images):
        height, width = size(image.name)
        facts = {"id": str(count), "name": image.name, "width": str(width), "height": str(height)}
        element = ElementTree.SubElement(
            root, "image", facts | ({"subset": _SUBSETS.get(image.split, image.split)} if image.split else {})
        )
        for name, (x, y), seen in zip(landmarks.keypoint_names, image.keypoints_xy, image.visibility, strict=True):
            if seen != MISSING:
                at = f"{x + PIXEL_CENTER:.6f},{y + PIXEL_CENTER:.6f}"
                shape = {"label": name, "source": "auto", "occluded": str(int(seen == OCCLUDED)), "points": at}
                ElementTree.SubElement(element, "points", {**shape, "z_order": "0"})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def write_tags(images: Sequence[ToolImage]) -> str:
    """Return XML with a tag for each class of an image. Sizes of images must be stated."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in sorted({label for image in images for label in image.labels or ()}):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "type").text = "tag"
    for count, image in enumerate(images):
        if image.stated_hw is None:
            raise ValueError(f"{image.names[0]}: CVAT states the size of each image")
        height, width = map(str, image.stated_hw)
        facts = {"id": str(count), "name": image.names[0], "width": width, "height": height}
        if image.split:
            facts["subset"] = _SUBSETS.get(image.split, image.split)
        element = ElementTree.SubElement(root, "image", facts)
        for name in image.labels or ():
            ElementTree.SubElement(element, "tag", {"label": name, "source": "auto"})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _read_image(element: ElementTree.Element, place: str, declared: list[str], passed: Passed) -> ToolImage:
    labels: list[str] = []
    points: list[ToolPoint] = []
    skeletons = 0
    for shape in element:
        if shape.tag == "tag":
            labels.append(_label_of(shape, place, declared))
        elif shape.tag == "points":
            points += _read_points(shape, place, declared)
        elif shape.tag == "skeleton":
            skeletons += 1
            points += [point for part in shape.iterfind("points") for point in _read_points(part, place, declared)]
        else:
            passed(f"shapes of the kind {shape.tag} are not used")
    if skeletons > 1:
        raise DataError(f"{place}: has {skeletons} skeletons: one specimen per image is expected")
    subset, name = element.get("subset", ""), element.attrib["name"]
    return ToolImage(
        place,
        # Projects keep the images of a subset in a folder of its own.
        (*((f"{subset}/{name}",) if subset else ()), *names_of(name)),
        tuple(dict.fromkeys(labels)) if labels else None,
        check_points(points, place),
        _SPLITS.get(subset, subset),
        size_of(element.get("height"), element.get("width"), place),
    )


def _label_of(shape: ElementTree.Element, place: str, declared: list[str]) -> str:
    label = composed(shape.attrib["label"])
    if declared and label not in declared:
        raise DataError(f"{place}: label '{label}' is not one of the {len(declared)} that the file declares")
    return label


def _read_points(shape: ElementTree.Element, place: str, declared: list[str]) -> Iterator[ToolPoint]:
    """Yield the points of a shape; several are named LABEL1, LABEL2 ... in their order."""
    label = _label_of(shape, place, declared)
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    if shape.get("outside") == "1":  # not in the image
        return
    for count, pair in enumerate(pairs, start=1):
        x, y = (number(text, place, f"a coordinate of '{label}'") - PIXEL_CENTER for text in pair)
        yield ToolPoint(label if len(pairs) == 1 else f"{label}{count}", x, y, shape.get("occluded") == "1")
