"""The preprocessing settings: every decision between an image file and the network's uint8 input.

Defines and validates the options; `decode` and `geometry` implement them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# full: decode every pixel. 2x: decode at libjpeg's smallest scale, in eighths, at which both sides are at least twice
# the resized size; four times as fast for large photos.
JpegScale = Literal["full", "2x"]
# Who resizes and crops: the runtime, before the graph, or the graph, which then takes images of any size.
ResizedBy = Literal["runtime", "graph"]
ResizeMode = Literal["squash", "letterbox", "short_side"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# Ways to combine the planes of a stack, besides the number of the one to use.
PROJECTIONS = ("max", "mean")
# Far above the channels of any microscope; bounds the memory of one image.
MAX_CHANNELS = 64

# A model file may ask for any input; this one takes 400 MB for each image.
MAX_INPUT_PIXELS = 1 << 27


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of an image to the network's input. Stored in full in every model file.

    `input_hw`: the network's input size in pixels. `resize_mode`: `squash` ignores the aspect ratio; `letterbox` keeps
    it and pads with `pad_rgb`, one value for each channel of the input; `short_side` scales the shorter side to
    `short_side` pixels (None in the other modes) and crops the center, as torchvision and timm do. Resizing is
    antialiased (Pillow). `bit_depth_max`: the largest value a 16-bit image can contain (65535, or 4095 for a 12-bit
    camera). `channels`: numbers (from 0) or names of the channels of a file to use, in order; None: gray or color as
    the file says. `project`: how the pages or z planes of a stack become one: `max`, `mean`, or the number of the plane
    to use (from 0); None: images have one. `stacks` implements both. `resized_by`: `graph` if the model file resizes,
    crops and pads by itself; it then takes upright RGB images of any size, decoded at full size.
    Fields with a single allowed value state rules that readers of the file must follow; a second value means a new
    rule.
    """

    input_hw: tuple[int, int]
    resize_mode: ResizeMode
    short_side: int | None
    interpolation: Interpolation
    pad_rgb: tuple[int, ...]
    bit_depth_max: int
    orientation: Literal["exif"]
    alpha: Literal["white"]
    icc: Literal["ignored"]
    cmyk: Literal["pillow"]
    decoder: Literal["simplejpeg+pillow"]
    jpeg_scale: JpegScale
    channels: tuple[str, ...] | None
    project: str | None
    resized_by: ResizedBy

    def __post_init__(self) -> None:
        if faults := stack_faults(self.channels, self.project):
            raise ValueError("; ".join(faults))
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
        if len(self.pad_rgb) != self.num_channels:
            raise ValueError(f"pad_rgb must have {self.num_channels} values, got {self.pad_rgb}")
        if not 255 < self.bit_depth_max <= 65535:
            raise ValueError(f"bit_depth_max must be 256..65535, got {self.bit_depth_max}")
        if self.any_size and (self.jpeg_scale != "full" or self.chooses):
            raise ValueError("resized_by 'graph' requires jpeg_scale 'full', and neither channels nor project")

    @property
    def num_channels(self) -> int:
        """Channels of the network's input: 3 (RGB), or the number of `channels` if there are more than 3."""
        return max(3, len(self.channels or ()))

    @property
    def chooses(self) -> bool:
        """Whether channels or planes of a file are chosen."""
        return self.channels is not None or self.project is not None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, channels) of one input."""
        return (*self.input_hw, self.num_channels)

    @property
    def any_size(self) -> bool:
        """Whether the graph takes images of any size."""
        return self.resized_by == "graph"

    @property
    def graph_shape(self) -> tuple[int | None, int | None, int]:
        """Shape (H, W, channels) of one image that the graph takes; None for any size."""
        return (None, None, self.num_channels) if self.any_size else self.input_shape

    @property
    def decode_key(self) -> tuple[object, ...]:
        """Equal for preprocessings that decode an image of a given size alike; an ensemble then decodes it once."""
        rules = (self.bit_depth_max, self.orientation, self.alpha, self.icc, self.cmyk, self.decoder)
        return (*rules, self.channels, self.project)


def stack_faults(channels: Sequence[str] | None, project: str | None) -> list[str]:
    """Return what is wrong with the values of `channels` and `project`."""
    faults = []
    if channels is not None:
        repeated = sorted({name for name in channels if list(channels).count(name) > 1})
        if not channels or not all(name.strip() for name in channels) or len(channels) > MAX_CHANNELS:
            faults.append(f"channels must be 1 to {MAX_CHANNELS} numbers or names, got {list(channels)}")
        elif repeated:
            faults.append(f"channels must be different, got '{repeated[0]}' more than once")
    if project is not None and project not in PROJECTIONS and not is_number(project):
        faults.append(f"project must be {', '.join(PROJECTIONS)} or the number of a page from 0, got '{project}'")
    return faults


def parse_channels(text: str | None) -> tuple[str, ...] | None:
    """`0,2,4` or `DAPI,GFP` -> the numbers or names; None for None."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def is_number(text: str) -> bool:
    """Whether a text is the number of a channel or page, written as usual."""
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 6


def build_preprocessing(
    input_hw: tuple[int, int],
    resize_mode: ResizeMode = "squash",
    *,
    short_side: int | None = None,
    interpolation: Interpolation = "bilinear",
    pad_rgb: tuple[int, ...] | None = None,
    bit_depth_max: int = 65535,
    jpeg_scale: JpegScale = "2x",
    channels: tuple[str, ...] | None = None,
    project: str | None = None,
) -> Preprocessing:
    """Return a preprocessing with the rules implemented by this version.

    In mode `short_side`, `short_side` defaults to input / 0.875, the crop_pct of ImageNet training. `pad_rgb` defaults
    to 0 in each channel.
    Source: torchvision's ImageClassification preset, 224 of 256.
    """
    if resize_mode == "short_side" and short_side is None:
        short_side = round(max(input_hw) / 0.875)
    return Preprocessing(
        input_hw=input_hw,
        resize_mode=resize_mode,
        short_side=short_side,
        interpolation=interpolation,
        pad_rgb=(0,) * max(3, len(channels or ())) if pad_rgb is None else pad_rgb,
        bit_depth_max=bit_depth_max,
        orientation="exif",
        alpha="white",
        icc="ignored",
        cmyk="pillow",
        decoder="simplejpeg+pillow",
        jpeg_scale=jpeg_scale,
        channels=channels,
        project=project,
        resized_by="runtime",
    )
