"""Refuse images of which a decoder would give only a part, or other values than stored: pages, frames, channels, depth.

Reads headers and tags of images that Pillow has opened, never pixels.
"""

from __future__ import annotations

from typing import Any, BinaryIO
from zlib import crc32

from PIL import Image, ImageFile, TiffImagePlugin

from tl.errors import ImageReadError
from tl.runtime.imaging.preprocessing import Preprocessing, is_number
from tl.runtime.imaging.signatures import HEAD_BYTES, TAIL_BYTES, foreign_fault

GRAY16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# TIFF 6.0 and DNG 1.4 tags, and bits of the kind of page.
TIFF_PHOTOMETRIC = 262
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
_TIFF_KIND_OF_PAGE, _TIFF_SAMPLE_FORMAT, TIFF_DNG_VERSION = 254, 339, 50706
_TIFF_BITS, _TIFF_DESCRIPTION, _TIFF_SAMPLES, _TIFF_EXTRA = 258, 270, 277, 338
TIFF_PREVIEW, TIFF_MASK, _TIFF_SIGNED = 1, 4, 2
_TIFF_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # channels by photometric interpretation
_TIFF_ALPHA = (1, 2)  # premultiplied or not; 0 says nothing
TIFF_RAW_COLORS = (32803, 34892)  # a color filter array, and DNG's linear raw
RAW_PHOTO = "a raw camera photo, whose pixels cannot be read: develop it to JPEG or TIFF"
# The cure for a file of several channels or pages, in all reasons that name it.
CHOOSE = "train with channels or project set"
_CHOOSE = f"or {CHOOSE}, which choose them"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_signature(stream: BinaryIO) -> None:
    """Raise `ImageReadError` for a file of a format that cannot be read, named by its first bytes."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if fault := foreign_fault(head):
        raise ImageReadError("", fault)
    stream.seek(0)


def unidentified_fault(stream: BinaryIO, formats: tuple[str, ...]) -> str:
    """Return the reason for a file that no decoder recognizes."""
    end = stream.seek(0, 2)
    stream.seek(max(0, end - TAIL_BYTES))
    if fault := foreign_fault(b"", stream.read(TAIL_BYTES)):
        return fault
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if head.startswith(TIFF_STARTS) and (fault := _tiff_fault(stream, head)):
        return fault
    return f"not an image of a supported format ({', '.join(formats)}), or its header is damaged"


def _tiff_tags(stream: BinaryIO, head: bytes) -> dict[int, Any]:
    """Return the tags of the first page of a TIFF; none if they are damaged."""
    try:
        is_big = head[2:4] in (b"+\0", b"\0+")
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if is_big else 8])
        stream.seek(tags.next)
        tags.load(stream)
        return dict(tags)
    except Exception:  # on damaged files, Pillow raises almost any type
        return {}


def _tiff_fault(stream: BinaryIO, head: bytes) -> str | None:
    """Return which kind of TIFF Pillow does not read; None if its tags cannot be read either."""
    tags = _tiff_tags(stream, head)
    if not tags:
        return None
    if tags.get(TIFF_PHOTOMETRIC) in TIFF_RAW_COLORS:
        return RAW_PHOTO
    samples, bits = tags.get(_TIFF_SAMPLES, 1), tags.get(_TIFF_BITS, (1,))
    kind = f"{samples} channels of {'/'.join(sorted({str(one) for one in bits}))} bits"
    return (
        f"a TIFF of {kind}, which cannot be read: save the channels to use as gray or RGB with 8 or 16 bits, {_CHOOSE}"
    )


def read_tiff_size(stream: BinaryIO, head: bytes) -> tuple[tuple[int, int], int] | None:
    """Return (height, width) as stored and the orientation of a TIFF by its tags alone; None for other files."""
    tags = _tiff_tags(stream, head) if head.startswith(TIFF_STARTS) else {}
    width, height, orientation = (tags.get(tag, 0) for tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION))
    if not all(isinstance(side, int) and side > 0 for side in (width, height)):
        return None
    return (height, width), orientation if orientation in range(1, 9) else 1


def check_frames(image: Image.Image) -> None:
    """Raise `ImageReadError` for an animation. An MPO is none: previews follow its first image, the photo."""
    if image.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False):
        # Counting the frames of a GIF would read all of it.
        frames = "several frames" if image.format == "GIF" else f"{getattr(image, 'n_frames', 2)} frames"
        raise ImageReadError("", f"an animation of {frames}: save the frame to use as an image of its own")


def check_single(image: Image.Image, stream: BinaryIO) -> None:
    """Raise `ImageReadError` for a PNM file of several images. Source: netpbm's pgm(5), "multiple images"."""
    if image.format != "PPM" or not isinstance(image, ImageFile.ImageFile) or image.tile[0][0] != "raw":
        return
    row = {"1": (image.width + 7) // 8, "L": image.width, "RGB": 3 * image.width}.get(image.mode, 2 * image.width)
    place = stream.tell()
    stream.seek(image.tile[0][2] + row * image.height)
    following = stream.read(2)
    stream.seek(place)
    if len(following) == 2 and following[:1] == b"P" and following[1:].isdigit():
        raise ImageReadError("", "a PNM file of several images: save the one to use as an image of its own")


def check_single_page(preprocessing: Preprocessing) -> None:
    """Raise `ImageReadError` if another page than the first is asked of a file of a format without pages."""
    project = preprocessing.project
    if project is not None and is_number(project) and int(project) > 0:
        raise ImageReadError("", f"page {project} is not in this file, which has one page")


def check_checksums(stream: BinaryIO) -> None:
    """Raise `ImageReadError` for a PNG whose pixel data is damaged: Pillow reads no checksum after the last pixel.

    Source: PNG specification, "Chunk layout" and "CRC algorithm".
    """
    place = stream.tell()
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind != b"IDAT":
            stream.seek(length + 4, 1)
        else:
            data, checksum = stream.read(length), stream.read(4)
            if len(data) == length and checksum != crc32(data, crc32(kind)).to_bytes(4, "big"):
                raise ImageReadError("", "damaged PNG (a checksum of its pixels is wrong)")
        if kind == b"IEND":
            break
    stream.seek(place)


def check_depth(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Reject bit depths for which Pillow discards data that the preprocessing needs while loading."""
    stored = str(image.tile) if isinstance(image, ImageFile.ImageFile) else ""
    deep_color = is_deep_color(image)
    if deep_color and preprocessing.bit_depth_max != 65535:  # Pillow keeps the high byte (v >> 8)
        raise ImageReadError(
            "", f"16-bit color with bit_depth_max {preprocessing.bit_depth_max}: only grayscale images can be rescaled"
        )
    if deep_color and "transparency" in image.info:  # the 16-bit color is lost
        raise ImageReadError("", "16-bit color with one transparent color: save the image with an alpha channel")
    if image.format == "PPM" and "'ppm" in stored:  # Pillow stretches these values
        raise ImageReadError("", "a PNM file with an unsupported maximum value; expected 255, or 65535 for grayscale")


def is_deep_color(image: Image.Image) -> bool:
    """Return whether an opened image stores color with 16 bits, of which Pillow keeps the high byte."""
    return isinstance(image, ImageFile.ImageFile) and ";16" in str(image.tile) and image.mode not in GRAY16_MODES


def check_tiff(image: Image.Image) -> None:
    """Reject TIFFs whose first page is not the whole picture, or has values that Pillow misreads."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    if TIFF_DNG_VERSION in tags or tags.get(_TIFF_KIND_OF_PAGE, 0) & TIFF_PREVIEW:
        raise ImageReadError("", RAW_PHOTO)
    if str(tags.get(_TIFF_DESCRIPTION, "")).startswith("Aperio"):
        raise ImageReadError("", "an Aperio SVS slide: export regions of it as TIFF or PNG with QuPath or ImageScope")
    if _TIFF_SIGNED in tags.get(_TIFF_SAMPLE_FORMAT, ()) and image.mode not in ("I", "F"):
        raise ImageReadError("", "signed pixel values have no standard range: save the image with unsigned values")
    _check_channels(tags)
    pages = 1
    for number in range(1, image.n_frames):
        image.seek(number)
        pages += not image.tag_v2.get(_TIFF_KIND_OF_PAGE, 0) & (TIFF_PREVIEW | TIFF_MASK)
    image.seek(0)
    if pages > 1:
        raise ImageReadError(
            "", f"a TIFF of {pages} pages: save the page or channels to use as an image of their own, {_CHOOSE}"
        )


def _check_channels(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Raise `ImageReadError` for more channels than gray, color and alpha. Source: TIFF 6.0, ExtraSamples."""
    colors = _TIFF_COLORS.get(tags.get(TIFF_PHOTOMETRIC, -1))
    extra = 0 if colors is None else tags.get(_TIFF_SAMPLES, 1) - colors
    meanings = tags.get(_TIFF_EXTRA, ())
    if extra <= 0 or (extra == 1 and len(meanings) == 1 and meanings[0] in _TIFF_ALPHA):
        return
    raise ImageReadError(
        "",
        f"a TIFF of {colors} color channels and {extra} more of unspecified meaning: save it without them, or as RGBA "
        f"if the last is transparency; if the channels are measurements, save those to use as gray or RGB, {_CHOOSE}",
    )
