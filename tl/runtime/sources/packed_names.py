"""Hold millions of file names in little memory: in order, compressed in blocks of neighbors, which resemble each other.

Knows nothing of files. Measured by `benchmarks/listing.py`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

_BLOCK = 1024
_LEVEL = 1  # of zlib: a tenth of a microsecond per name; higher levels save little


class PackedNames(Sequence[str]):
    """A sequence of names that only grows. Names keep their bytes, and contain no NUL, as file names never do."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._blocks: list[bytes] = []
        self._last: list[str] = []  # of less than a block
        self._unpacked: tuple[int, list[str]] = (-1, [])  # the block that was read last, and its number
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._last.append(name)
        if len(self._last) == _BLOCK:
            self._blocks.append(zlib.compress(os.fsencode("\0".join(self._last)), _LEVEL))
            self._last = []

    def __len__(self) -> int:
        return len(self._blocks) * _BLOCK + len(self._last)

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from _unpack(block)
        yield from self._last

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(place)
        block, offset = divmod(place, _BLOCK)
        if block == len(self._blocks):
            return self._last[offset]
        number, names = self._unpacked
        if number != block:
            names = _unpack(self._blocks[block])
            self._unpacked = block, names
        return names[offset]


def _unpack(block: bytes) -> list[str]:
    return os.fsdecode(zlib.decompress(block)).split("\0")
