"""Read the pixels of one page of a TIFF as stored, or raise `ImageReadError`: nothing is cut off, filled in or scaled.

Knows strips, tiles, compression and byte order; not which pages belong together. `tiff_layout` finds the pages.
"""

from __future__ import annotations

import lzma
import math
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tl.errors import ImageReadError

if TYPE_CHECKING:
    from tifffile import TiffPage

Pixels = NDArray[np.unsignedinteger[Any]]
Depth = np.dtype[np.unsignedinteger[Any]]

# TIFF 6.0 and Adobe's supplements: values of the tag Compression.
_NONE, _LZMA = 1, 34925
_DEFLATE = (8, 32946)
_NAMES = {5: "LZW", 6: "JPEG", 7: "JPEG", 32773: "PackBits", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
_NAMES |= {50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 34887: "LERC", 2: "CCITT", 3: "CCITT", 4: "CCITT"}
_WHITE_IS_ZERO, _HORIZONTAL = 0, 2


def check_pixels(page: TiffPage) -> None:
    """Raise `ImageReadError` unless a page has unsigned gray or color values of 8 or 16 bits."""
    if page.sampleformat == 2:
        raise ImageReadError("", "signed pixel values have no standard range: save the image with unsigned values")
    if page.sampleformat == 3:
        found = f"pixels of {page.bitspersample}-bit floating point have no standard range"
        raise ImageReadError("", f"{found}: save the image with 8 or 16 bits per channel")
    if page.dtype is None or page.sampleformat != 1 or page.bitspersample not in (8, 16):
        found = f"pixels of {page.bitspersample} bits"
        raise ImageReadError("", f"{found} cannot be read: save the image with 8 or 16 bits per channel")
    if page.photometric not in (0, 1, 2):
        kind = getattr(page.photometric, "name", page.photometric)
        raise ImageReadError("", f"channels of a TIFF with {kind} colors cannot be chosen: save it as gray or RGB")
    if page.imagedepth != 1 or page.fillorder != 1:
        raise ImageReadError("", "a TIFF of volumes or reversed bits cannot be read: save each plane as a page")


def read_contiguous(stream: BinaryIO, offset: int, shape: tuple[int, int, int], dtype: Depth) -> Pixels:
    """Return an uncompressed page of (H, W, S) values that begins at `offset`, in native byte order."""
    return _native(_bytes_at(stream, offset, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def read_page(stream: BinaryIO, page: TiffPage) -> Pixels:
    """Return the values of a page, uint8 or uint16 (H, W, S) in native byte order. Raises `ImageReadError`."""
    if page.compression not in (_NONE, _LZMA, *_DEFLATE):
        return _read_by_pillow(stream, page)
    if page.predictor not in (1, _HORIZONTAL):
        raise ImageReadError("", f"a TIFF with predictor {int(page.predictor)} cannot be read: {_SAVE}")
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    is_planar = page.planarconfig == 2 and samples > 1
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    if min(rows, columns, height, width) < 1:
        raise ImageReadError("", "damaged TIFF (a size is 0)")
    down, across, planes = -(-height // rows), -(-width // columns), samples if is_planar else 1
    if not len(page.dataoffsets) == len(page.databytecounts) == down * across * planes:
        raise ImageReadError("", "damaged TIFF (the number of its strips or tiles does not fit its size)")
    inside = 1 if is_planar else samples
    pixels = np.empty((height, width, samples), np.uint8 if page.bitspersample == 8 else np.uint16)
    for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        plane, place = divmod(number, down * across)
        top, left = place // across * rows, place % across * columns
        shown = min(rows, height - top)
        stored = rows if page.is_tiled else shown
        data = _unpacked(stream, page, offset, count, (stored, rows), columns * inside * pixels.itemsize)
        part = _native(data, np.dtype(f"{page.parent.byteorder}u{pixels.itemsize}")).reshape(stored, columns, inside)
        if page.predictor == _HORIZONTAL:
            part = np.cumsum(part, axis=1, dtype=part.dtype)
        channels = slice(plane, plane + 1) if is_planar else slice(None)
        pixels[top : top + shown, left : left + columns, channels] = part[:shown, : width - left]
    return pixels


_SAVE = "save it with Deflate or without compression"


def _native(data: bytes, dtype: Depth) -> Pixels:
    values: Pixels = np.frombuffer(data, dtype)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _bytes_at(stream: BinaryIO, offset: int, count: int) -> bytes:
    if offset <= 0 or count <= 0 or offset + count > stream.seek(0, 2):  # before memory is reserved for them
        raise ImageReadError("", "truncated TIFF (pixels are missing)")
    stream.seek(offset)
    data = stream.read(count)
    if len(data) < count:
        raise ImageReadError("", "truncated TIFF (pixels are missing)")
    return data


def _unpacked(
    stream: BinaryIO, page: TiffPage, offset: int, count: int, rows: tuple[int, int], row_bytes: int
) -> bytes:
    """Return `rows[0]` decompressed rows of a strip or tile, which may hold up to `rows[1]`."""
    needed, most = (number * row_bytes for number in rows)
    if page.compression == _NONE:
        return _bytes_at(stream, offset, max(count, needed))[:needed]
    packed = _bytes_at(stream, offset, count)
    try:
        # One byte more than can be right, so that the checksum at the end is read, and no more: it may be a bomb.
        if page.compression == _LZMA:
            unpacker = lzma.LZMADecompressor()
            data, is_ended = unpacker.decompress(packed, most + 1), unpacker.eof
        else:
            inflater = zlib.decompressobj()
            data, is_ended = inflater.decompress(packed, most + 1), inflater.eof
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ImageReadError("", f"damaged TIFF ({error})") from error
    if len(data) < needed or not is_ended:
        raise ImageReadError("", "damaged TIFF (a strip or tile does not have its declared size)")
    return data[:needed]


def _opened_page(stream: BinaryIO, number: int, refusal: ImageReadError) -> Image.Image:
    try:
        image = Image.open(stream, formats=["TIFF"])
        image.seek(number)
    except (UnidentifiedImageError, SyntaxError, KeyError, EOFError) as error:
        raise refusal from error
    return image


def _read_by_pillow(stream: BinaryIO, page: TiffPage) -> Pixels:
    name = _NAMES.get(int(page.compression), f"scheme {int(page.compression)}")
    refusal = ImageReadError("", f"channels or pages of a TIFF compressed with {name} cannot be read: {_SAVE}")
    if not isinstance(page.index, int) or page.planarconfig != 1:
        raise refusal
    with _opened_page(stream, page.index, refusal) as image:
        if image.mode not in ("L", "RGB", "I;16", "I;16L", "I;16B", "I;16N"):
            raise refusal
        image.load()
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
    expected = (page.imagelength, page.imagewidth, page.samplesperpixel)
    if pixels.shape != expected or 8 * pixels.itemsize != page.bitspersample:
        raise refusal
    if page.photometric == _WHITE_IS_ZERO and pixels.itemsize == 1:
        pixels = 255 - pixels  # as stored: Pillow inverts 8 bits, but not 16
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
