"""The points in a labeling tool's file as landmarks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tl.errors import DataError, ImageReadError
from tl.runtime.labeling.export import Annotators, Reading, ToolFile, ToolImage, resolve
from tl.runtime.labeling.tools import read_tool_file
from tl.runtime.landmarks.sets import OCCLUDED, VISIBLE, ImageLandmarks, LandmarkSet, image_landmarks
from tl.runtime.sources.names import FileFinder

# Rounding of coordinates in percent.
_ROUNDING_PX = 1e-3


def read(
    path: Path,
    folders: Sequence[Path],
    size: Callable[[str], tuple[int, int]],
    label: str | None = None,
    annotators: Annotators = "latest",
) -> LandmarkSet:
    """Return the landmarks of all images that have points; the others are counted in `remarks`.

    `folders`: where images are looked for. `size`: path of an image -> its (height, width) as the tool shows it.
    `label`: the attribute that names the points. Raises `DataError`, also for points outside of their image.
    """
    finder = FileFinder(folders)

    def size_of(names: Sequence[str]) -> tuple[int, int]:
        found = next((place for name in names if (place := finder.find(name))), None)
        if found is None:
            raise DataError(
                f"{path.name}: image {names[0]} was not found, and its points are in percent of its size",
                options=["images=FOLDER"],
            )
        return size(found)

    file = read_tool_file(path, Reading("points", label, annotators, size_of))
    pointed = [image for image in file.images if image.points]
    if not pointed:
        raise DataError(_nothing(path, file))
    images = []
    for image, (name, found) in zip(pointed, resolve(pointed, folders), strict=True):
        _check_inside(image, _known_size(image, found, size))
        images.append(_landmarks_of(image, name, file.point_names))
    return LandmarkSet(file.point_names, tuple(images), remarks=(*file.remarks, *_remarks(file)))


def _known_size(
    image: ToolImage, found: str | os.PathLike[str] | None, size: Callable[[str], tuple[int, int]]
) -> tuple[int, int] | None:
    if image.stated_hw is not None or found is None:
        return image.stated_hw
    try:
        return size(os.fspath(found))
    except ImageReadError:  # left to those who need its pixels
        return None


def _check_inside(image: ToolImage, size_hw: tuple[int, int] | None) -> None:
    if size_hw is None:
        return
    height, width = size_hw
    for point in image.points:
        low, right, bottom = -0.5 - _ROUNDING_PX, width - 0.5 + _ROUNDING_PX, height - 0.5 + _ROUNDING_PX
        if not (low <= point.x <= right and low <= point.y <= bottom):
            raise DataError(
                f"{image.place}: point '{point.name}' at {point.x:.1f}, {point.y:.1f} is outside the image of "
                f"{width}x{height} pixels: move it, or delete it"
            )


def _landmarks_of(image: ToolImage, name: str, point_names: Sequence[str]) -> ImageLandmarks:
    placed = {point.name: point for point in image.points}
    found = [placed.get(name) for name in point_names]
    xy = [(math.nan, math.nan) if point is None else (point.x, point.y) for point in found]
    seen = [OCCLUDED if point is not None and point.is_occluded else VISIBLE for point in found]
    return image_landmarks(name, xy, seen, split=image.split, stated_hw=image.stated_hw)


def _remarks(file: ToolFile) -> list[str]:
    bare = sum(not image.points for image in file.images)
    classes = sum(bool(image.labels) for image in file.images)
    found = [f"{bare} images without points were skipped"] if bare else []
    if classes:
        found.append(f"classes of {classes} images are not used, only points: set task to classification for them")
    return found


def _nothing(path: Path, file: ToolFile) -> str:
    why = f" ({'; '.join(file.remarks)})" if file.remarks else ""
    return f"{path}: none of its {len(file.images)} images has points{why}: place points, and export the file again"
