"""Check what a HEIC file stores, before libheif decodes it: the file is complete, and so is every coded image in it.

libheif conceals damage: it leaves out tiles that it cannot decode, and decodes zeros to arbitrary pixels.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from tl.errors import ImageReadError

_CONTAINERS = {b"meta": 12, b"iprp": 8, b"ipco": 8}
# Never within a coded unit, where a byte 3 is inserted. Source: ITU-T H.265, 7.4.2.2, "emulation prevention".
_IMPOSSIBLE = re.compile(rb"\0\0[\0\1\2]")


def check_boxes(data: bytes) -> None:
    """Raise `ImageReadError` for a truncated file, and for coded images with missing or zeroed data.

    Source: ISO 14496-12, "Object structure" and "The item location box"; ISO 14496-15 (units with lengths).
    """
    end = 0
    for _, _, end in _boxes(data, 0, len(data)):
        if end > len(data):
            raise ImageReadError("", "truncated HEIC (its end is missing)")
    if end != len(data):
        raise ImageReadError("", "truncated HEIC (its end is missing)")
    try:
        found = dict(_leaves(data, 0, len(data)))
        images = _items_of_kind(found[b"iinf"], b"hvc1")
        length_bytes = (found[b"hvcC"][21] & 3) + 1
        extents = [extent for item, extent in _extents(found[b"iloc"]) if item in images]
    except (struct.error, KeyError, IndexError):  # an unusual structure, which libheif may know
        return
    for start, size in extents:
        if start + size > len(data):
            raise ImageReadError("", "truncated HEIC (pixels are missing)")
        _check_units(data[start : start + size], length_bytes)


def _check_units(coded: bytes, length_bytes: int) -> None:
    place = 0
    while place < len(coded):
        start = place + length_bytes
        place = start + int.from_bytes(coded[place:start], "big")
        if place > len(coded) or place <= start or _IMPOSSIBLE.search(coded, start, place):
            raise ImageReadError("", "damaged HEIC (its pixels are overwritten or cut off)")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each box, whose header is 8 bytes, or 16 for a large one."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        elif size == 0:  # up to the end of the file
            size = end - start
        if size < 8:
            return
        yield kind, start, start + size
        start += size


def _leaves(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the boxes in `meta` and its properties."""
    for kind, first, last in _boxes(data, start, end):
        if kind in _CONTAINERS:
            yield from _leaves(data, first + _CONTAINERS[kind], last)
        elif kind in (b"iinf", b"iloc", b"hvcC"):
            yield kind, data[first + 8 : last]


def _items_of_kind(info: bytes, wanted: bytes) -> set[int]:
    """Return the numbers of items of a kind, from the content of `iinf`."""
    start = 6 if info[0] == 0 else 8
    items = set()
    for _, first, _ in _boxes(info, start, len(info)):
        wide = info[first + 8] == 3
        item, _, kind = struct.unpack_from(">IH4s" if wide else ">HH4s", info, first + 12)
        if kind == wanted:
            items.add(item)
    return items


def _extents(locations: bytes) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield (item, (start, size)) of data in the file itself, from the content of `iloc`."""
    version, sizes = locations[0], locations[4:6]
    offset_bytes, size_bytes, base_bytes = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_bytes = sizes[1] & 15 if version else 0
    place = 6

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(locations):
            raise IndexError("the box is too short")
        return int.from_bytes(locations[place - count : place], "big")

    for _ in range(take(4 if version == 2 else 2)):
        item, method = take(4 if version == 2 else 2), take(2) & 15 if version else 0
        take(2)
        base = take(base_bytes)
        for _ in range(take(2)):
            take(index_bytes)
            start, size = base + take(offset_bytes), take(size_bytes)
            if method == 0:
                yield item, (start, size)
