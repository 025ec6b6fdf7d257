"""Images with boxes: one item for each box of an image, in the place of the image among the sources.

`box_files` reads the files that list boxes. Opens no files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from tl.errors import DataError, ImageReadError
from tl.runtime.imaging.decode import ImageSource, read_stream, source_name
from tl.runtime.imaging.regions import Box
from tl.runtime.results import Failure, NoBox
from tl.runtime.sources.memory_files import MemoryFile

Value = TypeVar("Value")
BoxFormat = Literal["megadetector", "coco", "csv"]


@dataclass(frozen=True)
class BoxedImage:
    """A source of prediction: a box of an image. Other boxes of it may follow, but a stream must not be shared."""

    source: ImageSource
    box: Box


@dataclass(frozen=True)
class UnboxedImage:
    """An image that is not predicted because it has no box. `answer`: its result, which says why."""

    source: ImageSource
    answer: Failure | NoBox


# What a prediction runs on.
PredictionSource = ImageSource | BoxedImage | UnboxedImage


def split_item(item: ImageSource | BoxedImage) -> tuple[ImageSource, Box | None]:
    """Return the image of an item, and its box."""
    return (item.source, item.box) if isinstance(item, BoxedImage) else (item, None)


def item_name(item: PredictionSource) -> str:
    """Return the name of the image of an item: its path, or '' for data without one."""
    return source_name(item.source if isinstance(item, BoxedImage | UnboxedImage) else item)


def item_digest(digest: str, box: Box | None) -> str:
    """Return a digest of an image's content and its box, everything that a row shows of it included."""
    if box is None or not digest:
        return digest
    return f"{digest} {'relative ' * box.is_relative}{box.shown} {box.confidence} {box.category} {box.number}"


@dataclass(frozen=True)
class BoxList:
    """The boxes of images, by absolute path; empty for an image that is known to have none.

    `failures`: images for which the detector failed, with its reason. `least`: confidence below which boxes were left
    out, None if the boxes have none. `remarks`: what was left out. `file`, `format`: where they were read from.
    `names`: how the file calls each image. `has_labels`: whether boxes have a true class of their own.
    """

    boxes: Mapping[str, tuple[Box, ...]]
    failures: Mapping[str, str] = field(default_factory=dict)
    least: float | None = None
    remarks: tuple[str, ...] = ()
    file: str = ""
    format: BoxFormat | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    has_labels: bool = False

    def __post_init__(self) -> None:
        if len({box.is_relative for boxes in self.boxes.values() for box in boxes}) > 1:
            raise ValueError("boxes must be in pixels, or in fractions of the image, but not both")

    @property
    def is_relative(self) -> bool:
        """Whether boxes are fractions of the image."""
        return any(box.is_relative for boxes in self.boxes.values() for box in boxes[:1])

    def of(self, name: str) -> tuple[Box, ...]:
        """Return the boxes of an image. Raises `KeyError` for one that is not listed."""
        return self.boxes[os.path.abspath(name)]

    def items(self, source: ImageSource) -> list[BoxedImage | UnboxedImage]:
        """Return one item for each box of an image, or one that says why there is none."""
        name = source_name(source)
        path = os.path.abspath(name)
        if (reason := self.failures.get(path)) is not None:
            return [UnboxedImage(source, Failure(name, f"the detector failed on this image: {reason}"))]
        boxes = self.boxes.get(path)
        if boxes is None:
            return [UnboxedImage(source, Failure(name, self.not_listed))]
        if not boxes:
            return [UnboxedImage(source, NoBox(name, self.no_box))]
        if len(boxes) == 1 or isinstance(source, str | os.PathLike | bytes | np.ndarray | Image.Image):
            return [BoxedImage(source, box) for box in boxes]
        try:
            content = read_stream(source)  # threads must not share a stream
        except ImageReadError as error:
            return [UnboxedImage(source, Failure(name, error.reason))]
        return [BoxedImage(MemoryFile(name, content), box) for box in boxes]

    def expand(self, sources: Iterable[PredictionSource]) -> Iterator[PredictionSource]:
        """Yield the items of all sources. Sources that are items already are kept."""
        for source in sources:
            if isinstance(source, BoxedImage | UnboxedImage):
                yield source
            else:
                yield from self.items(source)

    @property
    def not_listed(self) -> str:
        """The error for an image that is not in the list."""
        return "the list of boxes contains no entry for this image (paths in it are relative to its folder)"

    @property
    def no_box(self) -> str:
        """The reason that an image has no label."""
        return "no box" if self.least is None else f"no box of confidence {self.least:g} or more"

    def count(self, names: Iterable[str]) -> int:
        """Return the number of results for the images `names`."""
        return sum(max(1, len(self.boxes.get(os.path.abspath(name), ()))) for name in names)

    def absent_from(self, names: Iterable[str]) -> list[str]:
        """Return the listed images that are not among `names`, as the file calls them."""
        given = set(map(os.path.abspath, names))
        return [self.names.get(path, path) for path in (*self.boxes, *self.failures) if path not in given]

    def renamed(self, paths: Mapping[str, str]) -> BoxList:
        """Return the list for images that are elsewhere: listed absolute path -> path."""

        def moved(found: Mapping[str, Value]) -> dict[str, Value]:
            return {os.path.abspath(paths.get(path, path)): value for path, value in found.items()}

        return replace(self, boxes=moved(self.boxes), failures=moved(self.failures), names=moved(self.names))

    def single(self) -> dict[str, Box]:
        """Return the only box of each image that has one. Raises `DataError` for an image with several."""
        for path, boxes in self.boxes.items():
            if len(boxes) > 1:
                name = self.names.get(path, path)
                raise DataError(f"{self.file}: {len(boxes)} boxes for {name}; landmark models expect one per image")
        return {path: boxes[0] for path, boxes in self.boxes.items() if boxes}


def box_list(boxes: BoxList | Mapping[str, Sequence[Box]]) -> BoxList:
    """Return boxes by path as a list."""
    if isinstance(boxes, BoxList):
        return boxes
    return BoxList({os.path.abspath(path): tuple(found) for path, found in boxes.items()})
