"""The journal: what is read back, what a killed process leaves, what is damaged, and a disk that is full."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.full_disk import largest_file
from tl.annotation.journal import Event, Journal, check_kind
from tl.errors import ConfigError, DataError, OutputError

OPEN = Event(do="open", version="1", root="photos", classes=("ant", "bee"), seed=3, num_images=2, reserve="0f")
EVENTS = [
    OPEN,
    Event(do="label", window="a", images=("x/1.jpg", "2.jpg"), label="ant", predicted=("bee", None)),
    Event(do="label", window="a", images=("3.jpg",), label="bee", confirmed=True, confidence=(0.5,)),
    Event(do="unsure", window="b", images=("3.jpg",), predicted=(None,), confidence=(None,)),
    Event(do="skip", window="b", images=("3.jpg",)),
    Event(do="clear", window="b", images=("3.jpg",)),
    Event(do="note", window="b", images=("3.jpg",), text="a\nb ü <i>"),
    Event(do="undo", window="b", of=7),
    Event(do="redo", window="b", of=7),
    Event(do="add_class", window="b", name="fly", key="f"),
    Event(do="rename_class", window="b", old="fly", new="wasp"),
    Event(do="remove_class", window="b", name="wasp"),
    Event(do="keep", window="r", images=("a.jpg",)),
    Event(do="relabel", window="r", images=("a.jpg",), label="bee"),
    Event(do="drop", window="r", images=("a.jpg",)),
    Event(do="duplicate", window="r", images=("a.jpg",), of="b.jpg"),
    Event(do="keep", images=(os.fsdecode(b"\xff name\n.jpg"),)),  # a file name that is not UTF-8
]


def written(path: Path, count: int = len(EVENTS)) -> list[Event]:
    journal, before = Journal.open(path)
    assert before == ()
    done = [journal.append(event) for event in EVENTS[:count]]
    journal.close()
    return done


def read(path: Path) -> tuple[Event, ...]:
    journal, events = Journal.open(path)
    journal.close()
    return events


def test_append__every_kind_is_read_back(tmp_path: Path) -> None:
    done = written(tmp_path / "j.jsonl")
    assert read(tmp_path / "j.jsonl") == tuple(done)
    assert [event.n for event in done] == list(range(1, len(EVENTS) + 1))
    assert all(event.at.endswith("Z") and len(event.at) == 24 for event in done)
    first = json.loads((tmp_path / "j.jsonl").read_bytes().splitlines()[1])
    assert list(first)[:4] == ["n", "at", "window", "do"]
    assert (first["images"], first["predicted"]) == (["x/1.jpg", "2.jpg"], ["bee", None])
    assert "confirmed" not in first


def test_append__goes_on_with_the_next_number(tmp_path: Path) -> None:
    written(tmp_path / "j.jsonl", 3)
    journal, events = Journal.open(tmp_path / "j.jsonl")
    assert len(events) == 3
    assert journal.append(EVENTS[3]).n == 4
    journal.close()
    with pytest.raises(OutputError, match="is closed"):
        journal.append(EVENTS[3])


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_open__cuts_off_a_line_that_was_not_finished(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    done = written(path, 4)
    path.write_bytes(path.read_bytes()[:-cut])
    journal, events = Journal.open(path)
    assert events == tuple(done[:3])
    assert "the last action was not finished" in journal.repaired
    assert journal.append(EVENTS[3]).n == 4
    journal.close()
    assert len(read(path)) == 4


LINE = b'{"n":2,"at":"t","window":"a","do":"clear","images":["a"]}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\0" * 40, "damaged"),
        (b"{}", "expected an object with the key do"),
        (b"[1]", "expected an object with the key do"),
        (LINE.replace(b"clear", b"jump"), "do 'jump' is not one of"),
        (LINE.replace(b'"at"', b'"on"'), "has no field on"),
        (LINE.replace(b',"images":["a"]', b""), "'clear' lacks images"),
        (LINE.replace(b'["a"]', b'"a"'), "images has a value of another kind: a"),
        (LINE.replace(b'"n":2', b'"n":true'), "n has a value of another kind"),
        (LINE.replace(b'"n":2', b'"n":3'), "has the number 3: a line is missing"),
        (LINE.replace(b"clear", b"skip").replace(b"}", b',"predicted":[]}'), "need one value for each image"),
    ],
)
def test_open__names_a_damaged_line(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "j.jsonl"
    written(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line + b"\n" + lines[2])
    before = path.read_bytes()
    with pytest.raises(DataError, match="line 2: ") as raised:
        Journal.open(path)
    assert told in str(raised.value)
    assert path.read_bytes() == before


def test_append__full_disk_leaves_the_journal_as_before(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal, _ = Journal.open(path)
    journal.append(OPEN)
    before = path.read_bytes()
    with largest_file(len(before) + 20), pytest.raises(OutputError, match="cannot be written"):
        journal.append(EVENTS[1])
    assert path.read_bytes() == before
    assert journal.append(EVENTS[1]).n == 2
    journal.close()
    assert len(read(path)) == 2


def test_append__a_file_that_was_removed(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path / "j.jsonl")
    (tmp_path / "j.jsonl").unlink()
    with pytest.raises(OutputError, match="was removed meanwhile"):
        journal.append(OPEN)
    journal.close()


def test_open__no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "j.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match="symbolic link"):
        Journal.open(tmp_path / "j.jsonl")
    assert (tmp_path / "other").read_text() == "mine"


def test_append__from_several_threads(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path / "j.jsonl")
    threads = [threading.Thread(target=lambda: [journal.append(OPEN) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert [event.n for event in read(tmp_path / "j.jsonl")] == list(range(1, 81))


def test_append__refuses_what_could_not_be_read_again(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path / "j.jsonl")
    with pytest.raises(ValueError, match="'clear' has no field predicted"):
        journal.append(Event(do="clear", images=("a.jpg",), predicted=("ant",)))
    assert journal.append(OPEN).n == 1
    journal.close()
    assert len(read(tmp_path / "j.jsonl")) == 1


def test_append_all__is_kept_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal, _ = Journal.open(path)
    journal.append(OPEN)
    one = path.read_bytes()
    done = journal.append_all(EVENTS[1:4])
    assert [(event.n, event.first, event.more) for event in done] == [(2, 2, True), (3, 2, True), (4, 2, False)]
    journal.close()
    whole = path.read_bytes()
    assert read(path)[1:] == done
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (len(whole) - 1, last, last - 1):  # killed within the last line, before it, within the one before
        path.write_bytes(whole[:end])
        journal, events = Journal.open(path)
        journal.close()
        assert len(events) == 1
        assert "the last action was not finished" in journal.repaired
        assert path.read_bytes() == one


def test_check_kind__names_the_command_and_the_cure() -> None:
    check_kind(Path("j"), [], "review")
    check_kind(Path("j"), [OPEN], "label")  # of an older version
    check_kind(Path("j"), [Event(do="open", kind="review")], "review")
    with pytest.raises(ConfigError, match="j: is the journal of tl label: give tl review another output"):
        check_kind(Path("j"), [OPEN], "review")
    with pytest.raises(ConfigError, match="is the journal of tl review"):
        check_kind(Path("j"), [Event(do="open", root="photos")], "label")
    with pytest.raises(DataError, match="line 1"):
        check_kind(Path("j"), [EVENTS[1]], "label")
