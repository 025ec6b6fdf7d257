"""Write classes or points as a file of a labeling tool, for `tl convert --to`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tl.commands.console import warn
from tl.errors import DataError, OutputError

if TYPE_CHECKING:
    from tl.data.manifests import LabeledImage
    from tl.runtime.labeling.export import ToolImage
    from tl.runtime.landmarks.sets import LandmarkSet

ToolFormat = Literal["via", "labelme", "roboflow", "cvat"]
TOOL_SUFFIXES: dict[ToolFormat, str] = {"via": ".json", "labelme": "", "roboflow": ".csv", "cvat": ".xml"}
# What these formats cannot hold of landmarks.
_POINT_FACTS = ("visibility", "confidence", "boxes", "scale", "splits and groups", "flip pairs", "skeleton")


def check_folder(output: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` for a folder that has files already, unless they may be replaced."""
    from tl.runtime.output.files import check_output_folder

    check_output_folder(output)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise OutputError(f"{output}: is not empty: give another folder, or replace its files", options=["overwrite"])


def write_classes_for(to: ToolFormat, output: Path, found: Sequence[LabeledImage], labels: list[list[str]]) -> None:
    """Write images with their classes. `labels`: of each image. Raises `DataError`, `OutputError`, `ImageReadError`."""
    from tl.runtime.imaging.decode import read_size
    from tl.runtime.labeling.export import ToolImage

    has_sizes = to in ("labelme", "cvat")
    paths = {image.name: image.path for image in found}
    if len(paths) < len(found):
        raise DataError("two images have one name: files of labeling tools tell images apart by their names")
    images = [
        ToolImage(
            "", (image.name,), tuple(own), split=image.split, stated_hw=read_size(image.path) if has_sizes else None
        )
        for image, own in zip(found, labels, strict=True)
    ]
    if to != "cvat" and any(image.split for image in found):
        warn(f"splits: cannot be stored in format {to}")
    _write(to, output, images, paths.__getitem__)


def write_points_for(to: ToolFormat, output: Path, landmarks: LandmarkSet, find: Callable[[str], str]) -> None:
    """Write images with their points. `find`: name -> path. Raises as `write_classes_for`."""
    from tl.runtime.imaging.decode import read_size
    from tl.runtime.labeling.export import ToolImage, ToolPoint
    from tl.runtime.landmarks.files import unstored
    from tl.runtime.landmarks.sets import MISSING

    images = []
    for image in landmarks.images:
        named = zip(landmarks.keypoint_names, image.keypoints_xy.tolist(), image.visibility, strict=True)
        points = tuple(ToolPoint(name, x, y) for name, (x, y), seen in named if seen != MISSING)
        images.append(ToolImage("", (image.name,), None, points, stated_hw=read_size(find(image.name))))
    for what in unstored(landmarks, _POINT_FACTS):
        warn(f"{what}: cannot be stored in format {to}")
    _write(to, output, images, find)


def _write(to: ToolFormat, output: Path, images: Sequence[ToolImage], find: Callable[[str], str]) -> None:
    from tl.runtime.labeling.cvat import write_tags
    from tl.runtime.labeling.tool_writers import write_labelme, write_roboflow, write_via
    from tl.runtime.output.files import write_text

    if to == "labelme":
        texts = write_labelme(images, lambda name: _relative(find(name), output))
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(output / name, text)
        return
    if to == "via":
        text = write_via(images, lambda name: os.path.getsize(find(name)))
    else:
        text = write_roboflow(images) if to == "roboflow" else write_tags(images)
    write_text(output, text)


def _relative(path: str, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
