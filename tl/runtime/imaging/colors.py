"""Convert the pixels of an image that Pillow opened to uint8: RGB by the rules of the preprocessing, or its channels.

Handles color, alpha and bit depth. Knows nothing of files, pages and orientation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from tl.errors import ImageReadError
from tl.runtime.imaging.preprocessing import Preprocessing, is_number
from tl.runtime.imaging.refusals import GRAY16_MODES, TIFF_PHOTOMETRIC

# The most channel names that a message lists.
_SHOWN = 8


def rgb_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return a loaded image as RGB: alpha over white, 16-bit gray scaled by `bit_depth_max`."""
    if image.mode in GRAY16_MODES or (image.mode == "I" and image.format == "PPM"):  # a 16-bit PGM
        return _gray16_to_rgb(image, preprocessing)
    if image.mode in ("I", "F"):
        raise ImageReadError("", "32-bit pixels have no standard range: save the image with 8 or 16 bits per channel")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def scale_transparent_gray(image: Image.Image) -> None:
    """Scale a PNG's transparent value: while loading, Pillow scales 2- and 4-bit gray to 8 bits, but not this value."""
    value = image.info.get("transparency")
    if isinstance(image, ImageFile.ImageFile) and image.mode == "L" and isinstance(value, int):
        stored = str(image.tile)
        image.info["transparency"] = value * (85 if "L;2" in stored else 17 if "L;4" in stored else 1)


def _gray16_to_rgb(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.uint32)
    check_brightest(int(values.max()), preprocessing.bit_depth_max)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0:
        values = preprocessing.bit_depth_max - values  # 0 is white, which Pillow inverts for 8 bits only
    gray = reduce_depth(values, preprocessing.bit_depth_max)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return np.repeat(gray[:, :, None], 3, axis=2)


def check_brightest(value: int, bit_depth_max: int) -> None:
    """Raise `ImageReadError` for a 16-bit value that the camera cannot have."""
    if value > bit_depth_max:
        found = f"a pixel value of {value} is above bit_depth_max {bit_depth_max}"
        raise ImageReadError("", f"{found}: bit_depth_max was set for another camera")


def reduce_depth(values: NDArray[np.uint32], bit_depth_max: int) -> NDArray[np.uint8]:
    """Convert values of 0..bit_depth_max to 0..255; v >> 8 for the full range of 16 bits."""
    return (values * 256 // (bit_depth_max + 1)).astype(np.uint8)


def channel_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the selected channels of a loaded image: its bands, where alpha is a channel like the others."""
    image.info.pop("transparency", None)  # values are data here
    if image.mode in (*GRAY16_MODES, "I", "F", "L"):
        bands = rgb_array(image, preprocessing)[:, :, :1]
    elif image.mode in ("LA", "La", "RGB", "RGBA", "RGBa"):
        bands = np.asarray(image)
    else:
        bands = np.asarray(image.convert("RGB"))
    return select_bands(bands, preprocessing.channels or ())


def select_bands(bands: NDArray[np.uint8], channels: Sequence[str]) -> NDArray[np.uint8]:
    """Return the named channels of uint8 (H, W, B), as `arrange` does."""
    return arrange([bands[:, :, number] for number in find_channels(channels, bands.shape[2], ())])


def find_channels(channels: Sequence[str], count: int, names: Sequence[str]) -> list[int]:
    """Return the numbers of channels given by number or name, of a file with `count` channels.

    `names`: those in the file, or none. Raises `ImageReadError`.
    """
    return [_find_channel(channel, count, names) for channel in channels]


def _find_channel(channel: str, count: int, names: Sequence[str]) -> int:
    if channel in names:
        if list(names).count(channel) > 1:
            raise ImageReadError("", f"several channels are named '{channel}': choose channels by number")
        return list(names).index(channel)
    if is_number(channel):
        if int(channel) < count:
            return int(channel)
        last = f"number 0 to {count - 1}" if count > 1 else "number 0"
        raise ImageReadError("", f"channel {channel} is not in this file, whose channels are {last}")
    if not names:
        raise ImageReadError("", f"channel '{channel}' is chosen by name, but this file does not name its channels")
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    raise ImageReadError("", f"channel '{channel}' is not in this file, whose channels are {shown}")


def shown_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, C) as RGB for display: its first three channels."""
    return np.ascontiguousarray(image[:, :, :3])


def arrange(planes: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Combine uint8 (H, W) channels into an image (H, W, C).

    One channel is repeated as gray; two become red and green with blue 0; three are RGB; more are kept as they are.
    """
    if len(planes) == 1:
        planes = [planes[0]] * 3
    elif len(planes) == 2:
        planes = [*planes, np.zeros_like(planes[0])]
    return np.ascontiguousarray(np.stack(planes, axis=-1))
