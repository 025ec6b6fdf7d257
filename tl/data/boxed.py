"""Labeled boxes: one labeled image for each box, with the region of the image that a model uses.

Reads boxes from a list, or from a manifest's own columns. Opens images only to read their size.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from tl.data.class_folders import SPLIT_NAMES
from tl.data.manifests import LabeledImage, ManifestColumns, check_labels, read_images
from tl.errors import DataError, ImageReadError
from tl.runtime.imaging.decode import read_size
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.sources.boxed_images import BoxList
from tl.runtime.sources.paths import find_images

# Where the label of a box comes from; auto: from the box if the list of boxes has labels.
BoxLabels = Literal["auto", "image", "box"]


@dataclass(frozen=True)
class LabeledBoxes:
    """Labeled boxes, or whole images without a list of boxes.

    `failed`: images without boxes because they are not listed or the detector failed, with the reasons. `unboxed`:
    images that have no box to use.
    """

    images: list[LabeledImage]
    failed: list[tuple[LabeledImage, str]] = field(default_factory=list)
    unboxed: list[LabeledImage] = field(default_factory=list)


def read_labeled_boxes(
    data: str | os.PathLike[str],
    columns: ManifestColumns,
    boxes: BoxList | None,
    labels: BoxLabels = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> LabeledBoxes:
    """Read a data set, with one labeled image per box if it or `boxes` has boxes.

    Boxes of an image without a group form one. Raises `DataError`.
    """
    if boxes is None:
        images = read_images(data, columns, say)
        _check_all_boxed(data, images)
        return LabeledBoxes(_grouped(images))
    from_boxes = labels == "box" or (labels == "auto" and boxes.has_labels)
    if from_boxes and Path(data).is_dir():
        images = _list_images(Path(data))
    else:
        images = read_images(data, columns, say)
    if any(image.box is not None for image in images):
        raise DataError(f"{data}: has boxes of its own: leave out {boxes.file}")
    found = LabeledBoxes([])
    for image in images:
        _attach(image, boxes, from_boxes, found)
    if not found.images:
        reason = f"; {found.failed[0][0].name}: {found.failed[0][1]}" if found.failed else ""
        raise DataError(f"{boxes.file}: has no box to use for the {len(images)} images of {data}{reason}")
    if from_boxes:
        say(f"labels are those of the boxes in {boxes.file}")
        check_labels(Path(data), found.images)
    return dataclasses.replace(found, images=_grouped(found.images))


def say_unused(unboxed: Sequence[LabeledImage], say: Callable[[str], None]) -> None:
    """Say which images have no box to use."""
    if unboxed:
        say(f"{len(unboxed)} images have no box to use and are left out, first {unboxed[0].name}")


def check_boxed(images: Sequence[LabeledImage], crop: BoxCrop | None, model: str) -> None:
    """Raise `DataError` if a model uses boxes and the images have none, or the other way round."""
    boxed = next((image for image in images if image.box is not None), None)
    if crop is not None and boxed is None:
        raise DataError(
            f"{model}: this model was trained on boxes around objects: give those of these images",
            options=["boxes=boxes.json"],
        )
    if crop is None and boxed is not None:
        raise DataError(
            f"{model}: this model was trained on whole images, but {boxed.name} has a box: leave out the boxes, or use "
            "a model that was trained on boxes"
        )


def locate(images: Sequence[LabeledImage], crop: BoxCrop) -> tuple[list[LabeledImage], list[tuple[LabeledImage, str]]]:
    """Return the images with the regions of their boxes, in pixels, and those whose box or size cannot be used."""
    good: list[LabeledImage] = []
    bad: list[tuple[LabeledImage, str]] = []
    size_of = cache(read_size)  # an image has several boxes
    for image in images:
        if image.box is None:
            good.append(image)
            continue
        try:
            size_hw = size_of(image.path)
            inside = image.box.region(size_hw)
            box = dataclasses.replace(image.box, xywh=image.box.pixels(size_hw), is_relative=False, stated_hw=None)
            good.append(dataclasses.replace(image, box=box, region=crop.region(inside, size_hw)))
        except ImageReadError as error:
            bad.append((image, error.reason))
    return good, bad


def _attach(image: LabeledImage, boxes: BoxList, from_boxes: bool, found: LabeledBoxes) -> None:
    path = os.path.abspath(image.path)
    if path in boxes.failures:
        found.failed.append((image, f"the detector failed on this image: {boxes.failures[path]}"))
    elif path not in boxes.boxes:
        found.failed.append((image, boxes.not_listed))
    elif not boxes.boxes[path]:
        found.unboxed.append(image)
    for box in boxes.boxes.get(path, ()):
        label = (box.label or box.category) if from_boxes else image.label
        if not label:
            raise DataError(f"{boxes.file}: a box of {image.name} has no label")
        found.images.append(dataclasses.replace(image, label=label, box=box))


def _list_images(root: Path) -> list[LabeledImage]:
    """List all images of a folder, without labels; the folders train, val and test are splits if train exists."""
    names = [Path(path).relative_to(root).as_posix() for path in find_images([root]).paths]
    splits = [SPLIT_NAMES.get(name.split("/")[0].casefold(), "") if "/" in name else "" for name in names]
    splits = splits if "train" in splits else [""] * len(names)
    return [LabeledImage(os.path.join(root, name), name, "", split) for name, split in zip(names, splits, strict=True)]


def _grouped(images: list[LabeledImage]) -> list[LabeledImage]:
    """Make the boxes of an image a group if any image has several: they stay on one side of a split."""
    counts = Counter(image.path for image in images)
    if len(counts) == len(images):
        return images
    return [dataclasses.replace(image, group=image.group or image.name) for image in images]


def _check_all_boxed(data: str | os.PathLike[str], images: Sequence[LabeledImage]) -> None:
    bare = [image for image in images if image.box is None]
    if bare and len(bare) < len(images):
        raise DataError(f"{data}: {len(bare)} rows have no box, first {bare[0].name}, but others do: remove these rows")
