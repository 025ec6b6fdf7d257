"""Protobuf's wire format, read from a file field by field: where each field of a message begins and ends.

Knows tags, varints and lengths, and bounds the work. Does not know which messages there are. Payloads are read only
when asked for, so a file of any size costs one small window of memory for each level of nesting. No memory map: a file
that another program cuts short while it is mapped kills the process.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

VARINT, FIXED64, LEN, FIXED32 = 0, 1, 2, 5

_WINDOW_BYTES = 1 << 16
_MARGIN = bytes(20)  # a tag and a varint at their longest: zeros behind the end of the file save a check at every byte
_LARGEST_TAG = (1 << 32) - 1


class WireError(ValueError):
    """The bytes are no protobuf message, or a larger one than allowed. `model_file` translates it."""


class Wire:
    """The messages of an open file. `max_fields` bounds the fields of all of them together."""

    def __init__(self, file: BinaryIO, max_fields: int) -> None:
        self._file = file
        self._max_fields = max_fields
        self._budget = iter(range(max_fields))  # shared by all messages: each takes one a field and one for its end
        self._data, self._base = b"", 0

    def fields(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The fields of the message in bytes [begin, end), in order: tag (`number << 3 | kind`), start, stop.

        Start and stop bound the payload; of a varint, both are its value, unsigned.
        Raises `WireError` for what some parser refuses: groups, field 0, overlong varints, fields past `end`.
        """
        if begin == end:
            return
        data, base = self._window(begin)
        at, safe = begin - base, len(data) - len(_MARGIN)  # `at` counts from `base`, for speed
        for _ in self._budget:
            if at > safe:
                data, base = self._window(base + at)
                ...
