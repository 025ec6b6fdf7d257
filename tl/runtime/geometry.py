"""Resize, crop and pad an upright picture into the network's input, and map keypoints both ways, exactly.

Knows `Recipe` and arrays. Does not know files or models. Pixel convention: the centre of the top-left pixel is (0, 0),
so a picture spans (-0.5, -0.5) to (W - 0.5, H - 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.decode import MAX_PIXELS, Decoded, whole
from tl.runtime.recipe import Recipe

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Placement:
    """Where a picture of `image_hw` pixels comes to lie in the input of `input_hw` pixels.

    It is resized to `resized_hw`, then its top-left pixel lies at `offset_xy` of the input: positive where padding
    surrounds it, negative where it is cropped.
    """

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    offset_xy: tuple[int, int]
    input_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per image pixel."""
        return self.resized_hw[1] / self.image_hw[1], self.resized_hw[0] / self.image_hw[0]

    def to_input(self, keypoints_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 2) (x, y) in pixels of the upright picture -> pixels of the input."""
        points = np.asarray(keypoints_xy, np.float64)
        return np.asarray((points + 0.5) * self.scale_xy - 0.5 + self.offset_xy)

    def to_image(self, keypoints_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 2) (x, y) in pixels of the input -> pixels of the upright picture."""
        points = np.asarray(keypoints_xy, np.float64)
        return np.asarray((points - self.offset_xy + 0.5) / self.scale_xy - 0.5)


def place(image_hw: tuple[int, int], recipe: Recipe) -> Placement:
    """The placement of a picture under a recipe.

    Source of the short-side sizes and the crop's rounding: torchvision 0.29 `resize` and `center_crop`, so that
    pretrained weights see what they were validated on.
    """
    height, width = image_hw
    input_h, input_w = recipe.input_hw
    if recipe.resize_mode == "squash":
        return Placement(image_hw, recipe.input_hw, (0, 0), recipe.input_hw)
    if recipe.short_side is not None:
        short = recipe.short_side
        long = max(short, int(short * max(height, width) / min(height, width)))
        resized_h, resized_w = (short, long) if height <= width else (long, short)
        offset = (-round((resized_w - input_w) / 2), -round((resized_h - input_h) / 2))
        return Placement(image_hw, (resized_h, resized_w), offset, recipe.input_hw)
    scale = min(input_h / height, input_w / width)
    resized_h, resized_w = max(1, round(height * scale)), max(1, round(width * scale))
    offset = ((input_w - resized_w) // 2, (input_h - resized_h) // 2)
    return Placement(image_hw, (resized_h, resized_w), offset, recipe.input_hw)


def eighths(image_hw: tuple[int, int], recipe: Recipe) -> int:
    """At how many eighths of its size, 1..8, a recipe has a JPEG decoded. `image_hw`: of the upright picture."""
    if recipe.jpeg_scale == "full":
        return 8
    resized_hw = place(image_hw, recipe).resized_hw
    ratio = max(2 * resized / size for resized, size in zip(resized_hw, image_hw, strict=True))
    return min(8, math.ceil(8 * ratio))


def working_image(picture: Decoded | NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    """The resized (and padded), not yet cropped picture: what training keeps and augments.

    `picture`: decoded under the same recipe, or uint8 (H, W, 3) RGB. Returns uint8 (h, w, 3), of `input_hw` or, for
    `short_side`, at least that. Raises `ImageReadError` for a picture too elongated to be resized in bounded memory.
    """
    decoded = whole(picture) if isinstance(picture, np.ndarray) else picture
    placement = place(decoded.full_hw, recipe)
    height, width = placement.resized_hw
    if height * width > MAX_PIXELS:  # the short side of a thread-like picture blown up
        full_h, full_w = decoded.full_hw
        raise ImageReadError("", f"too elongated: {full_w}x{full_h} would be resized to {width}x{height}")
    resized = _resize(decoded, placement.resized_hw, recipe)
    if recipe.resize_mode != "letterbox" or resized.shape[:2] == recipe.input_hw:
        return resized
    left, top = placement.offset_xy
    canvas = np.empty((*recipe.input_hw, 3), np.uint8)
    canvas[:] = np.array(recipe.pad_rgb, np.uint8)
    canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return canvas


def crop_to_input(working: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    """Cut the centre of a working picture to `input_hw`; contiguous, and the picture itself where it already fits."""
    height, width = working.shape[:2]
    input_h, input_w = recipe.input_hw
    top, left = round((height - input_h) / 2), round((width - input_w) / 2)
    return np.ascontiguousarray(working[top : top + input_h, left : left + input_w])


def turn_keypoints(
    keypoints_xy: NDArray[np.floating], orientation: int, stored_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """(..., 2) (x, y) in pixels of the stored picture -> pixels of the upright one (EXIF orientation 1..8)."""
    points = np.array(keypoints_xy, np.float64)
    height, width = stored_hw
    if orientation >= 5:
        points, height, width = points[..., ::-1].copy(), width, height
    if orientation in (3, 4, 7, 8):
        points[..., 1] = height - 1 - points[..., 1]
    if orientation in (2, 3, 6, 7):
        points[..., 0] = width - 1 - points[..., 0]
    return points


def unturn_keypoints(
    keypoints_xy: NDArray[np.floating], orientation: int, stored_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """The inverse of `turn_keypoints`: pixels of the upright picture -> pixels of the stored one."""
    points = np.array(keypoints_xy, np.float64)
    height, width = stored_hw if orientation < 5 else stored_hw[::-1]
    if orientation in (3, 4, 7, 8):
        points[..., 1] = height - 1 - points[..., 1]
    if orientation in (2, 3, 6, 7):
        points[..., 0] = width - 1 - points[..., 0]
    return points[..., ::-1].copy() if orientation >= 5 else points


def _resize(decoded: Decoded, resized_hw: tuple[int, int], recipe: Recipe) -> NDArray[np.uint8]:
    height, width = resized_hw
    if decoded.box == (0, 0, width, height) and decoded.image.shape[:2] == resized_hw:
        return decoded.image
    picture = Image.fromarray(decoded.image)
    return np.asarray(picture.resize((width, height), _RESAMPLING[recipe.interpolation], box=decoded.box))
