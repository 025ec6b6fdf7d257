"""Where the rows of a ledger are, for many millions of them: 24 bytes a row, against 130 in a dict."""

from __future__ import annotations

from array import array

import numpy as np

KEY_BYTES = 16


class Places:
    """Maps keys of 16 bytes to places in a file. Filled by `add`, then only read; `get` is thread-safe after `sort`."""

    def __init__(self) -> None:
        self._keys, self._places = bytearray(), array("Q")
        self.sort()

    def add(self, key: bytes, place: int) -> None:
        """Add a key; a later place replaces an earlier one of the same key. Found after `sort`."""
        self._keys += key
        self._places.append(place)

    def sort(self) -> None:
        """Make what was added so far findable; nothing can be added after it."""
        keys = np.frombuffer(self._keys, np.uint64).reshape(-1, 2)
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys, the one that was added last is last
        first, second = keys[order, 0], keys[order, 1]
        is_last = np.ones(len(order), bool)
        is_last[:-1] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        self._first, self._second = first[is_last], second[is_last]
        self._found = np.frombuffer(self._places, np.uint64)[order[is_last]]
        del keys
        self._keys, self._places = bytearray(), array("Q")

    def get(self, key: bytes) -> int | None:
        """Return the place of a key, None if it is unknown."""
        first, second = np.frombuffer(key, np.uint64)
        i = int(np.searchsorted(self._first, first))
        while i < len(self._first) and self._first[i] == first:
            if self._second[i] == second:
                return int(self._found[i])
            i += 1
        return None

    def __len__(self) -> int:
        return len(self._found)
