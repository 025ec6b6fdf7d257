"""Read labelme's JSON files, one for each image: points named by their label; flags that are set are classes.

Written from the description of the format; labelme itself is GPL, and nothing of it is used.
Source: https://github.com/wkentaro/labelme (README, labelme/label_file.py as a description of the fields).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    truthy,
    used_point_names,
)
from tl.runtime.sources.box_files import load_json
from tl.runtime.sources.names import composed
from tl.runtime.sources.paths import find_images

TOOL = "labelme"
_POINT = "point"


def is_labelme(parsed: Any) -> bool:
    """Return whether a JSON file is of labelme."""
    return isinstance(parsed, dict) and {"shapes", "imagePath"} <= parsed.keys()


def has_points(parsed: Mapping[str, Any]) -> bool:
    """Return whether a shape of one file is a point. Raises `DataError`."""
    with reading_of("", TOOL):
        return any(shape.get("shape_type") == _POINT for shape in parsed["shapes"])


def read(parsed: Mapping[str, Any], where: str) -> ToolFile:
    """Return the image of one file. Raises `DataError`."""
    passed = Passed()
    images = [_read_image(parsed, where, "", passed)]
    return ToolFile(where, tuple(images), used_point_names(images), passed.remarks())


def read_folder(folder: Path) -> ToolFile:
    """Return the images of all files in a folder and the folders in it. Raises `DataError` naming the file."""
    passed = Passed()
    images = []
    for path in sorted(folder.rglob("*.json")):
        parsed, place = load_json(path), path.relative_to(folder)
        if is_labelme(parsed):
            images.append(_read_image(parsed, f"{folder.name}: {place.as_posix()}", place.parent.as_posix(), passed))
        else:
            passed("JSON files that are not of labelme were left out")
    bare = len(find_images([folder]).paths) - len(images)
    passed("images without a file of labelme were left out", max(bare, 0))
    return ToolFile(folder.name, tuple(images), used_point_names(images), passed.remarks())


def _read_image(parsed: Mapping[str, Any], place: str, folder: str, passed: Passed) -> ToolImage:
    """Return an image. `folder`: that of the file, which the image's path is relative to."""
    with reading_of(place, TOOL):
        points = []
        for shape in parsed["shapes"]:
            kind = shape.get("shape_type") or ""
            if kind != _POINT:
                passed(f"shapes of the kind {kind or 'polygon'} are not used")
                continue
            points.append(_read_point(shape, place))
        labels = tuple(truthy(parsed.get("flags") or {}))
        path = str(parsed["imagePath"])
        beside = (Path(folder) / path.replace("\\", "/")).as_posix()
        size_hw = size_of(parsed.get("imageHeight"), parsed.get("imageWidth"), place)
        names: Sequence[str] = dict.fromkeys((beside, *names_of(path)))  # type: ignore[assignment]
        return ToolImage(place, tuple(names), labels or None, check_points(points, place), stated_hw=size_hw)


def _read_point(shape: Mapping[str, Any], place: str) -> ToolPoint:
    label, pairs = composed(str(shape["label"])), shape["points"]
    if len(pairs) != 1 or len(pairs[0]) != 2:
        raise DataError(f"{place}: point '{label}' has {len(pairs)} places, expected one")
    x, y = (number(value, place, f"a coordinate of '{label}'") - PIXEL_CENTER for value in pairs[0])
    return ToolPoint(label, x, y)
