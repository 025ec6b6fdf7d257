"""Image files for tests: encoded by Pillow, or chunk by chunk where Pillow cannot write them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.runtime.imaging.preprocessing import build_preprocessing

RECIPE = build_preprocessing((8, 8))

# How to store an upright image so that EXIF orientation o turns it upright again. Source: EXIF 2.32, tag 0x0112; 6
# means that the stored left column is the visual top, so it was turned left (90).
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def blocks(height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """Squares of 16 px, each of a different gray: JPEG stores them without loss, in any order."""
    rows, columns = height // 16, width // 16
    grays = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) * 32 + 24
    return np.repeat(grays.repeat(16, 0).repeat(16, 1)[:, :, None], 3, axis=2)


def noise(height: int = 64, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels, which no codec can compress to a few bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """An image file as bytes."""
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = BytesIO()
    opened.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_turned(upright: NDArray[np.uint8], orientation: int, kind: str, **options: Any) -> bytes:
    """A file with rotated pixels and the EXIF orientation that rotates them back."""
    image = Image.fromarray(upright)
    turn = _STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image if turn is None else image.transpose(turn), kind, exif=exif.tobytes(), **options)


def png(
    width: int, height: int, *, bits: int, color: int, rows: bytes = b"", chunks: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG from its parts. `color`: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA. `rows`: packed big-endian pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height)) if rows else b""
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def with_tiff_value(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a short tag of its first page, which it must have."""
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        place = at + 2 + 12 * entry
        if struct.unpack_from("<H", data, place)[0] == tag:
            return data[: place + 8] + struct.pack("<H", value) + data[place + 10 :]
    raise ValueError(f"no tag {tag}")


def zero_middle(data: bytes, start: float = 0.5, stop: float = 0.6) -> bytes:
    """The same file with a range of zeros, as left by a failing disk."""
    first, last = int(len(data) * start), int(len(data) * stop)
    return data[:first] + bytes(last - first) + data[last:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
