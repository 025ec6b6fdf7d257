from __future__ import annotations

import io
import itertools
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.errors import ConfigError, DataError
from tl.runtime.imaging.exif import CaptureFacts
from tl.runtime.sources.sequences import (
    SequenceRule,
    Sequences,
    check_times,
    group_by_time,
    parse_rule,
    read_sequence_table,
)

NOON = datetime(2026, 5, 1, 12)


def photo(name: str, seconds: float | None, **more: object) -> tuple[str, CaptureFacts]:
    taken = None if seconds is None else NOON + timedelta(seconds=seconds)
    return name, CaptureFacts(captured=taken, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("exif:30s", SequenceRule(seconds=30)),
        ("EXIF:0.5s", SequenceRule(seconds=0.5)),
        ("exif:2m", SequenceRule(seconds=120)),
        ("event", SequenceRule(column="event")),
        ("exifs", SequenceRule(column="exifs")),
        ("night:visit", SequenceRule(column="night:visit")),
    ],
)
def test_parse_rule__by_hand(text: str, rule: SequenceRule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["exif:30x", "exif:-5s", "exif:", "exif", "exif:0s", "exif:s", "exif:1e9s", "", "  "])
def test_parse_rule__faults(text: str) -> None:
    with pytest.raises(ConfigError, match="exif:30s"):
        parse_rule(text)


def test_group_by_time__chains_photos() -> None:
    found = group_by_time(
        [photo("a/3.jpg", 55), photo("a/1.jpg", 0), photo("a/2.jpg", 30), photo("a/4.jpg", 86), photo("a/5.jpg", 90)],
        30,
    )
    assert [found.of[f"a/{i}.jpg"] for i in range(1, 6)] == ["a/1.jpg"] * 3 + ["a/4.jpg"] * 2
    assert not found.timeless


def test_group_by_time__parts_of_a_second() -> None:
    found = group_by_time([photo("1.jpg", 0.0), photo("2.jpg", 0.4), photo("3.jpg", 1.0)], 0.5)
    assert list(found.of.values()) == ["1.jpg", "1.jpg", "3.jpg"]


def test_group_by_time__cameras_are_apart() -> None:
    images = [
        photo("a/1.jpg", 0),
        photo("b/2.jpg", 1),
        photo("a/3.jpg", 2, make="Reconyx"),
        photo("a/4.jpg", 3, make="Reconyx", serial="1"),
        photo("a/5.jpg", 4, make="Reconyx", serial="2"),
        photo("a/6.jpg", 5, make="Reconyx", serial="1"),
    ]
    assert group_by_time(images, 30).of == {
        "a/1.jpg": "a/1.jpg",
        "b/2.jpg": "b/2.jpg",
        "a/3.jpg": "a/3.jpg",
        "a/4.jpg": "a/4.jpg",
        "a/5.jpg": "a/5.jpg",
        "a/6.jpg": "a/4.jpg",
    }


def test_group_by_time__offsets_from_utc_count_where_all_have_them() -> None:
    summer, winter = (timezone(timedelta(hours=hours)) for hours in (2, 1))
    before = "1.jpg", CaptureFacts(captured=datetime(2026, 10, 25, 2, 59, 50, tzinfo=summer))
    after = "2.jpg", CaptureFacts(captured=datetime(2026, 10, 25, 2, 0, 5, tzinfo=winter))
    assert set(group_by_time([before, after], 30).of.values()) == {"1.jpg"}
    plain = "3.jpg", CaptureFacts(captured=datetime(2026, 10, 25, 2, 59, 55))
    found = group_by_time([before, after, plain], 30).of  # by the clock that the camera showed
    assert found == {"1.jpg": "1.jpg", "3.jpg": "1.jpg", "2.jpg": "2.jpg"}
    edges = [("a", CaptureFacts(captured=datetime.max.replace(tzinfo=winter.__class__(-timedelta(hours=5)))))]
    assert group_by_time(edges, 30).of == {"a": "a"}


def test_group_by_time__without_times_and_in_the_future() -> None:
    found = group_by_time([photo("1.jpg", None), photo("2.jpg", None), photo("3.jpg", 0), photo("4.jpg", 9e8)], 30)
    assert found.timeless == ("1.jpg", "2.jpg")
    assert found.of["1.jpg"] == "1.jpg"
    assert found.of["2.jpg"] == "2.jpg"
    assert found.in_future == ("4.jpg",)
    check_times(found, 4)
    ahead = [("1.jpg", CaptureFacts(captured=NOON + timedelta(hours=14)))]
    assert group_by_time(ahead, 1, now=NOON.replace(tzinfo=UTC)).in_future == ()


def test_check_times__none_at_all() -> None:
    with pytest.raises(DataError, match="none of the 2 images has a capture time") as caught:
        check_times(Sequences(timeless=("a.jpg", "b.jpg")), 2)
    assert caught.value.options == ("sequence=COLUMN",)
    check_times(Sequences(), 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200) | st.none()), max_size=30), st.integers(1, 20))
def test_group_by_time__partitions_images_by_gaps(images: list[tuple[int, int | None]], seconds: int) -> None:
    photos = [photo(f"{folder}/{i:02d}.jpg", taken) for i, (folder, taken) in enumerate(images)]
    found = group_by_time(photos, seconds).of
    assert found.keys() == {name for name, _ in photos}
    assert found == group_by_time(photos[::-1], seconds).of
    times = {name: facts.captured for name, facts in photos}
    for name, first in found.items():
        assert found[first] == first
        members = sorted(times[other] or NOON for other, its in found.items() if its == first)
        assert all((b - a).total_seconds() <= seconds for a, b in itertools.pairwise(members))
        assert name.split("/")[0] == first.split("/")[0]


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    return str(tmp_path / "list.csv")


def test_read_sequence_table__by_hand(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").touch()
    listed = write(tmp_path, "file;Event\na.jpg;night 1\nb.jpg;night 1\nsub/c.jpg;\nA.JPG;x\n")
    assert read_sequence_table(listed, "Event") == [
        (str(tmp_path / "a.jpg"), "night 1"),
        (str(tmp_path / "b.jpg"), "night 1"),
        (str(tmp_path / "sub/c.jpg"), str(tmp_path / "sub/c.jpg")),
        (str(tmp_path / "A.JPG"), "x"),
    ]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    listed = write(tmp_path, "path,Event\nD:\\trip\\a.jpg,n\n")
    assert read_sequence_table(listed, "Event", images=tmp_path / "photos") == [(str(tmp_path / "photos/a.jpg"), "n")]


def test_read_sequence_table__stdin_is_relative_to_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"path,event\na.jpg,n\n")))
    assert read_sequence_table("-", "event") == [("a.jpg", "n")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("path,event\na.jpg,1\n", r"has no column 'events' for sequences \(nearest: 'event'\)"),
        ("path,x\na.jpg,1\n", r"has no column 'events' for sequences \(found: path, x\)"),
        ("image name only,events\na.jpg,1\n", "has no column path"),
        ("path,events\n,1\n", "row 2: path must not be empty"),
        ("path,events\na.jpg,1\na.jpg,2\n", "row 3: .*a.jpg is in '1' and in '2'"),
        ("path,events\nfolder,1\n", "row 2: 'folder' is a folder: name an image"),
    ],
)
def test_read_sequence_table__faults(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=fault):
        read_sequence_table(write(tmp_path, text), "events")
