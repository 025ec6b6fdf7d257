"""The state that the events of a journal lead to: labels, classes, notes, and what each window can undo.

Knows no files. Not thread-safe: `session` has the lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tl.annotation.journal import Event
from tl.annotation.page_requests import IMPORT, Refused, check_class_name
from tl.annotation.photos import Photos

OPEN, LABELED, UNSURE, SKIPPED = range(4)
STATUS_NAMES = ("open", "labeled", "unsure", "skipped")
NO_LABEL = -1
KEYS = "123456789"
_STATUS = {"label": LABELED, "clear": OPEN, "unsure": UNSURE, "skip": SKIPPED}

Indices = NDArray[np.intp]


@dataclass
class LabelClass:
    """A class. `key`: the key of a keyboard that labels it, "" for none. A removed or merged class keeps its id."""

    name: str
    key: str
    is_removed: bool = False


@dataclass(frozen=True)
class _Change:
    """What an event has changed: the images, and how they were before. `top`: the event that they were due to.

    `class_id`: the class that it gives them, which may be renamed later. `merged`: the class that it has merged into
    that one, `NO_LABEL` for none.
    """

    images: Indices
    label: NDArray[np.int32]
    status: NDArray[np.uint8]
    top: NDArray[np.int64]
    notes: dict[int, str]
    class_id: int
    merged: int


@dataclass
class _Stacks:
    """Numbers of the events that a window can undo and redo, the next one last."""

    undo: list[int] = field(default_factory=list)
    redo: list[int] = field(default_factory=list)


class Labels:
    """Labels of images by number. `label` int32 (N,): class id, or -1. `status` uint8 (N,): index of `STATUS_NAMES`.

    `version` int64 (N,): the number of the last event that changed an image, 0 for none. `absent`: names in events that
    are no images of the folder. `imported`: names of images, absent ones too, whose labels came from a file.
    """

    def __init__(self, photos: Photos) -> None:
        count = len(photos)
        self._photos = photos
        self.label = np.full(count, NO_LABEL, np.int32)
        self.status = np.zeros(count, np.uint8)
        self.version = np.zeros(count, np.int64)
        self.notes: dict[int, str] = {}
        self.absent: set[str] = set()
        self.imported: set[str] = set()
        self._top = np.zeros(count, np.int64)
        self._classes: list[LabelClass] = []
        self._events: dict[int, Event] = {}
        self._changes: dict[int, _Change] = {}
        self._stacks: defaultdict[str, _Stacks] = defaultdict(_Stacks)
        self._windows: dict[int, str] = {}

    def apply(self, event: Event) -> Indices:
        """Carry out an event, whether new or of the journal. Returns the images that it changed."""
        self._windows[event.n] = event.window
        if event.do == "open":
            for name in event.classes or ():
                self._add_class(name)
        elif event.do == "add_class":
            self._add_class(event.name or "", event.key)
        elif event.do == "rename_class":
            self._classes[self.class_id(event.old or "")].name = event.new or ""
        elif event.do == "remove_class":
            self._classes[self.class_id(event.name or "")].is_removed = True
        elif event.do in ("undo", "redo"):
            return self._turn(event)
        elif event.do in _STATUS or event.do in ("note", "merge_class"):
            classes = self._classes_of(event)
            stacks = self._stacks[event.window]
            stacks.undo.append(event.n)
            stacks.redo.clear()
            self._events[event.n] = event
            return self._change(event, event.n, *classes)
        return np.zeros(0, np.intp)

    def _classes_of(self, event: Event) -> tuple[int, int]:
        """The class that an event gives to images, and the one that it merges into that class."""
        if event.do == "merge_class":
            return self.class_id(event.new or ""), self.class_id(event.old or "")
        return self._class_of(event.label) if event.do == "label" else NO_LABEL, NO_LABEL

    def _change(self, event: Event, number: int, class_id: int, merged: int) -> Indices:
        """Change images as an event says. `number`: of the event that is applied now, which may be a redo of it."""
        images = self._known(event.images) if merged == NO_LABEL else np.flatnonzero(self.label == merged)
        before = self._top[images].copy()
        notes = {i: self.notes.get(i, "") for i in images.tolist()}
        label, status = self.label[images].copy(), self.status[images].copy()
        self._changes[event.n] = _Change(images, label, status, before, notes, class_id, merged)
        if event.do == "note":
            for i in images.tolist():
                self._set_note(i, event.text or "")
        elif event.do == "merge_class":
            self.label[images] = class_id
            self._classes[merged].is_removed = True
        else:
            self.status[images] = _STATUS[event.do]
            self.label[images] = class_id
        if event.window == IMPORT:
            self.imported.update(event.images)
        self._top[images] = event.n
        self.version[images] = number
        return images

    def _known(self, names: Sequence[str]) -> Indices:
        found = [self._photos.index.get(name, -1) for name in names]
        self.absent.update(name for name, i in zip(names, found, strict=True) if i < 0)
        return np.array([i for i in found if i >= 0], np.intp)

    def _set_note(self, image: int, text: str) -> None:
        if text:
            self.notes[image] = text
        else:
            self.notes.pop(image, None)

    def _turn(self, event: Event) -> Indices:
        """Undo or redo the event that an event names."""
        number, stacks = int(event.of or 0), self._stacks[event.window]
        source, target = (stacks.undo, stacks.redo) if event.do == "undo" else (stacks.redo, stacks.undo)
        change = self._changes[number]
        if number in source:
            source.remove(number)
        target.append(number)
        if event.do == "redo":
            return self._change(self._events[number], event.n, change.class_id, change.merged)
        return self._take_back(change, event.n)

    def _take_back(self, change: _Change, number: int) -> Indices:
        """Bring images back to how they were before a change. `number`: of the event that does it."""
        images = change.images
        self.label[images], self.status[images], self._top[images] = change.label, change.status, change.top
        for i, text in change.notes.items():
            self._set_note(i, text)
        self.version[images] = number
        if change.merged != NO_LABEL:
            self._bring_back(self._classes[change.merged])
        return images

    def _bring_back(self, merged: LabelClass) -> None:
        """Undo the removal of a class. Its key may have another class by now."""
        if merged.key in {one.key for _, one in self.classes}:
            merged.key = self._free_key()
        merged.is_removed = False

    def check_undo(self, window: str) -> int:
        """Return the number of the event that a window would undo. Raises `Refused`.

        An event whose images were changed since is not offered again.
        """
        stack = self._stacks[window].undo
        if not stack:
            raise Refused("conflict", "there is nothing to undo in this window")
        number = stack[-1]
        change = self._changes[number]
        if (self._top[change.images] != number).any():
            stack.pop()
            raise Refused("conflict", "another window has changed these images since: this cannot be undone any more")
        had = set(change.label.tolist()) - {NO_LABEL, change.merged}
        if any(self._classes[i].is_removed for i in had):
            stack.pop()
            raise Refused("conflict", "these images had a class that was removed since: this cannot be undone any more")
        if change.merged != NO_LABEL:
            self._check_can_come_back(self._classes[change.merged].name)
        return number

    def _check_can_come_back(self, name: str) -> None:
        """Raise `Refused` if a class of this name was added since it was merged."""
        try:
            self.check_name(name)
        except Refused as refused:
            raise Refused("conflict", f"{refused.reason}: rename it, then undo the merging of '{name}'") from refused

    def check_redo(self, window: str) -> int:
        """Return the number of the event that a window would redo. Raises `Refused`."""
        stack = self._stacks[window].redo
        if not stack:
            raise Refused("conflict", "there is nothing to redo in this window")
        change = self._changes[stack[-1]]
        if (self._top[change.images] != change.top).any():
            stack.pop()
            raise Refused("conflict", "another window has changed these images since: this cannot be redone any more")
        needed = [self._classes[i] for i in (change.class_id, change.merged) if i != NO_LABEL]
        if gone := next((one for one in needed if one.is_removed), None):
            stack.pop()
            raise Refused("conflict", f"there is no class '{gone.name}' any more: this cannot be redone")
        return stack[-1]

    def can_undo(self, window: str) -> bool:
        """Return whether a window has something to undo."""
        return window in self._stacks and bool(self._stacks[window].undo)

    def can_redo(self, window: str) -> bool:
        """Return whether a window has something to redo."""
        return window in self._stacks and bool(self._stacks[window].redo)

    def changed_by(self, image: int) -> str:
        """Return the window that has changed an image last, "" for none."""
        return self._windows.get(int(self.version[image]), "")

    @property
    def classes(self) -> list[tuple[int, LabelClass]]:
        """The classes with their ids, in the order in which they were added."""
        return [(i, one) for i, one in enumerate(self._classes) if not one.is_removed]

    @property
    def class_names(self) -> list[str]:
        """The name of each class id, of removed classes too."""
        return [one.name for one in self._classes]

    def has_class(self, class_id: int) -> bool:
        """Return whether a class was neither removed nor merged into another one."""
        return not self._classes[class_id].is_removed

    def find_class(self, name: str) -> int | None:
        """Return the id of a class, None if there is no such class."""
        return next((i for i, one in self.classes if one.name == name), None)

    def class_id(self, name: str) -> int:
        """Return the id of a class. Raises `Refused`."""
        found = self.find_class(name)
        if found is None:
            raise Refused("unknown", f"there is no class '{name}'")
        return found

    def class_counts(self) -> NDArray[np.intp]:
        """Return the number of images of each class id."""
        return np.bincount(self.label[self.label >= 0], minlength=len(self._classes))

    def check_name(self, name: str, *, other_than: int | None = None) -> str:
        """Return the name of a new class as it is written. Raises `Refused` for one that cannot be used.

        `other_than`: the class that gets the name.
        """
        return check_class_name(name, [one.name for i, one in self.classes if i != other_than])

    def _class_of(self, name: str | None) -> int:
        """The id of a class in an event. A journal that was edited by hand may name one that was never added."""
        found = self.find_class(name or "")
        return self._add_class(name or "") if found is None else found

    def _add_class(self, name: str, key: str | None = None) -> int:
        self._classes.append(LabelClass(name, self._free_key() if key is None else key))
        return len(self._classes) - 1

    def _free_key(self) -> str:
        taken = {one.key for _, one in self.classes}
        return next((sign for sign in KEYS if sign not in taken), "")
