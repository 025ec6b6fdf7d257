from __future__ import annotations

import os

import pytest

from tl.runtime.sources.packed_names import PackedNames
from tl.runtime.sources.shards import Listing, Shard


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 3000])
def test_packed_names__a_sequence_in_order(count: int) -> None:
    names = [os.fsdecode(f"photos/ä/{i}\n.jpg".encode() + b"\xff") for i in range(count)]
    packed = PackedNames(names)
    assert (len(packed), list(packed)) == (count, names)
    assert [packed[i] for i in range(-count, count)] == names + names
    assert packed[3:2000:7] == names[3:2000:7]
    with pytest.raises(IndexError):
        packed[count]


def test_shard__depends_on_the_name_alone() -> None:
    # Computed once; another value would move images between the shards of existing predictions.
    numbers = [next(n for n in range(1, 5) if Shard(n, 4).holds(f"photos/{i}.jpg")) for i in range(8)]
    assert numbers == [
        2,
        4,
        4,
        1,
        1,
        4,
        4,
        1,
    ]
    assert all(Shard(n, 4).holds("./photos//0.jpg") == Shard(n, 4).holds("photos/0.jpg") for n in range(1, 5))


def test_listing__shards_divide_a_list_evenly() -> None:
    names = [f"{i}.jpg" for i in range(8000)]
    found = {}
    for number in range(1, 9):
        listing = Listing()
        kept = list(listing.select(names, Shard(number, 8)))
        assert [names[i] for i in listing.positions] == kept
        assert 850 < len(kept) < 1150  # binomial with a deviation of 30
        found[listing.digest] = listing.count
    assert list(found.values()) == [8000]
