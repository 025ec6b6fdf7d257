"""Look at the stored values of an image that decoding to 8 bits hides: the brightest of 16 bits, and its alpha.

Says what the values suggest; never changes how an image is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import MAX_PIXELS, ImageSource, open_header, reading
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.refusals import GRAY16_MODES, check_frames, check_tiff, is_deep_color
from tl.runtime.imaging.signatures import HEAD_BYTES
from tl.runtime.imaging.stacks import opened_stack
from tl.runtime.imaging.tiff_layout import is_tiff

# Largest values of cameras with 10, 12 and 14 bits, which are stored in files of 16.
CAMERA_MAXIMA = (1023, 4095, 16383)
# With fewer images, nothing is said.
MIN_IMAGES = 8
_FIRST_IMAGES = 64
# A cut-out has few pixels between transparent and opaque; a channel of measurements has many.
_MEASURED = 0.1

Alpha = Literal["none", "plain", "varies", "invisible"]


@dataclass(frozen=True)
class StoredValues:
    """`brightest`: largest value of a 16-bit image, None for other depths; for color, its low byte is unknown and 255.

    `alpha`: "varies" if many pixels are half transparent, "invisible" if all are transparent, else "plain".
    """

    brightest: int | None
    is_gray: bool
    alpha: Alpha


def has_hidden_values(head: bytes) -> bool:
    """Return whether a file that begins with `head` may have 16 bits or alpha. Source: PNG specification, "IHDR"."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return head[24:25] == b"\x10" or head[25:26] in (b"\x04", b"\x06")
    return not head.startswith((b"\xff\xd8\xff", b"GIF8", b"BM"))


def read_values(source: ImageSource, preprocessing: Preprocessing | None = None) -> StoredValues | None:
    """Return the stored values of a path, bytes or a binary file; None without 16 bits and alpha, or if unreadable.

    `preprocessing`: which channels and pages of a stack are looked at.
    """
    if isinstance(source, np.ndarray | Image.Image):
        return None
    try:
        with reading(source) as stream:
            if preprocessing is not None and preprocessing.chooses and is_tiff(stream.read(4)):
                return _read_stack(stream, preprocessing)
            return _read_stream(stream)
    except ImageReadError:
        return None


def _read_stack(stream: BinaryIO, preprocessing: Preprocessing) -> StoredValues | None:
    with opened_stack(stream, preprocessing, MAX_PIXELS) as opened:
        if opened is None:
            return _read_stream(stream)
        is_deep = opened.stack.layout.bits == 16
        return StoredValues(opened.brightest(), is_gray=True, alpha="none") if is_deep else None


def _read_stream(stream: BinaryIO) -> StoredValues | None:
    stream.seek(0)
    if not has_hidden_values(stream.read(HEAD_BYTES)):
        return None
    with open_header(stream) as image:
        check_tiff(image)
        check_frames(image)
        is_gray = image.mode in GRAY16_MODES or (image.mode == "I" and image.format == "PPM")
        is_deep, has_alpha = is_deep_color(image), image.mode in ("LA", "La", "RGBA", "RGBa")
        if not (is_gray or is_deep or has_alpha):
            return None
        image.load()
        brightest = None
        if is_gray or is_deep:
            values = np.asarray(image if is_gray or not has_alpha else image.convert("RGB"))
            brightest = int(values.max()) if is_gray else 256 * int(values.max()) + 255
        return StoredValues(brightest, is_gray, _alpha(image) if has_alpha else "none")


def _alpha(image: Image.Image) -> Alpha:
    values = np.asarray(image.getchannel(len(image.getbands()) - 1))
    if not values.any():
        return "invisible"
    return "varies" if ((values > 0) & (values < 255)).mean() > _MEASURED else "plain"


def low_limit(bit_depth_max: int) -> int:
    """Return the value up to which a whole set of images suggests a camera of fewer bits; 0 if there is none."""
    return max((one for one in CAMERA_MAXIMA if 4 * one <= bit_depth_max), default=0)


def describe_dark(brightest: Sequence[int], bit_depth_max: int) -> str:
    """Say how dark images become whose brightest values are given."""
    top = max(brightest)
    return (
        f"the brightest value of {len(brightest)} 16-bit images is {top} of {bit_depth_max}: "
        f"they become dark, at most {top * 256 // (bit_depth_max + 1)} of 255"
    )


def find_dark(
    sources: Iterable[ImageSource], bit_depth_max: int, preprocessing: Preprocessing | None = None
) -> str | None:
    """Return a warning if the first `MIN_IMAGES` 16-bit images are all far below `bit_depth_max`.

    Looks at few images, and at one if it is bright.
    """
    limit, found = low_limit(bit_depth_max), []
    for source in islice(sources, _FIRST_IMAGES if limit else 0):
        values = read_values(source, preprocessing)
        if values is None or values.brightest is None:
            continue
        if values.brightest > limit:
            return None
        found.append(values.brightest)
        if len(found) == MIN_IMAGES:
            cure = f"train with bit_depth_max={camera_maximum(found)}, or rescale the images to the full range"
            return f"{describe_dark(found, bit_depth_max)}; if the camera has fewer bits, {cure}"
    return None


def camera_maximum(brightest: Sequence[int]) -> int:
    """Return the largest value of the camera that images come from whose brightest values are given, all low."""
    return next(one for one in CAMERA_MAXIMA if max(brightest) <= one)
