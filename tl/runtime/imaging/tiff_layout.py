"""Find the channels and planes of a TIFF: OME-TIFF, ImageJ hyperstacks, plain files of several pages.

The only file that imports tifffile, which reads the axes; `tiff_pages` reads the pixels. Decides nothing.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, BinaryIO
from xml.etree import ElementTree

import numpy as np

from tl.errors import ImageReadError
from tl.runtime.imaging.refusals import (
    RAW_PHOTO,
    TIFF_DNG_VERSION,
    TIFF_MASK,
    TIFF_PREVIEW,
    TIFF_RAW_COLORS,
    TIFF_STARTS,
)
from tl.runtime.imaging.tiff_pages import Pixels, check_pixels, read_contiguous, read_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tifffile import TiffFile, TiffPage, TiffPageSeries

# Far above any stack; the sum of this many 16-bit values fits 32 bits.
MAX_PAGES = 1 << 16
_MAX_TEXT = 32 << 20
# Kinds of files whose axes tifffile reads and that are tested here. "uniform" and "generic" are plain pages.
_KINDS = ("ome", "imagej", "shaped", "uniform", "generic")
_ORIENTATION = 274
_AXES = {"C": "channels", "Z": "z planes", "T": "time points", "Q": "pages", "I": "pages"}


@dataclass(frozen=True)
class Axis:
    """One axis of a file besides height and width. `letter`: C, Z, T, or another one for pages of unknown meaning."""

    letter: str
    size: int

    def __str__(self) -> str:
        return f"{self.size} {_AXES.get(self.letter, 'pages')}"


@dataclass(frozen=True)
class Layout:
    """What a TIFF contains: pages along `axes`, the last varying fastest, each (H, W, `samples`) of `bits` bits.

    `channel_names`: of the axis C, or none. `is_inverted`: 0 is white. `is_color`: samples are red, green, blue.
    `orientation`: as in EXIF.
    """

    axes: tuple[Axis, ...]
    image_hw: tuple[int, int]
    samples: int
    bits: int
    channel_names: tuple[str, ...]
    is_inverted: bool
    is_color: bool
    orientation: int


@dataclass(frozen=True)
class Pages:
    """The pages of an open file, in the order of `layout.axes`."""

    layout: Layout
    stream: BinaryIO
    series: TiffPageSeries

    def read(self, number: int) -> Pixels:
        """Return the values of a page, (H, W, S). Raises `ImageReadError`."""
        (height, width), samples = self.layout.image_hw, self.layout.samples
        if self.series.dataoffset is not None:
            shape = (samples, height, width) if self.series.keyframe.planarconfig == 2 else (height, width, samples)
            dtype = np.dtype(f"{self.series.keyframe.parent.byteorder}u{self.layout.bits // 8}")
            offset = self.series.dataoffset + number * prod(shape) * dtype.itemsize
            pixels = read_contiguous(self.stream, offset, shape, dtype)
            return np.moveaxis(pixels, 0, -1) if self.series.keyframe.planarconfig == 2 else pixels
        page = self.series.pages[number]
        if page is None:
            raise ImageReadError("", f"page {number} is missing in this TIFF")
        page = page.aspage()
        check_pixels(page)
        found = (page.imagelength, page.imagewidth, page.samplesperpixel, page.bitspersample)
        if found != (height, width, samples, self.layout.bits):
            raise ImageReadError("", f"page {number} of this TIFF differs in size or depth from the first one")
        return read_page(self.stream, page)


def is_tiff(head: bytes) -> bool:
    """Whether a file begins as a TIFF."""
    return head.startswith(TIFF_STARTS)


@contextmanager
def opened_pages(stream: BinaryIO, max_pixels: int) -> Iterator[Pages]:
    """Open a TIFF. Raises `ImageReadError` if it contains other than one image, stack or hyperstack.

    `max_pixels`: the most values of a page.
    """
    try:
        from tifffile import TiffFile
    except ImportError as error:
        cure = "install it with pip install 'tl-toolkit[tiff]'"
        raise ImageReadError("", f"choosing channels or pages of a TIFF requires tifffile: {cure}") from error
    _walk(stream)
    stream.seek(0)
    # Other files of the same data set are not read: what an image contains does not depend on its neighbors.
    with TiffFile(stream, _multifile=False) as tiff:
        series = _series(tiff, max_pixels)
        yield Pages(_layout(tiff, series), stream, series)


def _walk(stream: BinaryIO) -> None:
    """Raise `ImageReadError` unless the chain of pages is complete, without a loop and not too long.

    Source: TIFF 6.0, "Image File Header"; BigTIFF by Aperio.
    """
    stream.seek(0)
    head = stream.read(16)
    order, is_big = "<" if head.startswith(b"II") else ">", 43 in head[2:4]
    count_format, entry_bytes, offset_format, start = ("Q", 20, "Q", 8) if is_big else ("H", 12, "I", 4)
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + offset_format, head, start)
        while offset:
            if offset in seen:
                raise ImageReadError("", "damaged TIFF (its pages form a loop)")
            if len(seen) == MAX_PAGES:
                raise ImageReadError("", f"a TIFF of more than {MAX_PAGES} pages")
            seen.add(offset)
            stream.seek(offset)
            (count,) = struct.unpack(order + count_format, stream.read(struct.calcsize(count_format)))
            if count > 1 << 16:
                raise ImageReadError("", "damaged TIFF (a page has too many tags)")
            stream.seek(count * entry_bytes, 1)
            (offset,) = struct.unpack(order + offset_format, stream.read(struct.calcsize(offset_format)))
    except struct.error as error:
        raise ImageReadError("", f"truncated TIFF (page {len(seen)} is missing)") from error


def _series(tiff: TiffFile, max_pixels: int) -> TiffPageSeries:
    first = tiff.pages.first
    is_raw = first.photometric in TIFF_RAW_COLORS
    if is_raw or TIFF_DNG_VERSION in first.tags or first.subfiletype & TIFF_PREVIEW:
        raise ImageReadError("", RAW_PHOTO)
    if first.imagelength * first.imagewidth * first.samplesperpixel > max_pixels:
        found = f"{first.imagewidth}x{first.imagelength}x{first.samplesperpixel}"
        raise ImageReadError("", f"declares {found} values, but the limit is {max_pixels / 1e6:.0f} million: crop it")
    _read_ome(first.description)
    kept = [one for one in tiff.series if not one.keyframe.subfiletype & (TIFF_PREVIEW | TIFF_MASK)]
    if len(kept) > 1:
        raise ImageReadError("", f"a TIFF of {len(kept)} images: save the one to use as a file of its own")
    if not kept or kept[0].kind not in _KINDS:
        kind = kept[0].kind.upper() if kept else "unknown"
        raise ImageReadError("", f"channels or pages of a TIFF of kind {kind} cannot be read: export it as OME-TIFF")
    described = "ome" if tiff.is_ome else "imagej" if tiff.is_imagej else "shaped" if tiff.is_shaped else kept[0].kind
    if described != kept[0].kind:  # tifffile then takes the pages as they are, which may be the first one alone
        raise ImageReadError("", "truncated or damaged TIFF (it lacks pages that its description declares)")
    return kept[0]


def _read_ome(description: str) -> ElementTree.Element | None:
    """Return OME-XML, checked for numbers that would cost much memory to interpret; None for another description.

    Raises `ImageReadError`.
    """
    if "OME>" not in description and "<OME" not in description:
        return None
    fault = ImageReadError("", "damaged TIFF (its description is not OME-XML)")
    if len(description) > _MAX_TEXT or "<!ENTITY" in description or "<!DOCTYPE" in description:
        raise fault
    try:
        root = ElementTree.fromstring(description)
        planes = 0
        for element in root.iter():
            kind = element.tag.rpartition("}")[2]
            if kind == "Pixels":
                planes = max(planes, prod(int(element.get(f"Size{letter}", 1)) for letter in "CZT"))
            elif kind == "TiffData":
                planes += int(element.get("PlaneCount", 1))
                planes = max(planes, *(int(element.get(name, 0)) for name in ("IFD", "FirstC", "FirstZ", "FirstT")))
    except (ElementTree.ParseError, ValueError) as error:
        raise fault from error
    if planes > 2 * MAX_PAGES:
        raise ImageReadError("", f"declares {planes} planes, but the limit is {MAX_PAGES}")
    return root


def _layout(tiff: TiffFile, series: TiffPageSeries) -> Layout:
    page: TiffPage = series.keyframe.aspage()
    image_hw = (page.imagelength, page.imagewidth)
    found = [Axis(letter, size) for letter, size in zip(series.axes, series.shape, strict=True) if size > 1]
    leading = tuple(axis for axis in found if axis.letter not in "YXS")
    samples = prod(axis.size for axis in found if axis.letter == "S")
    if samples != page.samplesperpixel or prod(axis.size for axis in found if axis.letter in "YX") != prod(image_hw):
        # Bio-Formats declares the planes of a page as channels; then the axis C is inside of the page.
        *outer, last = leading or (Axis("C", 1),)
        if last != Axis("C", page.samplesperpixel) or samples != 1:
            raise ImageReadError("", "damaged TIFF (its pages do not fit its description)")
        leading, samples = tuple(outer), page.samplesperpixel
    count = prod(axis.size for axis in leading)
    if series.dataoffset is None and len(series.pages) != count:
        raise ImageReadError("", f"damaged TIFF (it declares {count} planes, but has {len(series.pages)})")
    return Layout(
        axes=leading,
        image_hw=image_hw,
        samples=samples,
        bits=page.bitspersample,
        channel_names=_channel_names(tiff),
        is_inverted=page.photometric == 0,
        is_color=page.photometric == 2 and samples == 3,
        orientation=int(page.tags.valueof(_ORIENTATION, 1)),
    )


def _channel_names(tiff: TiffFile) -> tuple[str, ...]:
    """Return the names of channels in OME-XML; none if one has no name."""
    root = _read_ome(tiff.pages.first.description) if tiff.is_ome else None
    pixels = (
        None if root is None else next((one for one in root.iter() if one.tag.rpartition("}")[2] == "Pixels"), None)
    )
    channels = [] if pixels is None else [one for one in pixels if one.tag.rpartition("}")[2] == "Channel"]
    names = tuple(" ".join(channel.get("Name", "").split()) for channel in channels)
    return names if all(names) else ()
