"""Resize, crop and pad an upright image or a region of it into the network's input, and map keypoints both ways.

Contains no file access. Pixel convention: the center of the top-left pixel is (0, 0), so an image spans (-0.5, -0.5)
to (W - 0.5, H - 0.5). Regions are in `regions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import MAX_PIXELS, Decoded, whole
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Region, clip_region

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Placement:
    """The position of an image region in the input of `input_hw` pixels.

    The region is resized to `resized_hw`; its top-left pixel is then at `offset_xy` in the input. Offsets are positive
    where padding is added and negative where the region is cropped.
    """

    region_xywh: Region
    resized_hw: tuple[int, int]
    offset_xy: tuple[int, int]
    input_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per image pixel."""
        return self.resized_hw[1] / self.region_xywh[2], self.resized_hw[0] / self.region_xywh[3]

    def to_input(self, keypoints_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert (..., 2) (x, y) in pixels of the upright image to pixels of the input."""
        points = np.asarray(keypoints_xy, np.float64)
        return np.asarray((points + 0.5 - self.region_xywh[:2]) * self.scale_xy - 0.5 + self.offset_xy)

    def to_image(self, keypoints_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert (..., 2) (x, y) in pixels of the input to pixels of the upright image."""
        points = np.asarray(keypoints_xy, np.float64)
        return np.asarray((points - self.offset_xy + 0.5) / self.scale_xy - 0.5 + self.region_xywh[:2])


def place(image_hw: tuple[int, int], preprocessing: Preprocessing, region: Region | None = None) -> Placement:
    """Return the placement of an image, or of the part of `region` inside it, for a preprocessing.

    Raises `ImageReadError` for a region outside the image.
    Source of the short-side sizes and of the rounding of the crop: torchvision 0.29 `resize` and `center_crop`, so that
    pretrained weights get the same inputs as in their validation.
    """
    placed: Region = (0, 0, image_hw[1], image_hw[0]) if region is None else clip_region(region, image_hw)
    _, _, width, height = placed
    input_h, input_w = preprocessing.input_hw
    if preprocessing.resize_mode == "squash":
        return Placement(placed, preprocessing.input_hw, (0, 0), preprocessing.input_hw)
    if preprocessing.short_side is not None:
        short = preprocessing.short_side
        long = max(short, int(short * max(height, width) / min(height, width)))
        resized_h, resized_w = (short, long) if height <= width else (long, short)
        offset = (-round((resized_w - input_w) / 2), -round((resized_h - input_h) / 2))
        return Placement(placed, (resized_h, resized_w), offset, preprocessing.input_hw)
    scale = min(input_h / height, input_w / width)
    resized_h, resized_w = max(1, round(height * scale)), max(1, round(width * scale))
    offset = ((input_w - resized_w) // 2, (input_h - resized_h) // 2)
    return Placement(placed, (resized_h, resized_w), offset, preprocessing.input_hw)


def place_given(image_hw: tuple[int, int], preprocessing: Preprocessing, region: Region | None = None) -> Placement:
    """Return the placement of an image in the pixels that the graph takes: of the image itself if it takes any size.

    Raises `ImageReadError` for a region outside the image.
    """
    if preprocessing.any_size:
        return Placement((0, 0, image_hw[1], image_hw[0]), image_hw, (0, 0), image_hw)
    return place(image_hw, preprocessing, region)


def eighths(image_hw: tuple[int, int], preprocessing: Preprocessing, region: Region | None = None) -> int:
    """Return the scale, 1..8 eighths, at which a JPEG is decoded. `image_hw`: size of the upright image.

    Raises `ImageReadError` for a region outside the image.
    """
    if preprocessing.jpeg_scale == "full":
        return 8
    return min(8, math.ceil(8 * 2 * max(place(image_hw, preprocessing, region).scale_xy)))


def working_image(
    image: Decoded | NDArray[np.uint8], preprocessing: Preprocessing, region: Region | None = None
) -> NDArray[np.uint8]:
    """Return the resized and padded image before cropping; training caches and augments it.

    `image`: decoded with the same preprocessing, or uint8 (H, W, 3) RGB. Returns uint8 (h, w, 3), of size `input_hw`
    or, for `short_side`, at least that; the image itself if the graph resizes. Raises `ImageReadError` for an image too
    elongated to resize in bounded memory, ValueError for a region where the graph resizes.
    """
    decoded = whole(image) if isinstance(image, np.ndarray) else image
    placement = place(decoded.full_hw, preprocessing, region)
    height, width = placement.resized_hw
    if height * width > MAX_PIXELS:  # a very elongated image whose short side is enlarged
        full_w, full_h = placement.region_xywh[2:]
        raise ImageReadError("", f"too elongated: {full_w:g}x{full_h:g} would be resized to {width}x{height}")
    if preprocessing.any_size:
        if region is not None:
            raise ValueError("a graph that resizes takes whole images, not regions")
        return decoded.image
    resized = _resize(decoded, placement, preprocessing)
    if preprocessing.resize_mode != "letterbox" or resized.shape[:2] == preprocessing.input_hw:
        return resized
    left, top = placement.offset_xy
    canvas = np.empty(preprocessing.input_shape, np.uint8)
    canvas[:] = np.array(preprocessing.pad_rgb, np.uint8)
    canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return canvas


def crop_to_input(working: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Crop the center of a working image to `input_hw`; contiguous, and not copied if it already fits.

    Returns the image itself if the graph crops.
    """
    if preprocessing.any_size:
        return working
    height, width = working.shape[:2]
    input_h, input_w = preprocessing.input_hw
    top, left = round((height - input_h) / 2), round((width - input_w) / 2)
    return np.ascontiguousarray(working[top : top + input_h, left : left + input_w])


def turn_keypoints(
    keypoints_xy: NDArray[np.floating], orientation: int, stored_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """Convert (..., 2) (x, y) in pixels of the stored image to pixels of the upright one (EXIF orientation 1..8)."""
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
    """Invert `turn_keypoints`: convert pixels of the upright image to pixels of the stored one."""
    points = np.array(keypoints_xy, np.float64)
    height, width = stored_hw if orientation < 5 else stored_hw[::-1]
    if orientation in (3, 4, 7, 8):
        points[..., 1] = height - 1 - points[..., 1]
    if orientation in (2, 3, 6, 7):
        points[..., 0] = width - 1 - points[..., 0]
    return points[..., ::-1].copy() if orientation >= 5 else points


def _resize(decoded: Decoded, placement: Placement, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    height, width = placement.resized_hw
    box = _decoded_box(decoded, placement.region_xywh)
    if box == (0, 0, width, height) and decoded.image.shape[:2] == placement.resized_hw:
        return decoded.image
    resampling = _RESAMPLING[preprocessing.interpolation]
    if decoded.image.shape[2] == 3:
        return _resample(decoded.image, (width, height), resampling, box)
    # Pillow resizes the channels of RGB one by one too, so each is the same as in an RGB image.
    channels = np.ascontiguousarray(np.moveaxis(decoded.image, -1, 0))
    return np.stack([_resample(one, (width, height), resampling, box) for one in channels], axis=-1)


def _resample(
    image: NDArray[np.uint8],
    size_wh: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float],
) -> NDArray[np.uint8]:
    """Resize the part `box` of an image, uint8 (H, W, 3) or (H, W), horizontally and then vertically.

    Pillow also resizes in two passes, rounded in between, but since version 13 vertically first where that is cheaper,
    which changes pixels. With one pass per call, they are the same in every version. Source: Pillow, pull request 9549.
    One call, which threads do more at the same time, is left to sizes for which no version begins vertically.
    """
    left, top, right, bottom = box
    width, height = size_wh
    is_whole = box == (0, 0, image.shape[1], image.shape[0])
    if resampling == Image.Resampling.NEAREST or (is_whole and image.shape[0] - height <= image.shape[1] - width):
        return np.asarray(Image.fromarray(image).resize(size_wh, resampling, box=box))
    # Only the rows that the vertical pass reads. The widest kernel, Lanczos, reaches 3 pixels of the output.
    margin = 3 * max(1.0, (bottom - top) / height) + 1
    first, last = max(0, math.floor(top - margin)), min(image.shape[0], math.ceil(bottom + margin))
    rows = Image.fromarray(image[first:last])
    narrowed = rows.resize((width, rows.height), resampling, box=(left, 0, right, rows.height))
    return np.asarray(narrowed.resize(size_wh, resampling, box=(0, top - first, width, bottom - first)))


def _decoded_box(decoded: Decoded, region: Region) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of an image region in pixels of the decoded image."""
    height, width = decoded.full_hw
    if region == (0, 0, width, height):
        return decoded.box
    left, top, right, bottom = decoded.box
    scale_x, scale_y = (right - left) / width, (bottom - top) / height
    x, y, w, h = region
    inner = (left + scale_x * x, top + scale_y * y, left + scale_x * (x + w), top + scale_y * (y + h))
    return inner[0], inner[1], min(inner[2], right), min(inner[3], bottom)  # rounding must not exceed the image
