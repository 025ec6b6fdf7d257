"""The preprocessing settings: every decision between an image file and the network's uint8 input.

Defines and validates the options; `decode` and `geometry` implement them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# full: decode every pixel. 2x: decode at libjpeg's smallest scale, in eighths, at which both sides are at least twice
# the resized size; four times as fast for large photos.
JpegScale = Literal["full", "2x"]
ResizeMode = Literal["squash", "letterbox", "short_side"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

# A model file may ask for any input; this one takes 400 MB for each image.
MAX_INPUT_PIXELS = 1 << 27


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of an image to the network's input. Stored in full in every model file.

    `input_hw`: the network's input size in pixels. `resize_mode`: `squash` ignores the aspect ratio; `letterbox` keeps
    it and pads with `pad_rgb`; `short_side` scales the shorter side to `short_side` pixels (None in the other modes)
    and crops the center, as torchvision and timm do. Resizing is antialiased (Pillow). `bit_depth_max`: the largest
    value a 16-bit image can contain (65535, or 4095 for a 12-bit camera).
    Fields with a single allowed value state rules that readers of the file must follow; a second value means a new
    rule.
    """

    input_hw: tuple[int, int]
    resize_mode: ResizeMode
    short_side: int | None
    interpolation: Interpolation
    pad_rgb: tuple[int, int, int]
    bit_depth_max: int
    orientation: Literal["exif"]
    alpha: Literal["white"]
    icc: Literal["ignored"]
    cmyk: Literal["pillow"]
    decoder: Literal["simplejpeg+pillow"]
    jpeg_scale: JpegScale

    def __post_init__(self) -> None:
        if min(self.input_hw) < 1:
            raise ValueError(f"input_hw must be positive, got {self.input_hw}")
        if math.prod(self.input_hw) > MAX_INPUT_PIXELS or (self.short_side or 0) ** 2 > MAX_INPUT_PIXELS:
            raise ValueError(
                f"input_hw {self.input_hw} or short_side {self.short_side} exceeds {MAX_INPUT_PIXELS} pixels"
            )
        if (self.resize_mode == "short_side") != (self.short_side is not None):
            raise ValueError(f"short_side applies only to resize_mode 'short_side', got {self.resize_mode!r}")
        if self.short_side is not None and self.short_side < max(self.input_hw):
            raise ValueError(f"short_side {self.short_side} is smaller than the crop {self.input_hw}")
        if not all(0 <= value <= 255 for value in self.pad_rgb):
            raise ValueError(f"pad_rgb must be 0..255, got {self.pad_rgb}")
        if not 255 < self.bit_depth_max <= 65535:
            raise ValueError(f"bit_depth_max must be 256..65535, got {self.bit_depth_max}")

    @property
    def decode_key(self) -> tuple[object, ...]:
        """Equal for preprocessings that decode an image of a given size alike; an ensemble then decodes it once."""
        return (self.bit_depth_max, self.orientation, self.alpha, self.icc, self.cmyk, self.decoder)


def build_preprocessing(
    input_hw: tuple[int, int],
    resize_mode: ResizeMode = "squash",
    *,
    short_side: int | None = None,
    interpolation: Interpolation = "bilinear",
    pad_rgb: tuple[int, int, int] = (0, 0, 0),
    bit_depth_max: int = 65535,
    jpeg_scale: JpegScale = "2x",
) -> Preprocessing:
    """Return a preprocessing with the rules implemented by this version.

    In mode `short_side`, `short_side` defaults to input / 0.875, the crop_pct of ImageNet training.
    Source: torchvision's ImageClassification preset, 224 of 256.
    """
    if resize_mode == "short_side" and short_side is None:
        short_side = round(max(input_hw) / 0.875)
    return Preprocessing(
        input_hw=input_hw,
        resize_mode=resize_mode,
        short_side=short_side,
        interpolation=interpolation,
        pad_rgb=pad_rgb,
        bit_depth_max=bit_depth_max,
        orientation="exif",
        alpha="white",
        icc="ignored",
        cmyk="pillow",
        decoder="simplejpeg+pillow",
        jpeg_scale=jpeg_scale,
    )
