"""Undo and redo of a review: whole actions, after a restart too, and never so that both images of a pair are lost."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from tests.annotation.review_data import make_photos, spoil
from tests.annotation.test_review import decide, review_of, seen
from tl.annotation.journal import Event
from tl.annotation.page_requests import Refused
from tl.annotation.review import Review
from tl.annotation.review_log import ReviewLog
from tl.annotation.reviewed import Decision, find_lost

PAIR = ("bee/copy.png", "moth/00.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return spoil(make_photos(tmp_path / "photos"))


def made(review: Review) -> dict[str, str]:
    return {review.items.images[one].name: decision.do for one, decision in review.decisions().items()}


@pytest.mark.parametrize(
    ("decisions", "lost"),
    [
        ({0: Decision("duplicate", of=1)}, set()),
        ({0: Decision("duplicate", of=1), 1: Decision("relabel", "bee")}, set()),
        ({0: Decision("duplicate", of=1), 1: Decision("drop")}, {0}),
        ({0: Decision("duplicate", of=1), 1: Decision("duplicate", of=0)}, {0, 1}),
        ({0: Decision("duplicate", of=1), 1: Decision("duplicate", of=2)}, set()),
        ({0: Decision("duplicate", of=1), 1: Decision("duplicate", of=2), 2: Decision("drop")}, {0, 1}),
        ({0: Decision("drop"), 1: Decision("drop")}, set()),
    ],
)
def test_find_lost__by_hand(decisions: dict[int, Decision], lost: set[int]) -> None:
    assert find_lost(decisions) == lost


def test_decide__the_image_that_is_left_of_a_pair_cannot_be_dropped(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "duplicate", PAIR[0])
        with pytest.raises(Refused, match=r"bee/copy\.png: its duplicate is removed too: both would be lost"):
            decide(review, "drop", PAIR[1])
        assert made(review) == {PAIR[0]: "duplicate"}
        decide(review, "drop", *PAIR)  # both on purpose
        assert made(review) == dict.fromkeys(PAIR, "drop")


def test_turn__redo_that_would_lose_both_is_refused(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "duplicate", PAIR[0], window="a")
        review.turn("a", "undo")
        decide(review, "duplicate", PAIR[1], window="b")
        with pytest.raises(Refused, match="both images of a pair of duplicates would be lost"):
            review.turn("a", "redo")
        assert made(review) == {PAIR[1]: "duplicate"}


def test_turn__undo_that_would_lose_both_is_refused(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "keep", "ant/wrong.png", window="a")
        decide(review, "duplicate", PAIR[1], window="a")
        decide(review, "keep", PAIR[1], window="a")
        decide(review, "duplicate", PAIR[0], window="b")
        with pytest.raises(Refused, match="both images of a pair of duplicates would be lost"):
            review.turn("a", "undo")
        assert made(review) == {"ant/wrong.png": "keep", PAIR[1]: "keep", PAIR[0]: "duplicate"}


def test_turn__an_action_is_undone_as_a_whole_after_a_restart_too(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "accept", "ant/wrong.png", "bee/copy.png")
    first, second = map(json.loads, (data.parent / "reviewed.journal.jsonl").read_text().splitlines()[-2:])
    assert (first["first"], second["first"]) == (first["n"], first["n"])
    with review_of(data) as review:
        changed = {review.items.images[one].name for one in review.turn("w", "undo").changed}
        assert changed == {"ant/wrong.png", PAIR[0]}
        assert made(review) == {}
    with review_of(data) as review:
        review.turn("w", "redo")
        assert made(review) == {"ant/wrong.png": "relabel", PAIR[0]: "relabel"}


def test_turn__an_action_that_was_changed_in_part_is_not_undone_in_part(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "accept", "ant/wrong.png", "bee/copy.png", window="a")
        decide(review, "keep", "ant/wrong.png", window="b")
        with pytest.raises(Refused, match="changed since: this cannot be undone any more"):
            review.turn("a", "undo")
        assert made(review) == {"bee/copy.png": "relabel", "ant/wrong.png": "keep"}


def test_turn__what_cannot_be_undone_any_more_is_not_in_the_way(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "keep", "ant/wrong.png", window="a")
        decide(review, "keep", "bee/copy.png", window="a")
        decide(review, "drop", "bee/copy.png", window="b")
        with pytest.raises(Refused, match="have been changed since"):
            review.turn("a", "undo")
        review.turn("a", "undo")
        assert made(review) == {"bee/copy.png": "drop"}


def test_turn__what_another_window_took_back_can_be_undone(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "keep", "ant/wrong.png", window="a")
        decide(review, "drop", "ant/wrong.png", window="b")
        review.turn("b", "undo")
        review.write_note("b", seen(review, "ant/wrong.png")[0], "a note is no decision")
        review.turn("a", "undo")
        assert made(review) == {}


def test_review_log__reads_actions_of_one_event_each() -> None:
    """A journal without `first` has one action an event."""
    events = [Event(do="keep", window="w", images=(name,), n=n) for n, name in enumerate("ab", 1)]
    log = ReviewLog({"a": 0, "b": 1}, [*events, Event(do="undo", window="w", of=2, n=3)])
    assert log.decisions() == {0: Decision("keep")}
    assert (log.check_turn("w", "undo"), log.check_turn("w", "redo")) == (1, 2)


@pytest.mark.parametrize("label", ["BEE", " bee", "\uff42ee", "", "?", "x" * 101, "b\udcff", "b\u200bee"])
def test_decide__refuses_a_class_that_training_refuses(data: Path, label: str) -> None:
    with review_of(data) as review:
        with pytest.raises(Refused):
            decide(review, "relabel", "moth/00.png", label=label)
        assert made(review) == {}


def test_decide__a_new_class_is_spelled_in_one_way(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "relabel", "ant/wrong.png", label=unicodedata.normalize("NFD", "guêpe"))
        decide(review, "relabel", "bee/copy.png", label="guêpe")
        assert review.class_names == ("ant", "bee", "moth", "guêpe")


@pytest.mark.parametrize("text", ["x" * 2001, "half \udcff", "bell \x07"])
def test_write_note__refuses_what_files_cannot_have(data: Path, text: str) -> None:
    with review_of(data) as review, pytest.raises(Refused, match="a note has at most 2,000 characters"):
        review.write_note("w", seen(review, "ant/wrong.png")[0], text)
