"""The state that events lead to, compared with a plain dictionary; undo, redo and classes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tl.annotation.journal import Event
from tl.annotation.labels import LABELED, OPEN, SKIPPED, UNSURE, Labels
from tl.annotation.page_requests import Refused
from tl.annotation.photos import Photos

NAMES = [f"{i}.jpg" for i in range(8)]


class Acting:
    """Labels with a counter of events, as a journal has it."""

    def __init__(self) -> None:
        self.labels = Labels(Photos(Path(), NAMES))
        self.events: list[Event] = []

    def do(self, do: str, *images: int, window: str = "w", **more: object) -> list[int]:
        named = tuple(NAMES[i] for i in images)
        event = Event(do=do, window=window, images=named, n=len(self.events) + 1, **more)  # type: ignore[arg-type]
        self.events.append(event)
        return [int(i) for i in self.labels.apply(event)]

    def undo(self, window: str = "w") -> list[int]:
        return self.do("undo", window=window, of=self.labels.check_undo(window))

    def redo(self, window: str = "w") -> list[int]:
        return self.do("redo", window=window, of=self.labels.check_redo(window))

    @property
    def shown(self) -> list[str]:
        names = [*self.labels.class_names, ""]
        return [names[i] for i in self.labels.label]


class Replayed(Acting):
    """The same events again, as at the next start."""

    def __init__(self, acting: Acting) -> None:
        super().__init__()
        for event in acting.events:
            self.labels.apply(event)


@pytest.fixture
def acting() -> Acting:
    acting = Acting()
    acting.do("open", classes=("ant", "bee"))
    return acting


def test_apply__every_kind(acting: Acting) -> None:
    assert acting.do("label", 0, 1, label="ant") == [0, 1]
    acting.do("label", 1, label="bee")
    acting.do("unsure", 2)
    acting.do("skip", 3, 0)
    acting.do("note", 4, text="odd")
    acting.do("clear", 1)
    assert acting.labels.status.tolist() == [SKIPPED, OPEN, UNSURE, SKIPPED, OPEN, OPEN, OPEN, OPEN]
    assert acting.labels.label.tolist() == [-1] * 8
    assert acting.labels.notes == {4: "odd"}
    assert acting.labels.version.tolist() == [5, 7, 4, 5, 6, 0, 0, 0]
    assert acting.labels.changed_by(0) == "w"
    assert acting.labels.changed_by(7) == ""
    acting.do("note", 4, text="")
    assert acting.labels.notes == {}


def test_apply__images_that_are_gone(acting: Acting) -> None:
    event = Event(do="label", window="w", images=("1.jpg", "gone.jpg"), label="ant", n=2)
    assert acting.labels.apply(event).tolist() == [1]
    assert acting.labels.absent == {"gone.jpg"}
    acting.events.append(event)
    assert acting.undo() == [1]


def test_undo__random_actions_of_two_windows_against_a_model() -> None:
    """Windows act on images of their own, so that each can undo all; the model is a list of whole states."""
    chance = random.Random(0)
    acting = Acting()
    acting.do("open", classes=("ant", "bee"))
    mine = {"a": range(4), "b": range(4, 8)}
    states = {window: [["open"] * 4] for window in mine}
    undone: dict[str, list[list[str]]] = {window: [] for window in mine}
    for _ in range(400):
        window = chance.choice("ab")
        past, future = states[window], undone[window]
        step = chance.random()
        if step < 0.3 and len(past) > 1:
            acting.undo(window)
            future.append(past.pop())
        elif step < 0.5 and future:
            acting.redo(window)
            past.append(future.pop())
        elif step >= 0.5:
            images = sorted(chance.sample(list(mine[window]), chance.randint(1, 3)))
            do = chance.choice(["ant", "bee", "unsure", "skip", "clear"])
            if do in ("ant", "bee"):
                acting.do("label", *images, window=window, label=do)
            else:
                acting.do(do, *images, window=window)
            state = list(past[-1])
            for i in images:
                state[i - mine[window][0]] = {"clear": "open"}.get(do, do)
            past.append(state)
            future.clear()
        expected = states["a"][-1] + states["b"][-1]
        found = [
            label or {OPEN: "open", UNSURE: "unsure", SKIPPED: "skip"}[int(status)]
            for label, status in zip(acting.shown, acting.labels.status, strict=True)
        ]
        assert found == expected
    again = Labels(Photos(Path(), NAMES))  # as at the next start
    for event in acting.events:
        again.apply(event)
    for name in ("label", "status", "version"):
        np.testing.assert_array_equal(getattr(again, name), getattr(acting.labels, name))
    for window in mine:
        assert again.can_undo(window) == (len(states[window]) > 1)
        assert again.can_redo(window) == bool(undone[window])


def test_undo__the_version_goes_on(acting: Acting) -> None:
    acting.do("label", 0, label="ant")
    acting.undo()
    assert acting.labels.version[0] == 3
    acting.redo()
    assert acting.labels.version[0] == 4
    assert acting.undo() == [0]


def test_undo__of_the_other_window_lets_this_one_undo(acting: Acting) -> None:
    acting.do("label", 0, label="ant", window="a")
    acting.do("label", 0, label="bee", window="b")
    acting.undo("b")
    assert acting.shown[0] == "ant"
    acting.undo("a")
    assert acting.shown[0] == ""
    acting.do("skip", 0, window="a")
    with pytest.raises(Refused, match="another window has changed these images"):
        acting.redo("b")


def test_redo__gives_the_class_back_that_was_renamed(acting: Acting) -> None:
    acting.do("label", 0, label="ant")
    acting.undo()
    acting.do("rename_class", old="ant", new="emmet")
    acting.do("rename_class", old="bee", new="ant")
    acting.redo()
    assert acting.shown[0] == "emmet"


def test_redo__not_of_a_class_that_was_removed(acting: Acting) -> None:
    acting.do("label", 0, label="ant")
    acting.undo()
    acting.do("remove_class", name="ant")
    with pytest.raises(Refused, match="there is no class 'ant' any more"):
        acting.redo()


def test_classes__keys_counts_and_names(acting: Acting) -> None:
    for name in "abcdefgh":
        acting.do("add_class", name=name)
    keys = [one.key for _, one in acting.labels.classes]
    assert keys == ["1", "2", "3", "4", "5", "6", "7", "8", "9", ""]
    acting.do("remove_class", name="bee")
    acting.do("add_class", name="wasp")
    assert [(one.name, one.key) for _, one in acting.labels.classes][-1] == ("wasp", "2")
    acting.do("label", 0, 1, label="wasp")
    assert acting.labels.class_counts()[acting.labels.class_id("wasp")] == 2
    with pytest.raises(Refused, match="there is no class 'bee'"):
        acting.labels.class_id("bee")
    with pytest.raises(Refused, match="there is a class 'ant' already"):
        acting.labels.check_name("Ant")
    assert acting.labels.check_name("Ant", other_than=0) == "Ant"


def test_labels__a_hundred_thousand_images() -> None:
    names = [f"{i // 500}/{i}.jpg" for i in range(100_000)]
    labels = Labels(Photos(Path(), names))
    for n in range(250):
        labels.apply(Event(do="label", images=tuple(names[n * 400 : (n + 1) * 400]), label=str(n % 7), n=n + 1))
    assert (labels.status == LABELED).all()
    assert labels.class_counts().sum() == 100_000


def test_merge_class__one_undo_takes_it_back(acting: Acting) -> None:
    acting.do("label", 0, 1, label="ant")
    acting.do("label", 2, label="bee")
    assert acting.do("merge_class", old="bee", new="ant") == [2]
    assert acting.shown[:4] == ["ant", "ant", "ant", ""]
    assert [one.name for _, one in acting.labels.classes] == ["ant"]
    assert acting.undo() == [2]
    assert acting.shown[:3] == ["ant", "ant", "bee"]
    acting.do("label", 3, window="other", label="bee")
    assert acting.redo() == [2, 3]
    assert acting.shown[:4] == ["ant"] * 4
    assert Replayed(acting).shown == acting.shown
    acting.undo()
    assert acting.shown[:4] == ["ant", "ant", "bee", "bee"]
    assert Replayed(acting).shown == acting.shown
    assert [one.key for _, one in acting.labels.classes] == ["1", "2"]


def test_merge_class__cannot_be_undone_into_a_class_of_the_same_name(acting: Acting) -> None:
    acting.do("label", 0, label="bee")
    acting.do("merge_class", old="bee", new="ant")
    acting.do("add_class", name="Bee")
    with pytest.raises(Refused, match="there is a class 'Bee' already: rename it, then undo the merging of 'bee'"):
        acting.undo()
    acting.do("rename_class", old="Bee", new="wasp")
    acting.undo()
    assert acting.shown[0] == "bee"
    assert [(one.name, one.key) for _, one in acting.labels.classes] == [("ant", "1"), ("bee", "3"), ("wasp", "2")]


def test_merge_class__what_another_window_changed_since(acting: Acting) -> None:
    acting.do("label", 0, 1, label="bee")
    acting.do("merge_class", old="bee", new="ant")
    acting.do("clear", 1, window="other")
    with pytest.raises(Refused, match="another window has changed these images since"):
        acting.undo()
    with pytest.raises(Refused, match="another window"):  # the labeling before it
        acting.undo()
