"""Read files that list boxes: MegaDetector's JSON, COCO detection JSON, CSV. Every command reads boxes here.

Opens no images. Sources: https://lila.science/megadetector-output-format, https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from tl.errors import DataError
from tl.runtime.imaging.regions import Box, Region
from tl.runtime.sources.boxed_images import BoxFormat, BoxList
from tl.runtime.sources.names import FileFinder, composed
from tl.runtime.sources.tables import Table, read_table

# Columns of a box in pixels of the upright image, or in fractions of its size.
BOX = ("box_x", "box_y", "box_w", "box_h")
RELATIVE_BOX = ("box_rel_x", "box_rel_y", "box_rel_w", "box_rel_h")
CONFIDENCE, CATEGORY = "box_confidence", "box_category"
# Source: MegaDetector's user guide, for its versions 5 and later.
LEAST_CONFIDENCE = 0.2
# The category that is used by default if a file has it.
ANIMAL = "animal"
_CONFIDENCE_NAMES = (CONFIDENCE, "conf", "detection_confidence", "score")
_CATEGORY_NAMES = (CATEGORY, "category")
_FORMAT_MAJOR = 1


@dataclass(frozen=True)
class _Listed:
    """An image of a file: its name there, and its boxes. `failure`: why the detector has none."""

    name: str
    boxes: tuple[Box, ...]
    failure: str | None = None


def read_boxes(
    path: str | os.PathLike[str],
    *,
    folders: Sequence[str | os.PathLike[str]] = (),
    min_confidence: float | None = None,
    categories: Sequence[str] | None = None,
    label_column: str | None = None,
) -> BoxList:
    """Read boxes from MegaDetector's or COCO's JSON, or from a CSV with `path,box_x,box_y,box_w,box_h`.

    Names of images are relative to the file's folder, or else to one of `folders`; see `FileFinder` for names from
    other systems. `min_confidence`: boxes of lower confidence are left out, 0.2 by default; boxes without a confidence
    are kept. `categories`: those to use; by default `animal` if the file has it, else all. Raises `DataError`.
    """
    path = Path(path)
    least = LEAST_CONFIDENCE if min_confidence is None else min_confidence
    if not 0 <= least <= 1:
        raise ValueError(f"min_confidence must be 0..1, got {least}")
    kind, listed, known, labels = _read(path, label_column)
    chosen = _chosen(path, known, categories)
    finder = FileFinder([path.parent, *folders])
    boxes: dict[str, tuple[Box, ...]] = {}
    failures: dict[str, str] = {}
    names: dict[str, str] = {}
    left: Counter[str] = Counter()
    for image in listed:
        found = finder.find(os.path.normpath(image.name)) or os.path.join(path.parent, image.name)
        place = os.path.abspath(found)
        if place in names:
            raise DataError(f"{path}: lists {image.name} twice: keep one entry per image")
        names[place] = image.name
        if image.failure is not None:
            failures[place] = image.failure
        else:
            boxes[place] = tuple(_select(image.boxes, least, chosen, left))
    used = sum(map(len, boxes.values()))
    has_confidence = any(box.confidence is not None for image in listed for box in image.boxes)
    has_labels = labels and (kind == "csv" or (len(chosen or known) > 1 and ANIMAL not in _folded(known)))
    if has_labels and kind == "coco":
        boxes = {name: tuple(replace(box, label=box.category) for box in found) for name, found in boxes.items()}
    return BoxList(
        boxes,
        failures,
        least if has_confidence else None,
        tuple(_remarks(used, len(boxes), left, failures)),
        str(path),
        kind,
        names,
        has_labels,
    )


def _read(path: Path, label_column: str | None) -> tuple[BoxFormat, list[_Listed], list[str], bool]:
    """Return the format, the images, the categories, and whether boxes have labels."""
    if path.suffix.lower() != ".json":
        table = read_table(path)
        label = table.column("label", label_column) if label_column or "label" in table.columns else ""
        listed = list(_read_csv(path, table, label))
        known = dict.fromkeys(box.category for image in listed for box in image.boxes if box.category)
        return "csv", listed, list(known), any(box.label for image in listed for box in image.boxes)
    file = load_json(path)
    if isinstance(file, dict) and "detection_categories" in file:
        return "megadetector", *_read_megadetector(path, file), False
    if isinstance(file, dict) and {"images", "annotations", "categories"} <= file.keys():
        return "coco", *_read_coco(path, file), True
    if isinstance(file, list):
        raise DataError(f"{path}: a list of COCO results has no file names: give a file with images and annotations")
    keys = ", ".join(list(map(str, file))[:5]) if isinstance(file, dict) else type(file).__name__
    raise DataError(
        f"{path}: neither MegaDetector's JSON (with detection_categories) nor COCO's (with images, annotations and "
        f"categories); found: {keys or 'nothing'}"
    )


def load_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raises `DataError`."""
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except orjson.JSONDecodeError as error:  # also for NaN
        raise DataError(f"{path}: not a JSON file ({error})") from error


def _read_megadetector(path: Path, file: dict[str, Any]) -> tuple[list[_Listed], list[str]]:
    if math.floor(format_version(path, file)) != _FORMAT_MAJOR:
        version = format_version(path, file)
        raise DataError(f"{path}: format_version {version} is not known; expected {_FORMAT_MAJOR}.x")
    names, images = file["detection_categories"], file.get("images")
    if not isinstance(names, dict) or not isinstance(images, list):
        raise DataError(f"{path}: expected detection_categories as an object, and images as a list")
    listed = [_detected(f"{path}: images[{n}]", image, names) for n, image in enumerate(images)]
    return listed, [str(name) for name in names.values()]


def format_version(path: Path, file: dict[str, Any]) -> float:
    """Return the version of a file of MegaDetector; 1.0 if it has none, as the first ones. Raises `DataError`."""
    info = file.get("info")
    version = info.get("format_version", 1.0) if isinstance(info, dict) else 1.0
    try:
        return float(version)
    except (TypeError, ValueError):
        raise DataError(f"{path}: format_version {version!r} is not known; expected {_FORMAT_MAJOR}.x") from None


def _detected(place: str, image: Any, names: dict[str, Any]) -> _Listed:
    if not isinstance(image, dict) or not isinstance(image.get("file"), str):
        raise DataError(f"{place}: expected an object with the key file")
    name = image["file"]
    if image.get("failure") or image.get("detections") is None:
        return _Listed(name, (), str(image.get("failure") or "it lists no detections"))
    boxes = []
    for number, found in enumerate(_list(image["detections"], f"{place}.detections")):
        where = f"{place} ({name}).detections[{number}]"
        if not isinstance(found, dict) or (lacking := [k for k in ("category", "conf", "bbox") if k not in found]):
            raise DataError(f"{where}: lacks {', '.join(lacking) if isinstance(found, dict) else 'its keys'}")
        if found["category"] not in names:
            raise DataError(f"{where}: category {found['category']!r} is not one of detection_categories")
        box = Box(_region(where, found["bbox"]), True, _confidence(where, found["conf"]), number=number)
        boxes.append(replace(box, category=str(names[found["category"]])))
    return _Listed(name, tuple(boxes))


def _read_coco(path: Path, file: dict[str, Any]) -> tuple[list[_Listed], list[str]]:
    try:
        names = {each["id"]: composed(str(each["name"])) for each in file["categories"]}
        sizes = {each["id"]: _stated(each) for each in file["images"]}
        boxes: dict[Any, list[Box]] = {each["id"]: [] for each in file["images"]}
        for n, found in enumerate(file["annotations"]):
            where, own = f"{path}: annotations[{n}]", found["image_id"]
            box = Box(_region(where, found["bbox"]), category=names[found["category_id"]], stated_hw=sizes[own])
            score = _confidence(where, found["score"]) if "score" in found else None
            boxes[own].append(replace(box, confidence=score, number=len(boxes[own])))
        return [_Listed(str(each["file_name"]), tuple(boxes[each["id"]])) for each in file["images"]], [*names.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO detection JSON ({type(error).__name__}: {error})") from error


def _stated(image: dict[str, Any]) -> tuple[int, int] | None:
    size = image.get("height"), image.get("width")
    return size if all(type(side) is int and side > 0 for side in size) else None  # type: ignore[return-value]


def _read_csv(path: Path, table: Table, label: str) -> Iterator[_Listed]:
    named = table.column("path")
    columns = RELATIVE_BOX if set(RELATIVE_BOX) <= set(table.columns) else BOX
    if lacking := [name for name in ("path", *columns) if name not in (*table.columns, "path" if named else "")]:
        raise DataError(f"{path}: has no column {', '.join(lacking)} (found: {table.shown})")
    confidence = next((name for name in _CONFIDENCE_NAMES if name in table.columns), "")
    category = next((name for name in _CATEGORY_NAMES if name in table.columns and name != label), "")
    images: dict[str, list[Box]] = {}
    for line, row in table.rows:
        boxes = images.setdefault(row[named], [])
        place = f"{path.name} row {line}"
        xywh = row_box(place, table, row, columns)
        if xywh is None:
            continue
        given = row[confidence].strip() if confidence else ""
        boxes.append(
            Box(
                xywh,
                columns is RELATIVE_BOX,
                _confidence(place, _number(place, table, given)) if given else None,
                row[category].strip() if category else "",
                composed(row[label]) if label else "",
                number=len(boxes),
            )
        )
    for name, boxes in images.items():
        yield _Listed(name, tuple(boxes))


def row_box(place: str, table: Table, row: Mapping[str, str], columns: Sequence[str] = BOX) -> Region | None:
    """Return the box of a row of a table, None if its cells are empty. Raises `DataError`, beginning with `place`."""
    texts = [row[side].strip() for side in columns]
    if not any(texts):
        return None
    try:
        left, top, width, height = map(table.number, texts)
    except ValueError:
        raise DataError(f"{place}: expected four numbers for a box, found {', '.join(texts)}") from None
    if not (math.isfinite(left + top + width + height) and width > 0 and height > 0):
        raise DataError(f"{place}: the width and height of a box must be above 0, and all four numbers finite")
    return left, top, width, height


def _number(place: str, table: Table, text: str) -> float:
    try:
        return table.number(text)
    except ValueError:
        raise DataError(f"{place}: expected a number for the confidence, found '{text}'") from None


def _region(where: str, value: Any) -> Region:
    """Return a box, whose size may be 0: such a box becomes an error of its image alone."""
    if not isinstance(value, list) or len(value) != 4 or not all(type(side) in (int, float) for side in value):
        raise DataError(f"{where}: bbox must be four numbers, found {str(value)[:80]}")
    return float(value[0]), float(value[1]), float(value[2]), float(value[3])


def _confidence(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise DataError(f"{where}: a confidence must be a number from 0 to 1, found {value!r}")
    return float(value)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {type(value).__name__}")
    return value


def _folded(names: Sequence[str]) -> dict[str, str]:
    return {name.casefold(): name for name in names}


def _chosen(path: Path, known: Sequence[str], asked: Sequence[str] | None) -> set[str] | None:
    """Return the categories to use, None for all. Raises `DataError` for one that the file does not have."""
    folded = _folded(known)
    if asked is None:
        return {folded[ANIMAL]} if ANIMAL in folded else None
    if lacking := [name for name in asked if name.casefold() not in folded]:
        raise DataError(f"{path}: has no boxes of category {', '.join(lacking)} (found: {', '.join(known) or 'none'})")
    return {folded[name.casefold()] for name in asked}


def _select(boxes: Sequence[Box], least: float, chosen: set[str] | None, left: Counter[str]) -> Iterator[Box]:
    """Yield the boxes to use, and count the others by reason."""
    seen = set()
    for box in boxes:
        if chosen is not None and box.category not in chosen:
            left[f"of category {box.category or 'none'}"] += 1
        elif box.confidence is not None and box.confidence < least:
            left[f"below confidence {least:g}"] += 1
        elif (box.xywh, box.category, box.label) in seen:
            left["listed twice"] += 1
        else:
            seen.add((box.xywh, box.category, box.label))
            yield box


def _remarks(used: int, images: int, left: Counter[str], failures: dict[str, str]) -> Iterator[str]:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left.items())
    yield f"{used} boxes of {images} images" + (f"; left out: {reasons}" if reasons else "")
    if failures:
        yield f"the detector failed on {len(failures)} images, which therefore have no boxes"
