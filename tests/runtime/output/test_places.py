from __future__ import annotations

import os

from tl.runtime.output.places import Places


def test_places__as_a_dict() -> None:
    keys = [os.urandom(16) for _ in range(500)]
    # Keys that agree in one half, added several times.
    keys += [keys[0][:8] + bytes(8), bytes(8) + keys[0][8:], bytes(16), keys[3], keys[3], bytes(16)]
    places, expected = Places(), {}
    for place, key in enumerate(keys):
        places.add(key, place)
        expected[key] = place
    assert places.get(keys[0]) is None
    places.sort()
    assert len(places) == len(expected) == 503
    assert {key: places.get(key) for key in keys} == expected
    assert places.get(b"x" * 16) is None
    assert Places().get(keys[0]) is None
