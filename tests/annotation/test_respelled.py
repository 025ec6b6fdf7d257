"""Images whose names have another Unicode form than when they were labeled."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.annotation.photos import make_photos
from tl.annotation.journal import Event, Journal
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.outputs import journal_path
from tl.annotation.page_requests import Seen
from tl.annotation.photos import Photos
from tl.annotation.respelled import RENAME, find_respelled, with_present_names
from tl.errors import DataError

LONG, SHORT = unicodedata.normalize("NFD", "ä/é.jpg"), "ä/é.jpg"
MIXED = unicodedata.normalize("NFD", "ä") + "/é.jpg"
on_linux = pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes all forms of a name for the same")


def acting(*names: str, **more: object) -> Event:
    return Event(do="skip", images=names, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("present", "acted", "found"),
    [
        ([SHORT], [LONG], {LONG: SHORT}),
        ([LONG], [SHORT], {SHORT: LONG}),
        ([SHORT], [SHORT], {}),
        ([LONG, SHORT], [MIXED], {}),  # which of the two?
        ([SHORT], [LONG, MIXED], {}),
        ([SHORT], [LONG, SHORT], {}),  # LONG was another image, which is gone
        (["b.jpg"], ["a.jpg"], {}),
    ],
)
def test_find_respelled__unless_it_is_ambiguous(present: list[str], acted: list[str], found: dict[str, str]) -> None:
    assert find_respelled(Photos(Path(), present), [acting(name) for name in acted]) == found


def test_find_respelled__images_that_were_drawn_only() -> None:
    assert find_respelled(Photos(Path(), [SHORT]), [Event(do="open", drawn=(LONG, "b"))]) == {LONG: SHORT}


def test_with_present_names__follows_names_and_leaves_later_ones() -> None:
    events = [
        Event(do="open", drawn=(LONG, "b"), prints=(f"12ab {LONG}",)),
        acting(LONG, "b"),
        Event(do=RENAME, images=(LONG,), renamed=(MIXED,)),
        acting(MIXED),
        Event(do=RENAME, images=(MIXED,), renamed=(SHORT,)),
        acting(LONG),  # another image, which has come since
    ]
    found = with_present_names(events)
    assert (found[0].drawn, found[0].prints) == ((SHORT, "b"), (f"12ab {SHORT}",))
    assert [event.images for event in found[1:]] == [(SHORT, "b"), (LONG,), (SHORT,), (MIXED,), (LONG,)]
    assert found[2].renamed == (SHORT,)


@on_linux
def test_open_session__images_in_another_unicode_form_keep_their_labels(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 40)
    for n, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / unicodedata.normalize("NFD", f"{n:02} für.png"))
    output = tmp_path / "labels.csv"
    with open_session(SessionPlan(folder, output, seed=3), None) as session:
        session.act("w", [Seen(i, 0) for i in range(25)], "label", label="ant")
        session.note("w", Seen(30, 0), "odd")
        reserved = session.reserved.copy()
    folder = folder.rename(tmp_path / "copy")  # recognized by its prints, whose names have changed too
    for path in folder.iterdir():
        path.rename(folder / unicodedata.normalize("NFC", path.name))
    told: list[list[str]] = []
    for _ in range(2):
        said: list[str] = []
        with open_session(SessionPlan(folder, output), None, said.append) as session:
            records = session.records(range(40))
            assert [record["label"] for record in records] == ["ant"] * 25 + [None] * 15
            assert records[30]["note"] == "odd"
            np.testing.assert_array_equal(session.reserved[:25], reserved[:25])
            assert session.reserved[reserved].all()
            session.undo("w")  # the note
            session.redo("w")
        told.append(said)
    ((first,), second) = told
    assert "images have names in another Unicode form now, and keep their labels: first 00 für.png" in first
    assert second == []
    assert "00 für.png" in output.read_text(encoding="utf-8")


def test_journal__renamed_images_need_one_name_each(tmp_path: Path) -> None:
    journal, _ = Journal.open(journal_path(tmp_path / "labels.csv"))
    with pytest.raises(ValueError, match="need one value for each image"):
        journal.append(Event(do=RENAME, images=("a", "b"), renamed=("c",)))
    journal.append(Event(do=RENAME, images=("a",), renamed=("c",)))
    journal.close()
    path = tmp_path / "labels.journal.jsonl"
    path.write_text(path.read_text().replace('["c"]', "[]"))
    with pytest.raises(DataError, match="need one value"):
        Journal.open(path)
