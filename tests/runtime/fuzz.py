"""Damage to files as hypothesis makes and shrinks it. TL_FUZZ_EXAMPLES: how many files each fuzz test tries."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st

# Derandomized and few by default; more of them, found at random, where somebody asks for it.
_COUNT = os.environ.get("TL_FUZZ_EXAMPLES")
EXAMPLES = settings(max_examples=int(_COUNT or 150), derandomize=_COUNT is None, deadline=None)

_BYTES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\xff" * 4, b"\x80" * 8, bytes(8), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01"]),
)


def mutations() -> st.SearchStrategy[list[tuple[int, int, bytes]]]:
    """Changes of a file: where (modulo its size), how many bytes to take out there, what to put in."""
    return st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 200), _BYTES), max_size=4)


def mutate(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """`data` with the changes. Bytes are replaced where as many are put in as taken out."""
    for place, taken, put in changes:
        at = place % (len(data) + 1)
        # Odd counts replace, so that lengths further up stay true; others move what follows, or cut.
        stop = at + len(put) if taken % 2 else at + taken
        data = data[:at] + put + data[stop:]
    return data
