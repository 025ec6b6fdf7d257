"""Convert a `PIL.Image.Image` to a source that `decode` reads: the content of its file, or the pixels it has by now.

The only file that knows what a host program may have done to an image before it is predicted.
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, TiffImagePlugin

from tl.errors import ImageReadError

PlainSource = str | os.PathLike[str] | bytes | BinaryIO | NDArray[np.uint8]

_TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT, _TIFF_SIGNED = 262, 339, 2
# Modes that PNG stores, of those that need the decoder's rules for alpha, palettes and 16 bits.
_PNG_MODES = {"LA": "LA", "La": "LA", "PA": "RGBA", "P": "P", "RGBA": "RGBA", "RGBa": "RGBA", "L": "L", "1": "1"}


def plain_source(source: PlainSource | Image.Image) -> PlainSource:
    """Return other sources unchanged; for a Pillow image its file, if it is open and untouched, else its pixels.

    Pixels: bytes of an image file, or a uint8 (H, W, 3) RGB array, upright by the image's EXIF orientation. Raises
    `ImageReadError`.
    """
    if not isinstance(source, Image.Image):
        return source
    try:
        return _file_content(source) or _pixels(source)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageReadError("", f"damaged image ({' '.join(str(error).split())[:200]})") from error


def _file_content(image: Image.Image) -> bytes | None:
    """Return the file that an image would be loaded from; None if it was loaded, made, or moved to another frame."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or image.tell() != 0:
        return None
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.decoderconfig:  # scaled by `draft`
        return None
    stream = image.fp
    if stream is None or stream.closed:
        return None
    place = stream.tell()
    stream.seek(0)
    content: bytes = stream.read()
    stream.seek(place)
    return content


def _pixels(image: Image.Image) -> bytes | NDArray[np.uint8]:
    image.load()
    _check_tiff(image)
    image = _upright(image)
    if image.mode.startswith("I;16"):
        return _png(Image.fromarray(np.asarray(image).astype(np.uint16)), image.info.get("transparency"))
    if image.mode in ("I", "F"):
        raise ImageReadError("", "32-bit pixels have no standard range: save the image with 8 or 16 bits per channel")
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode == "RGB":
        return _png(image, image.info["transparency"])
    if image.mode in _PNG_MODES:
        return _png(image.convert(_PNG_MODES[image.mode]), image.info.get("transparency"))
    return np.asarray(image.convert("RGB"))


def _check_tiff(image: Image.Image) -> None:
    """Reject loaded TIFFs whose values Pillow misreads; from its file, such an image is read or refused by `decode`."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.mode.startswith("I;16"):
        return
    tags = image.tag_v2
    if tags.get(_TIFF_PHOTOMETRIC) == 0 or _TIFF_SIGNED in tags.get(_TIFF_SAMPLE_FORMAT, ()):
        raise ImageReadError("", "a loaded 16-bit TIFF of inverted or signed values: give the file instead")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # no orientation in an unreadable EXIF block; viewers show such images as stored
        return image


def _png(image: Image.Image, transparency: object) -> bytes:
    stream = BytesIO()
    options = {} if transparency is None else {"transparency": transparency}
    image.save(stream, "PNG", compress_level=1, **options)
    return stream.getvalue()
