"""Read and write landmark files: detect the format, find the images, apply EXIF orientations that points ignored.

Depends on the format modules and image sizes; independent of models.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from tl.errors import DataError
from tl.runtime.imaging.decode import read_size, read_stored
from tl.runtime.imaging.geometry import turn_keypoints
from tl.runtime.labeling import cvat
from tl.runtime.labeling.export import Annotators
from tl.runtime.labeling.label_studio_tasks import TaskLinks, point_tasks
from tl.runtime.labeling.tools import find_tool, has_points
from tl.runtime.landmarks import coco, deeplabcut, long_csv, tool_files, tps, wide_csv
from tl.runtime.landmarks.sets import OCCLUDED, ImageLandmarks, LandmarkSet, numbered_names
from tl.runtime.landmarks.stated_sizes import check_stated_sizes
from tl.runtime.output.files import write_text
from tl.runtime.sources.names import FileFinder, composed, image_folders
from tl.runtime.sources.tables import decode_text, header_of, read_text


def turn_upright(landmarks: LandmarkSet, find: Callable[[str], str]) -> LandmarkSet:
    """Apply each photo's EXIF orientation to its points and box; a remark states how many images are affected.

    `find`: see `image_finder`. Raises `DataError`, `ImageReadError`.
    """
    turned = [_turn(image, *read_stored(find(image.name))) for image in landmarks.images]
    count = sum(new is not old for new, old in zip(turned, landmarks.images, strict=True))
    remark = f"{count} of {len(turned)} images have an EXIF orientation: their points were rotated"
    return dataclasses.replace(landmarks, images=tuple(turned), remarks=(*landmarks.remarks, remark))


def _turn(image: ImageLandmarks, stored_hw: tuple[int, int], orientation: int) -> ImageLandmarks:
    if orientation == 1:
        return image
    box = image.box_xywh
    if box is not None:
        left, top, width, height = box  # boxes are measured from pixel edges, points from pixel centers
        corners = np.array([[left, top], [left + width, top + height]]) - 0.5
        ends = turn_keypoints(corners, orientation, stored_hw) + 0.5
        (left, top), (right, bottom) = ends.min(axis=0).tolist(), ends.max(axis=0).tolist()
        box = (left, top, right - left, bottom - top)
    return dataclasses.replace(
        image, keypoints_xy=turn_keypoints(image.keypoints_xy, orientation, stored_hw), box_xywh=box
    )


Size = Callable[[str], tuple[int, int]]
Format = Literal["csv", "long", "tps", "coco", "deeplabcut", "labelstudio", "cvat"]
_BY_SUFFIX: dict[str, Format] = {".csv": "csv", ".tps": "tps", ".json": "coco"}
SUFFIXES: dict[Format, str] = {
    **{"csv": ".csv", "long": ".csv", "tps": ".tps", "coco": ".json", "deeplabcut": ".csv"},
    **{"labelstudio": ".json", "cvat": ".xml"},
}
# Enough for DeepLabCut's three header lines, or for the columns of several hundred points.
_HEAD_BYTES = 1 << 17
_LOST: dict[Format, tuple[str, ...]] = {
    "csv": ("flip pairs", "skeleton"),
    "long": ("boxes", "splits and groups", "flip pairs", "skeleton"),
    "tps": ("names", "visibility", "confidence", "boxes", "splits and groups", "flip pairs", "skeleton"),
    "coco": (),
    "deeplabcut": ("visibility", "boxes", "scale", "splits and groups", "flip pairs", "skeleton"),
    "cvat": ("confidence", "boxes", "scale", "groups", "flip pairs", "skeleton"),
    "labelstudio": ("visibility", "boxes", "scale", "splits and groups", "flip pairs", "skeleton"),
}


def read_landmarks(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    from_stored: bool = False,
    label: str | None = None,
    annotators: Annotators = "latest",
) -> LandmarkSet:
    """Read a landmark file of any format, detected from its name and contents, or a folder of labelme's files.

    `images`: the folder that image names are relative to; see `image_finder`. `from_stored`: the points are in pixels
    of the photos as stored, and are rotated by their EXIF orientation. `label`: the attribute that names the points,
    and `annotators`: how answers of several people are combined, in files of labeling tools. Raises `DataError`,
    `ImageReadError`.
    """
    path = Path(path)
    find = image_finder(path, images)
    if find_tool(path) is not None:
        folders = image_folders(path, images)
        landmarks = tool_files.read(path, folders, lambda found: _size(found, from_stored), label, annotators)
    else:
        landmarks = _read_format(path, read_text(path), lambda name: _size(find(name), from_stored)[0])
    landmarks = _with_composed_names(landmarks)
    remarks = check_stated_sizes(landmarks, find, path.name, from_stored=from_stored)
    landmarks = dataclasses.replace(landmarks, remarks=(*landmarks.remarks, *remarks))
    return turn_upright(landmarks, find) if from_stored else landmarks


def _read_format(path: Path, text: str, height: Callable[[str], int]) -> LandmarkSet:
    kind = _format_of(path, text)
    if kind == "tps":
        return tps.read(text, path.name, height)
    readers = {"csv": wide_csv.read, "long": long_csv.read, "coco": coco.read, "deeplabcut": deeplabcut.read}
    return readers[kind](text, path.name)


def _with_composed_names(landmarks: LandmarkSet) -> LandmarkSet:
    pairs, lines = (
        tuple((composed(a), composed(b)) for a, b in named) for named in (landmarks.flip_pairs, landmarks.skeleton)
    )
    names = tuple(map(composed, landmarks.keypoint_names))
    return dataclasses.replace(landmarks, keypoint_names=names, flip_pairs=pairs, skeleton=lines)


def _size(path: str, is_stored: bool) -> tuple[int, int]:
    return read_stored(path)[0] if is_stored else read_size(path)


def is_landmark_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file, or a folder of labelme's files, contains landmarks; False if it is unreadable."""
    path = Path(path)
    if find_tool(path) is not None:
        return has_points(path)
    if path.suffix.lower() not in _BY_SUFFIX or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        text = decode_text(head[: len(head) - len(head) % 2], str(path))
        if _format_of(path, text) != "csv":
            return True
        columns = set(header_of(text))
    except (OSError, csv.Error, DataError):
        return False
    return "label" not in columns and any(name[0] == "x" and f"y{name[1:]}" in columns for name in columns if name)


def contains_landmarks(path: str | os.PathLike[str]) -> bool:
    """Like `is_landmark_file`, for a file beside images, where other JSON files and tables with coordinates lie too.

    TPS, DeepLabCut, COCO with keypoints, and CSV whose header has nothing but landmarks.
    """
    path = Path(path)
    if find_tool(path) is not None:
        return has_points(path)
    if not is_landmark_file(path):
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        text = decode_text(head[: len(head) - len(head) % 2], str(path))
        kind = _format_of(path, text)
        if kind == "csv":
            return bool(wide_csv.read(f"{','.join(header_of(text))}\n", path.name).keypoint_names)
    except (OSError, csv.Error, DataError):
        return False
    return kind != "coco" or b'"keypoints"' in head


def write_landmarks(
    landmarks: LandmarkSet,
    path: str | os.PathLike[str],
    kind: Format | None,
    size: Size,
    links: TaskLinks | None = None,
) -> None:
    """Write a file atomically. `kind`: the format, None to select it by the file name extension.

    `size`: image name -> (height, width) of the upright image, which some formats need; see `image_sizes`.
    `links`: how tasks for Label Studio refer to images, None for names as they are.
    Raises `DataError`, `OutputError`, and the errors of `size`.
    """
    kind = kind or _suffix_format(Path(path))
    if kind == "tps":
        text = tps.write(landmarks, lambda name: size(name)[0])
    elif kind == "coco":
        text = coco.write(landmarks, size)
    elif kind == "cvat":
        text = cvat.write(landmarks, size)
    elif kind == "labelstudio":
        text = point_tasks(landmarks, size, links or TaskLinks())
    else:
        text = {"csv": wide_csv.write, "long": long_csv.write, "deeplabcut": deeplabcut.write}[kind](landmarks)
    write_text(path, text)


def lost_in(landmarks: LandmarkSet, path: str | os.PathLike[str], kind: Format | None) -> list[str]:
    """Return which data in `landmarks` the format cannot store, one sentence each."""
    kind = kind or _suffix_format(Path(path))
    return [f"{what}: cannot be stored in format {kind}" for what in unstored(landmarks, _LOST[kind])]


def unstored(landmarks: LandmarkSet, kinds: Sequence[str]) -> list[str]:
    """Return which of the kinds of data that a format cannot store are in `landmarks`."""
    images = landmarks.images
    has = {
        "names": landmarks.keypoint_names != numbered_names(len(landmarks.keypoint_names)),
        "visibility": any((image.visibility == OCCLUDED).any() for image in images),
        "confidence": any(image.confidence is not None for image in images),
        "boxes": any(image.box_xywh is not None for image in images),
        "scale": any(image.mm_per_px is not None for image in images),
        "groups": any(image.group for image in images),
        "splits and groups": any(image.split or image.group for image in images),
        "flip pairs": bool(landmarks.flip_pairs),
        "skeleton": bool(landmarks.skeleton),
    }
    return [what for what in kinds if has[what]]


def image_sizes(find: Callable[[str], str]) -> Size:
    """Return a function that reads sizes from image headers, once each. `find`: see `image_finder`.

    The function raises `ImageReadError`.
    """

    @cache
    def size(name: str) -> tuple[int, int]:
        return read_size(find(name))

    return size


def image_finder(path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> Callable[[str], str]:
    """Return a function that maps an image name in a landmark file to the image's path.

    It searches the folders of `image_folders`; see `FileFinder` for names from other systems. In `images`, a file name
    without its folders is enough. The function raises `DataError` for an image that is not found.
    """
    folders = image_folders(Path(path), images)
    finder = FileFinder(folders, by_file_name=images is not None)

    def find(name: str) -> str:
        if (found := finder.find(name)) is not None and os.path.isfile(found):
            return found
        looked = ", ".join(map(str, folders))
        raise DataError(f"{Path(path).name}: image {name} was not found in {looked}", options=["images=FOLDER"])

    return find


def _format_of(path: Path, text: str) -> Format:
    kind = _suffix_format(path)
    if kind != "csv":
        return kind
    if deeplabcut.is_deeplabcut(text):
        return "deeplabcut"
    return "long" if set(long_csv.COLUMNS) <= set(header_of(text)) else "csv"


def _suffix_format(path: Path) -> Format:
    kind = _BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: expected a name that ends in {', '.join(_BY_SUFFIX)}")
    return kind
