"""A review: what is open, what people decide, undo, conflicts, restart, and the files beside the output."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.annotation.review_data import (
    close,
    duplicates,
    evidence_of,
    make_photos,
    open_review,
    place,
    spoil,
    wrong_label,
)
from tests.annotation.test_reviewed import rows_of
from tl.annotation.page_requests import Refused, Seen
from tl.annotation.problems import Problem
from tl.annotation.review import Review
from tl.annotation.review_items import ReviewItems, trust
from tl.annotation.review_output import ReviewOutput
from tl.annotation.review_table import read_review_table
from tl.data.manifests import LabeledImage, read_images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return spoil(make_photos(tmp_path / "photos"))


@contextmanager
def review_of(data: Path, **options: Any) -> Iterator[Review]:
    """A review of a wrong label, which also is one of a pair, and of the other of the pair."""
    items = ReviewItems(evidence_of(read_images(data)), ())
    wrong, copy, twin = place(items, "ant/wrong.png"), place(items, "bee/copy.png"), place(items, "moth/00.png")
    problems = (wrong_label(wrong), wrong_label(copy, "moth", 0.8), duplicates(copy, twin), duplicates(twin, copy))
    review, held = open_review(data, options.pop("output", data.parent / "reviewed.csv"), *problems, **options)
    try:
        yield review
    finally:
        close(review, held)


def seen(review: Review, *names: str) -> list[Seen]:
    places = [place(review.items, name) for name in names]
    return [Seen(one["id"], one["version"]) for one in review.records(places)]


def decide(review: Review, do: str, *names: str, window: str = "w", **more: Any) -> Any:
    return review.decide(window, seen(review, *names), do, **more)


def open_names(review: Review, kind: str | None = None) -> list[str]:
    return [review.items.images[one].name for one in review.list_places(kind, "open")]


def test_review__an_image_has_all_its_reasons_and_leaves_every_list(data: Path) -> None:
    with review_of(data) as review:
        copy = review.records([place(review.items, "bee/copy.png")])[0]
        assert copy["kinds"] == ("label", "duplicate")
        assert (copy["suggested"], copy["twin"]["name"], copy["label"]) == ("moth", "moth/00.png", "bee")
        assert copy["top"][0] == ("bee", pytest.approx(0.8))
        assert open_names(review, "label") == ["ant/wrong.png", "bee/copy.png"]
        assert set(open_names(review, "duplicate")) == {"bee/copy.png", "moth/00.png"}
        decide(review, "duplicate", "bee/copy.png")
        assert open_names(review, "label") == ["ant/wrong.png"]
        assert open_names(review, "duplicate") == []  # the other of the pair is settled too
        state = review.state("w")
        assert (state["decided"], state["total"], state["counts"]["duplicate"]) == (2, 3, 1)
        assert {one["name"]: one["count"] for one in state["classes"]} == {"ant": 7, "bee": 5, "moth": 6}


def test_review__list_shows_the_first_of_each_kind_first(data: Path) -> None:
    with review_of(data) as review:
        assert open_names(review) == ["ant/wrong.png", "bee/copy.png", "moth/00.png"]
        decide(review, "keep", "ant/wrong.png")
        assert [review.items.images[one].name for one in review.list_places("label", "decided")] == ["ant/wrong.png"]


def test_decide__accepts_each_suggestion_and_undoes_them_together(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "accept", "ant/wrong.png", "bee/copy.png")
        assert {made.do for made in review.decisions().values()} == {"relabel"}
        assert {made.label for made in review.decisions().values()} == {"bee", "moth"}
        review.turn("w", "undo")
        assert review.decisions() == {}
        review.turn("w", "redo")
        assert {made.label for made in review.decisions().values()} == {"bee", "moth"}
        with pytest.raises(Refused, match="nothing to redo"):
            review.turn("w", "redo")


def test_decide__images_that_another_window_has_changed_stay_as_they_are(data: Path) -> None:
    with review_of(data) as review:
        before = seen(review, "ant/wrong.png", "bee/copy.png")
        decide(review, "drop", "ant/wrong.png", window="other")
        outcome = review.decide("w", before, "keep")
        assert outcome.conflicts == (place(review.items, "ant/wrong.png"),)
        assert [made.do for made in review.decisions().values()] == ["drop", "keep"]
        decide(review, "relabel", "bee/copy.png", window="other", label="moth")
        with pytest.raises(Refused, match="have been changed since"):
            review.turn("w", "undo")
        review.turn("other", "undo")
        assert review.decisions()[place(review.items, "bee/copy.png")].do == "keep"


def test_decide__refuses_what_cannot_be_meant(data: Path) -> None:
    with review_of(data) as review:
        with pytest.raises(Refused, match="no suggested label"):
            decide(review, "accept", "moth/00.png")
        with pytest.raises(Refused, match="no other image"):
            decide(review, "duplicate", "ant/wrong.png")
        with pytest.raises(Refused, match="there is a class 'bee'"):
            decide(review, "relabel", "moth/00.png", label="Bee")
        decide(review, "duplicate", "bee/copy.png")
        with pytest.raises(Refused, match="both would be lost"):
            decide(review, "duplicate", "moth/00.png")
        decide(review, "relabel", "ant/wrong.png", label="ant")  # its own label
        assert review.decisions()[place(review.items, "ant/wrong.png")].do == "keep"
        with pytest.raises(Refused, match="at most 2,000"):
            review.write_note("w", seen(review, "ant/wrong.png")[0], "x" * 2001)


def test_decide__a_new_class_is_one_from_then_on(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "relabel", "ant/wrong.png", label="wasp")
        assert review.class_names == ("ant", "bee", "moth", "wasp")
        assert {"name": "wasp", "count": 1} in review.state("w")["classes"]


def test_review__goes_on_after_a_restart_with_notes_and_windows(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "relabel", "ant/wrong.png", label="bee")
        decide(review, "drop", "moth/00.png")
        review.write_note("w", seen(review, "moth/00.png")[0], " blurred ")
        review.turn("w", "undo")  # the note
        review.write_note("w", seen(review, "moth/00.png")[0], "dark")
    with review_of(data) as review:
        assert review.records([place(review.items, "moth/00.png")])[0]["note"] == "dark"
        assert {made.do for made in review.decisions().values()} == {"relabel", "drop"}
        review.turn("w", "undo")
        review.turn("w", "undo")
        assert [made.do for made in review.decisions().values()] == ["relabel"]
    rows = rows_of(data.parent / "reviewed.changes.csv")
    assert [(row["path"], row["change"], row["new_label"]) for row in rows] == [
        ("photos/ant/wrong.png", "relabel", "bee")
    ]
    labels = {image.name: image.label for image in read_images(data.parent / "reviewed.csv")}
    assert labels["photos/ant/wrong.png"] == "bee"
    assert len(labels) == len(read_images(data))


def test_review__writes_within_a_second(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
        deadline = time.monotonic() + 30
        while not (data.parent / "reviewed.changes.md").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "ant/wrong.png" in (data.parent / "reviewed.changes.md").read_text(encoding="utf-8")


def test_review__nothing_decided_leaves_nothing(data: Path) -> None:
    with review_of(data) as review:
        assert review.list_places(None, "open")
    assert [path.name for path in data.parent.iterdir()] == ["photos"]


def test_review__images_that_are_gone_are_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
        decide(review, "duplicate", "bee/copy.png")
    (data / "moth/00.png").unlink()
    said: list[str] = []
    with ReviewOutput(data.parent / "reviewed.csv", read_review_table(data), said.append) as held:
        items = ReviewItems(evidence_of(read_images(data)), ())
        review = Review(items, read_review_table(data), held, said.append)
        assert [made.do for made in review.decisions().values()] == ["drop"]
        review.close()
    assert "1 decisions are on images" in said[0]


def test_review__many_threads_keep_every_decision(data: Path) -> None:
    with review_of(data) as review:
        names = [image.name for image in review.items.images]

        def work(mine: list[str]) -> None:
            for name in mine:
                decide(review, "keep", name, window=mine[0])

        threads = [threading.Thread(target=work, args=(names[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(review.decisions()) == len(names)
    with review_of(data) as review:
        assert len(review.decisions()) == len(names)


def test_review_items__unreadable_images_are_a_kind(data: Path) -> None:
    images = read_images(data)
    items = ReviewItems(evidence_of(images[:-1], [(images[-1], "truncated")]), ())
    assert items.kinds == ("unreadable",)
    assert items.images[items.places("unreadable")[0]] == images[-1]
    assert items.reasons(len(images) - 1) == ("The file cannot be read: truncated.",)


def test_review_items__reasons_of_many_pairs_are_few(data: Path) -> None:
    problems = [Problem("duplicate", 0, 1.0, None, n, (), f"like image {n}") for n in range(1, 6)]
    items = ReviewItems(evidence_of(read_images(data)), (*problems, wrong_label(0)))
    assert items.reasons(0) == (
        *("Like image 1.", "Like image 2.", "And 3 more like this.", "Predicted bee with 97%."),
    )


def test_review_items__a_new_label_does_not_settle_a_pair_in_two_splits() -> None:
    pair = [LabeledImage("/x/a", "a", "ant", "train"), LabeledImage("/x/b", "b", "bee", "val")]
    problems = (Problem("duplicate", 0, 1.0, None, 1, (), "r"), Problem("duplicate", 1, 1.0, None, 0, (), "r"))
    from tl.annotation.reviewed import Decision

    items = ReviewItems(evidence_of(pair), problems)
    assert items.is_open(1, {0: Decision("relabel", "bee")})
    assert not items.is_open(1, {0: Decision("drop")})


def test_trust__says_what_to_expect(data: Path) -> None:
    evidence = evidence_of(read_images(data))
    assert "agree with 100% of 19 labels" in trust(evidence)
    evidence.probabilities[:] = float("nan")
    assert "no held-out predictions" in trust(evidence)
