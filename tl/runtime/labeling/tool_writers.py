"""Write classes and points as files that VIA, labelme and Roboflow read, and that their readers here read back.

Knows no data sets: images come as `ToolImage`s with one name each. Points of CVAT are written by `cvat`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from tl.errors import DataError
from tl.runtime.labeling.export import PIXEL_CENTER, ToolImage
from tl.runtime.sources.tables import csv_text

# Attributes of VIA that hold the class of a file and the name of a point.
_CLASS, _POINT = "class", "point"
_DIGITS = 6


def write_via(images: Sequence[ToolImage], num_bytes: Callable[[str], int]) -> str:
    """Return a project of VIA 2 as JSON. `num_bytes`: name -> size of the file, by which VIA tells images apart."""
    has_several = any(len(image.labels or ()) != 1 for image in images)
    classes = sorted({label for image in images for label in image.labels or ()})
    points = list(dict.fromkeys(point.name for image in images for point in image.points))
    entries = {}
    for image in images:
        name, size = image.names[0], num_bytes(image.names[0])
        labels = image.labels or ()
        own: dict[str, Any] = {}
        if classes:
            own = {_CLASS: dict.fromkeys(labels, True) if has_several else labels[0]}
        regions = [
            {
                "shape_attributes": {"name": "point", "cx": round(point.x, _DIGITS), "cy": round(point.y, _DIGITS)},
                "region_attributes": {_POINT: point.name},
            }
            for point in image.points
        ]
        entries[f"{name}{size}"] = {"filename": name, "size": size, "regions": regions, "file_attributes": own}
    kind = "checkbox" if has_several else "dropdown"
    attributes = {
        "region": {_POINT: _attribute("dropdown", points)} if points else {},
        "file": {_CLASS: _attribute(kind, classes)} if classes else {},
    }
    project = {
        "_via_settings": {"core": {"default_filepath": ""}, "project": {"name": "tl"}},
        "_via_img_metadata": entries,
        "_via_attributes": attributes,
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(entries),
    }
    return json.dumps(project, ensure_ascii=False, indent=1) + "\n"


def write_labelme(images: Sequence[ToolImage], path_to: Callable[[str], str]) -> dict[str, str]:
    """Return name -> text of a JSON file for each image, with flags for classes. Sizes of images must be stated.

    All files are for one folder; `path_to`: name of an image -> path from that folder to it. Raises `DataError` for two
    images that would have one file.
    """
    stems = [PurePosixPath(image.names[0]).stem for image in images]
    has_own_stems = len(set(stems)) == len(stems)
    classes = sorted({label for image in images for label in image.labels or ()})
    texts: dict[str, str] = {}
    for image in images:
        name = image.names[0]
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        file = f"{PurePosixPath(name).stem if has_own_stems else '__'.join(parts)}.json"
        if file in texts:
            raise DataError(f"{name}: another image has the file {file} of labelme too: give them different names")
        if image.stated_hw is None:
            raise ValueError(f"{name}: labelme states the size of each image")
        shapes: list[dict[str, Any]] = [
            {
                **{"label": point.name, "group_id": None, "shape_type": "point", "flags": {}},
                "points": [[round(point.x + PIXEL_CENTER, _DIGITS), round(point.y + PIXEL_CENTER, _DIGITS)]],
            }
            for point in image.points
        ]
        parsed = {
            "version": "5.5.0",
            "flags": {label: label in (image.labels or ()) for label in classes},
            "shapes": shapes,
            "imagePath": path_to(name),
            "imageData": None,
            "imageHeight": image.stated_hw[0],
            "imageWidth": image.stated_hw[1],
        }
        texts[file] = json.dumps(parsed, ensure_ascii=False, indent=2) + "\n"
    return texts


def write_roboflow(images: Sequence[ToolImage]) -> str:
    """Return a table of 0 and 1 for each class. Raises `DataError` for points, which it cannot hold."""
    if any(image.points for image in images):
        raise DataError("Roboflow's _classes.csv holds classes alone: write points in another format, such as coco")
    classes = sorted({label for image in images for label in image.labels or ()})
    rows = [["filename", *classes]]
    for image in images:
        rows.append([image.names[0], *("1" if label in (image.labels or ()) else "0" for label in classes)])
    return csv_text(rows)


def _attribute(kind: str, options: Sequence[str]) -> dict[str, Any]:
    return {"type": kind, "description": "", "options": dict.fromkeys(options, ""), "default_options": {}}
