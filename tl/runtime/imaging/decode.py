"""Decode image files and bytes to upright uint8 (H, W, 3) RGB, or raise `ImageReadError` with the reason.

Where the preprocessing chooses more than 3 channels, images are (H, W, C). Handles formats, sources and orientation;
`colors` handles color, alpha and bit depth, `stacks` channels and planes. A truncated or corrupt image raises an error;
it is never returned in part. Input sizes are handled by `geometry`.
Thread-safe. With `refusals`, the only file that imports Pillow's openers; the only one that imports simplejpeg.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (  # importing a plugin registers its format; JPEG's opener also opens MPO
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from tl.errors import ImageReadError
from tl.runtime.imaging.colors import channel_array, rgb_array, scale_transparent_gray, select_bands
from tl.runtime.imaging.heif import can_decode_heif, open_heif, read_heif_size
from tl.runtime.imaging.orientation import exif_orientation, upright
from tl.runtime.imaging.pillow_images import PlainSource, plain_source
from tl.runtime.imaging.png_text import is_about_text, without_text
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.refusals import (
    check_checksums,
    check_depth,
    check_frames,
    check_signature,
    check_single,
    check_single_page,
    check_tiff,
    read_tiff_size,
    unidentified_fault,
)
from tl.runtime.imaging.signatures import HEAD_BYTES
from tl.runtime.imaging.stacks import opened_stack
from tl.runtime.imaging.tiff_layout import is_tiff

ImageSource = PlainSource | Image.Image

# Pillow supports more formats, but some openers start other programs (EPS, WMF) or guess (TGA has no signature).
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    TiffImagePlugin.TiffImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    WebPImagePlugin.WebPImageFile,
    AvifImagePlugin.AvifImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    PpmImagePlugin.PpmImageFile,
)
FORMATS = tuple(plugin.format for plugin in _PLUGINS)

# Pillow's default limit against decompression bombs. Stored here because Pillow's global belongs to the host program.
MAX_PIXELS = 178_956_970
MAX_JPEG_BYTES = 1 << 29

# Converting one such image needs up to 1.5 GB, so they are decoded one at a time.
_LARGE_PIXELS = 32_000_000
large_image_lock: AbstractContextManager[object] = threading.Lock()  # `decode_worker` uses one shared between processes


@dataclass(frozen=True)
class Decoded:
    """An upright image, at full size or scaled down during decoding.

    `image`: uint8 (h, w, 3) RGB, C-contiguous. `full_hw`: size of the full image. `box`: the area of `image` that the
    full image covers, (left, top, right, bottom) in pixels; scaled sizes are rounded up, so one row or column may
    extend beyond it. `eighths`: the scale 1..8, or None for formats without scaled decoding.
    """

    image: NDArray[np.uint8]
    full_hw: tuple[int, int]
    box: tuple[float, float, float, float]
    eighths: int | None


def whole(image: NDArray[np.uint8]) -> Decoded:
    """Wrap an array (H, W, 3) as an image decoded at full size."""
    height, width = image.shape[:2]
    return Decoded(image, (height, width), (0, 0, width, height), None)


def decode_image(source: ImageSource, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image at full size, ignoring `jpeg_scale`: uint8 (H, W, 3).

    Raises the same errors as `decode_scaled`.
    """
    return decode_scaled(source, preprocessing, lambda full_hw: 8).image


def decode_scaled(
    source: ImageSource, preprocessing: Preprocessing, eighths: Callable[[tuple[int, int]], int]
) -> Decoded:
    """Decode an image: upright by EXIF, alpha over white, 16-bit scaled by `bit_depth_max`.

    `source`: path, encoded bytes, seekable binary file, a Pillow image (see `plain_source`), or a uint8 (H, W, 3) RGB
    array (of the chosen channels, if there are more than 3), which is returned unchanged.
    `eighths`: maps (H, W) of the upright image to the scale, 1..8 eighths, at which a JPEG is decoded.
    Raises `ImageReadError` if the image cannot be read completely, TypeError or ValueError for an unsupported array.
    """
    is_pillow = isinstance(source, Image.Image)
    source = plain_source(source)
    if isinstance(source, np.ndarray) and is_pillow and preprocessing.channels is not None:
        return whole(select_bands(source, preprocessing.channels))
    if isinstance(source, np.ndarray):
        return whole(_check_array(source, preprocessing.num_channels))
    check_source(source)
    with reading(source) as stream:
        return _decode_stream(stream, preprocessing, eighths)


def check_source(source: ImageSource) -> None:
    """Raise TypeError for an unsupported type of source."""
    if not isinstance(source, bytes | str | os.PathLike | np.ndarray) and not hasattr(source, "seek"):
        raise TypeError(
            f"expected a path, bytes, a binary file, a Pillow image or an array, got {type(source).__name__}"
        )


def read_stream(source: BinaryIO) -> bytes:
    """Return the whole content of a seekable binary file, from its start. Raises `ImageReadError`."""
    with reading(source) as stream:
        stream.seek(0)
        return stream.read()


@contextmanager
def reading(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """Yield a source as a binary file; every error in the block is raised as `ImageReadError` with its name."""
    with _read_errors(source_name(source)):
        if isinstance(source, bytes):
            yield BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            with _open_regular(Path(source)) as stream:
                yield stream
        else:
            yield source


@contextmanager
def _read_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ImageReadError as error:
        raise ImageReadError(name, error.reason) from error
    except MemoryError as error:
        raise ImageReadError(name, "not enough memory to decode this image") from error
    except OSError as error:
        raise ImageReadError(name, _reason(error)) from error
    except Exception as error:  # on damaged files, Pillow raises almost any type (struct.error, IndexError ...)
        raise ImageReadError(name, f"damaged image ({_reason(error)})") from error


def read_size(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Return (height, width) of the upright image, read from its header. Raises `ImageReadError`."""
    if isinstance(source, bytes):
        with reading(source) as stream:
            stored_hw, orientation = _read_stored(stream)
    else:
        stored_hw, orientation = read_stored(source)
    return stored_hw if orientation < 5 else stored_hw[::-1]


def read_stored(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """Return (height, width) of the image as stored, and its EXIF orientation 1..8. Raises `ImageReadError`."""
    try:
        with _open_regular(Path(path)) as stream:
            return _read_stored(stream)
    except ImageReadError as error:
        raise ImageReadError(os.fspath(path), error.reason) from error
    except OSError as error:
        raise ImageReadError(os.fspath(path), _reason(error)) from error


def _read_stored(stream: BinaryIO) -> tuple[tuple[int, int], int]:
    head = _head(stream)
    if can_decode_heif(head):
        return read_heif_size(stream.read()), 1
    try:
        with open_header(stream) as image:
            orientation = exif_orientation(image)
            is_turned = orientation >= 5 and image.format == "TIFF"  # Pillow already swaps its size
            size = image.height, image.width
            return (size[::-1] if is_turned else size), orientation
    except ImageReadError:
        if found := read_tiff_size(stream, head):  # more channels than Pillow reads
            return found
        raise


def source_name(source: ImageSource) -> str:
    """Return the name of a source for messages and result rows: its path, or '' for data without one."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", "")
    return name if isinstance(name, str) else ""


def _check_array(image: NDArray[np.uint8], num_channels: int) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != num_channels or 0 in image.shape:
        kind = "(H, W, 3) RGB" if num_channels == 3 else f"(H, W, {num_channels})"
        raise ValueError(f"an image array must be uint8 {kind}, got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def _open_regular(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block forever
        raise ImageReadError("", "not a regular file")
    return path.open("rb")


def _decode_stream(
    stream: BinaryIO, preprocessing: Preprocessing, eighths: Callable[[tuple[int, int]], int]
) -> Decoded:
    try:
        return _decode_file(stream, preprocessing, eighths)
    except ValueError as error:
        if not is_about_text(error):
            raise
    return _decode_file(BytesIO(without_text(stream)), preprocessing, eighths)


def _decode_file(stream: BinaryIO, preprocessing: Preprocessing, eighths: Callable[[tuple[int, int]], int]) -> Decoded:
    num_bytes = stream.seek(0, os.SEEK_END)
    if num_bytes == 0:
        raise ImageReadError("", "empty file")
    stream.seek(0)
    if preprocessing.chooses and is_tiff(_head(stream)):
        check_signature(stream)
        with opened_stack(stream, preprocessing, MAX_PIXELS) as stack:
            if stack is not None:
                with _one_at_a_time(stack.num_values):
                    return whole(upright(stack.read(), stack.stack.layout.orientation))
    check_single_page(preprocessing)
    if can_decode_heif(_head(stream)):
        return _decode_heif(stream, num_bytes, preprocessing)
    with open_header(stream) as opened:
        return _decode_opened(opened, stream, num_bytes, preprocessing, eighths)


def _decode_heif(stream: BinaryIO, num_bytes: int, preprocessing: Preprocessing) -> Decoded:
    if num_bytes > MAX_JPEG_BYTES:
        raise ImageReadError("", f"a HEIC file larger than {MAX_JPEG_BYTES >> 20} MiB")
    with large_image_lock:  # its size is known when it is open, and libheif uses several threads
        opened = open_heif(stream.read(num_bytes), MAX_PIXELS)
        return whole((rgb_array if preprocessing.channels is None else channel_array)(opened, preprocessing))


def _head(stream: BinaryIO) -> bytes:
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    return head


def _decode_opened(
    opened: Image.Image,
    stream: BinaryIO,
    num_bytes: int,
    preprocessing: Preprocessing,
    eighths: Callable[[tuple[int, int]], int],
) -> Decoded:
    check_tiff(opened)
    check_frames(opened)
    check_single(opened, stream)
    if opened.format == "PNG":
        check_checksums(stream)
    pixels = opened.width * opened.height
    if pixels > MAX_PIXELS:
        raise ImageReadError("", _too_large(f"{opened.width}x{opened.height}"))
    if opened.format in ("JPEG", "MPO"):
        if num_bytes > MAX_JPEG_BYTES:
            raise ImageReadError("", f"a JPEG file larger than {MAX_JPEG_BYTES >> 20} MiB")
        stream.seek(0)
        # Do not pass the limit as the size: Python would allocate that much for every image.
        decoded = _decode_jpeg(stream.read(num_bytes), opened, eighths)
        if preprocessing.channels is None:
            return decoded
        bands = decoded.image[:, :, :1] if opened.mode == "L" else decoded.image
        return replace(decoded, image=select_bands(bands, preprocessing.channels))
    with _one_at_a_time(pixels):
        check_depth(opened, preprocessing)
        scale_transparent_gray(opened)
        opened.load()
        # Read the orientation after loading: Pillow rotates TIFFs while loading and then drops the tag.
        convert = rgb_array if preprocessing.channels is None else channel_array
        image, orientation = convert(opened, preprocessing), exif_orientation(opened)
        return whole(upright(image, orientation))


def _one_at_a_time(pixels: int) -> AbstractContextManager[object]:
    return large_image_lock if pixels > _LARGE_PIXELS else nullcontext()


def open_header(stream: BinaryIO) -> Image.Image:
    """Open an image of a supported format without reading its pixels. Raises `ImageReadError`."""
    check_signature(stream)
    try:
        return Image.open(stream, formats=FORMATS)
    except ValueError as error:
        if not is_about_text(error):
            raise
        return Image.open(BytesIO(without_text(stream)), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageReadError("", _too_large("more")) from error
    except UnidentifiedImageError as error:
        raise ImageReadError("", unidentified_fault(stream, FORMATS)) from error


def _too_large(found: str) -> str:
    return f"declares {found} pixels, but the limit is {MAX_PIXELS / 1e6:.0f} million: crop or shrink the image"


def _decode_jpeg(data: bytes, image: Image.Image, eighths: Callable[[tuple[int, int]], int]) -> Decoded:
    orientation, stored_hw = exif_orientation(image), (image.height, image.width)
    # Pillow silently fills corrupt scans with gray; libjpeg-turbo in strict mode rejects them.
    try:
        if image.mode == "CMYK":
            with _one_at_a_time(image.height * image.width):
                simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)
                return whole(upright(np.asarray(image.convert("RGB")), orientation))
        scale = eighths(stored_hw if orientation < 5 else stored_hw[::-1])
        height, width = (math.ceil(size * scale / 8) for size in stored_hw)
        with _one_at_a_time(height * width):
            stored = np.asarray(
                simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, min_height=height, min_width=width)
            )
            return _upright_scaled(stored, stored_hw, scale, orientation)
    except ValueError as error:
        raise ImageReadError(
            "", f"damaged JPEG ({_reason(error)}); saving it again in an image editor may help"
        ) from error


def _upright_scaled(stored: NDArray[np.uint8], stored_hw: tuple[int, int], eighths: int, orientation: int) -> Decoded:
    """Rotate and flip a scaled image, together with the row or column that extends beyond its size."""
    (height, width), (shown_h, shown_w) = stored.shape[:2], (size * eighths / 8 for size in stored_hw)
    full_hw = stored_hw
    if orientation >= 5:
        height, width, shown_h, shown_w, full_hw = width, height, shown_w, shown_h, stored_hw[::-1]
    top = height - shown_h if orientation in (3, 4, 7, 8) else 0.0
    left = width - shown_w if orientation in (2, 3, 6, 7) else 0.0
    box = (left, top, left + shown_w, top + shown_h)
    return Decoded(upright(stored, orientation), full_hw, box, eighths)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
