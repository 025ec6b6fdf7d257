"""Corrupt files with hypothesis, which also shrinks failures. TL_FUZZ_EXAMPLES: number of files per fuzz test."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st

# Derandomized and few by default; random and more on request.
_COUNT = os.environ.get("TL_FUZZ_EXAMPLES")
EXAMPLES = settings(max_examples=int(_COUNT or 150), derandomize=_COUNT is None, deadline=None)

_BYTES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\xff" * 4, b"\x80" * 8, bytes(8), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01"]),
)


def mutations() -> st.SearchStrategy[list[tuple[int, int, bytes]]]:
    """Changes to a file: position (modulo its size), number of bytes to remove there, and bytes to insert."""
    return st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 200), _BYTES), max_size=4)


def mutate(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Apply the changes to `data`. Bytes are replaced where as many are inserted as removed."""
    for place, taken, put in changes:
        at = place % (len(data) + 1)
        # Odd counts replace bytes, so that preceding lengths stay valid; others move the rest, or cut it off.
        stop = at + len(put) if taken % 2 else at + taken
        data = data[:at] + put + data[stop:]
    return data
