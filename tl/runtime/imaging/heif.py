"""Decode HEIC photos with pi-heif, if it is installed, or raise `ImageReadError`.

The only file that imports pi-heif; Pillow's registry of formats, which belongs to the host program, is not touched.
libheif turns and mirrors by the file's own properties, so the EXIF orientation, which repeats them, is not applied.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.imaging.heif_boxes import check_boxes
from tl.runtime.imaging.signatures import is_heif

_MODES = ("L", "LA", "RGB", "RGBA", "RGBa")
# Tiles of photos are 512 pixels wide, the smallest that HEVC encodes 8.
_HOLE = 32


def can_decode_heif(head: bytes) -> bool:
    """Whether a file begins as HEIC or HEIF and pi-heif is installed."""
    return is_heif(head) and find_spec("pi_heif") is not None


def open_heif(data: bytes, max_pixels: int) -> Image.Image:
    """Return the primary image of a HEIC file, upright, with 8 bits. Raises `ImageReadError`.

    Images of 10 and 12 bits are reduced by libheif.
    """
    import pi_heif

    check_boxes(data)
    try:
        opened = pi_heif.open_heif(data, convert_hdr_to_8bit=True)
        if "sequence" in opened.mimetype or len(opened) != 1 or not opened.info.get("primary"):
            raise ImageReadError("", "a HEIC file of several images: save the one to use as an image of its own")
        width, height = opened.size
        if width * height > max_pixels:
            found = f"{width}x{height}"
            raise ImageReadError("", f"declares {found} pixels, but the limit is {max_pixels / 1e6:.0f} million")
        if opened.mode not in _MODES:
            raise ImageReadError("", f"a HEIC image of mode {opened.mode} cannot be read: save it with 8 bits")
        mode = "RGBa" if opened.premultiplied_alpha and opened.mode == "RGBA" else opened.mode
        image = Image.frombytes(mode, opened.size, bytes(opened.data), "raw", mode, opened.stride)
    except (ValueError, EOFError, SyntaxError, RuntimeError) as error:  # as pi-heif documents
        raise ImageReadError("", f"damaged HEIC ({' '.join(str(error).split())[:200]})") from error
    if image.mode != "L" and has_hole(np.asarray(image)):
        raise ImageReadError("", "damaged HEIC (a tile is missing)")
    return image


def read_heif_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) of the upright image, read from the header. Raises `ImageReadError`."""
    import pi_heif

    try:
        width, height = pi_heif.open_heif(data).size
    except (ValueError, EOFError, SyntaxError, RuntimeError, IndexError) as error:
        raise ImageReadError("", f"damaged HEIC ({' '.join(str(error).split())[:200]})") from error
    return height, width


def has_hole(image: NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, C) has a block of 32 x 32 pixels that was never decoded.

    libheif 1.21 and later leaves out tiles that it cannot decode and says nothing. Their planes stay 0, which in RGB is
    one green without red and blue, a color that no camera records.

    Source: libheif pull request 1616.
    """
    red, green, blue = image[:, :, 0], image[:, :, 1], image[:, :, 2]
    height, width = min(_HOLE, image.shape[0]), min(_HOLE, image.shape[1])
    # A hole of a whole tile contains a block that begins at a multiple of 32.
    rows, columns = image.shape[0] // height * height, image.shape[1] // width * width
    is_empty = ((red == 0) & (blue == 0) & (green >= 64))[:rows, :columns]
    blocks = is_empty.reshape(rows // height, height, columns // width, width).all(axis=(1, 3))
    corners = zip(*np.nonzero(blocks), strict=True)
    return any(_is_constant(green[y * height : (y + 1) * height, x * width : (x + 1) * width]) for y, x in corners)


def _is_constant(values: NDArray[np.uint8]) -> bool:
    return bool(values.min() == values.max())
