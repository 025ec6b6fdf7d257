from __future__ import annotations

import pytest

from tl.runtime.sources.durations import parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1.5h", 5400),
        (" 2h ", 7200),
        ("0s", 0),
        ("10", None),
        ("10 m", None),
        ("-5m", None),
        ("1h30m", None),
        ("1e3s", None),
        (".5h", None),
        ("1d", None),
        ("500ms", 0.5),
        ("30x", None),
        ("٣s", None),
        ("9" * 10 + "s", None),
        ("h", None),
        ("", None),
    ],
)
def test_parse_seconds__by_hand(text: str, seconds: float | None) -> None:
    assert parse_seconds(text) == seconds
