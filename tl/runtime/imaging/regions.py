"""Regions of an image: parts, boxes drawn around objects, and the crop that a model's input is made of.

Pure geometry, without pixels. Regions are measured from pixel edges: the whole image is (0, 0, W, H).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError

# But for rounding.
_ONE_PIXEL = 1 - 1e-9
# Left, top, width and height in pixels of the upright image.
Region = tuple[float, float, float, float]


class Located(Protocol):
    """A region that is known once the size of the image is."""

    def region(self, image_hw: tuple[int, int]) -> Region:
        """Return the region in pixels of an image. Raises `ImageReadError` if it lies outside."""


@dataclass(frozen=True)
class Part:
    """A region relative to the image size: all values are fractions of its width or height."""

    left: float
    top: float
    width: float
    height: float

    def region(self, image_hw: tuple[float, float]) -> Region:
        """Return the region in pixels of an image; it is at least one pixel wide and high."""
        full_h, full_w = image_hw
        width, height = max(1.0, self.width * full_w), max(1.0, self.height * full_h)
        return min(self.left * full_w, full_w - width), min(self.top * full_h, full_h - height), width, height

    def within(self, region: Region) -> Region:
        """Return the part of a region."""
        left, top, width, height = region
        x, y, w, h = self.region((height, width))
        return left + x, top + y, w, h


def widen(region: Region, margin: float) -> Region:
    """Extend a region on every side by `margin` times its size."""
    left, top, width, height = region
    return left - margin * width, top - margin * height, (1 + 2 * margin) * width, (1 + 2 * margin) * height


def region_of_points(keypoints_xy: NDArray[np.floating], margin: float) -> Region:
    """Return the square around the non-missing points (K, 2), extended on every side by `margin` times its side.

    Raises ValueError if there are no points. A single point gives a square of one pixel.
    """
    present = keypoints_xy[~np.isnan(keypoints_xy).any(axis=1)] + 0.5  # regions are measured from pixel edges
    if len(present) == 0:
        raise ValueError("no annotated points")
    left, top = (float(value) for value in present.min(axis=0))
    width, height = (float(value) for value in present.max(axis=0) - present.min(axis=0))
    return widen(square((left, top, width, height)), margin)


def square(region: Region) -> Region:
    """Return the smallest square that contains a region and has the same center; at least one pixel."""
    left, top, width, height = region
    side = max(width, height, 1.0)
    return left + (width - side) / 2, top + (height - side) / 2, side, side


def clip_region(region: Region, image_hw: tuple[int, int]) -> Region:
    """Clip a region to the image. Raises `ImageReadError` if less than one pixel of width or height remains."""
    left, top = max(0.0, region[0]), max(0.0, region[1])
    right, bottom = min(image_hw[1], region[0] + region[2]), min(image_hw[0], region[1] + region[3])
    if not (right - left > _ONE_PIXEL and bottom - top > _ONE_PIXEL):
        shown = ", ".join(f"{value:g}" for value in region)
        raise ImageReadError("", f"the box ({shown}) contains no pixel of the {image_hw[1]}x{image_hw[0]} image")
    return left, top, right - left, bottom - top


@dataclass(frozen=True)
class Box:
    """A box around an object: `xywh` is left, top, width and height in pixels of the upright image.

    `is_relative`: they are fractions of its width and height instead. `confidence`: of the detector, None for a box
    that was drawn by hand. `category`: of the detector. `label`: the true class, "" if unknown. `stated_hw`: size of
    the image as stated beside the box. `number`: place among all boxes of the image in its file, from 0.
    """

    xywh: Region
    is_relative: bool = False
    confidence: float | None = None
    category: str = ""
    label: str = ""
    stated_hw: tuple[int, int] | None = None
    number: int = 0

    def region(self, image_hw: tuple[int, int]) -> Region:
        """Return the part of the box inside an image, in pixels.

        Raises `ImageReadError`, naming the box, if it contains no pixel, has no area or belongs to another size.
        """
        return clip_region(self.pixels(image_hw), image_hw)

    def pixels(self, image_hw: tuple[int, int]) -> Region:
        """Return the box in pixels; it may extend beyond the image. Raises `ImageReadError` as `region`."""
        height, width = image_hw
        if self.stated_hw is not None and self.stated_hw != image_hw:
            raise ImageReadError("", _size_fault(self.stated_hw, image_hw))
        if not (self.xywh[2] > 0 and self.xywh[3] > 0 and all(map(math.isfinite, self.xywh))):
            raise ImageReadError("", f"the box ({self.shown}) has no area")
        x, y, w, h = self.xywh
        return (x * width, y * height, w * width, h * height) if self.is_relative else self.xywh

    @property
    def shown(self) -> str:
        """Left, top, width and height, for messages and keys."""
        return ", ".join(f"{value:.9g}" for value in self.xywh)


@dataclass(frozen=True)
class BoxCrop:
    """The region around a box that a model uses. Stored in the model file.

    `margin`: added on every side, as a fraction of the box's size. `square`: whether the region is then extended to a
    square, which moves to lie inside the image where the image is large enough.
    """

    margin: float
    square: bool

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"the margin of a box must be 0 or more, got {self.margin}")

    def region(self, inside: Region, image_hw: tuple[int, int]) -> Region:
        """Return the region around a box that lies inside an image of `image_hw` pixels."""
        region = widen(inside, self.margin)
        if self.square:
            left, top, width, height = square(region)
            # Moved before it is cut: a cut square would be stretched, and objects are often at the edge.
            region = _moved(left, width, image_hw[1]), _moved(top, height, image_hw[0]), width, height
        return clip_region(region, image_hw)


@dataclass(frozen=True)
class CroppedBox:
    """The region around a box, or `part` of that region."""

    box: Box
    crop: BoxCrop
    part: Part | None = None

    def region(self, image_hw: tuple[int, int]) -> Region:
        """Return the region in pixels of an image. Raises `ImageReadError` as `Box.region`."""
        whole = self.crop.region(self.box.region(image_hw), image_hw)
        return whole if self.part is None else self.part.within(whole)


def _moved(start: float, length: float, limit: int) -> float:
    """Return the start of an interval, moved to lie in 0..`limit`; centered if it is longer."""
    return (limit - length) / 2 if length > limit else min(max(start, 0.0), limit - length)


def _size_fault(stated_hw: tuple[int, int], image_hw: tuple[int, int]) -> str:
    stated, found = (f"{width}x{height}" for height, width in (stated_hw, image_hw))
    fault = f"the list of boxes states {stated} pixels for this image, which has {found}"
    if stated_hw == image_hw[::-1]:
        return f"{fault}: its boxes were drawn without its EXIF orientation, or it was rotated since"
    return f"{fault}: its boxes belong to another size"
