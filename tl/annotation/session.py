"""A session of labeling: everything the page asks for, for several windows at once. Knows no HTTP.

Actions wait for the disk and for nothing else: features, heads, estimates and labels.csv are made by threads of their
own. `opening` opens a session and closes it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.annotation import views
from tl.annotation.estimate import MIN_RANDOM
from tl.annotation.exports import Exports, Snapshot, take_snapshot
from tl.annotation.features import FeatureWork, OpenSource
from tl.annotation.journal import Event, Journal
from tl.annotation.labels import LABELED, OPEN, SKIPPED, UNSURE, Labels
from tl.annotation.learning import LabelState, Learning
from tl.annotation.model_job import MakeModel, ModelJob
from tl.annotation.model_making import Method, make_model
from tl.annotation.outputs import Writer
from tl.annotation.page_requests import Refused, Seen, check_note, check_window, spell
from tl.annotation.photos import Photos
from tl.annotation.queue import Queue
from tl.annotation.selection import RANDOM_SHARE, RULE_NAME, RULE_SOURCE
from tl.text import encodable

Do = Literal["label", "clear", "unsure", "skip"]
ClassDo = Literal["add", "rename", "merge", "remove"]
Record = dict[str, Any]
MAX_RECORDS, MAX_IMAGES = 400, 2000


@dataclass(frozen=True)
class Done:
    """The answer to an action: the event, None if nothing was changed, the changed images, and those in conflict."""

    revision: int
    event: int | None
    records: list[Record]
    conflicts: list[Record]


@dataclass(frozen=True)
class Begun:
    """What a session begins with: its photos and output, the journal with what it contained, and the images reserved.

    `reserve`: in random order. `seed`: of everything that is drawn.
    """

    photos: Photos
    output: Path
    journal: Journal
    labels: Labels
    reserve: NDArray[np.intp]
    seed: int


class LabelSession:
    """Labels, what was learned from them, and what is written of them. Thread-safe.

    `opens`: opens what computes features, None for a session without. `revision` counts changes of any kind.
    """

    def __init__(
        self,
        begun: Begun,
        opens: OpenSource | None,
        make: MakeModel = make_model,
    ) -> None:
        self.photos, self.output = begun.photos, begun.output
        self.labels = begun.labels
        self.revision = 1
        self._journal, self._order = begun.journal, begun.reserve
        self._lock, self._counting = threading.RLock(), threading.Lock()
        count = len(begun.photos)
        self._groups = tuple(map(begun.photos.group, range(count))) if begun.photos.has_groups else ()
        self.reserved = np.zeros(count, bool)
        self.reserved[begun.reserve] = True
        rest = np.random.default_rng(begun.seed).permutation(np.flatnonzero(~self.reserved))
        self._queue = Queue(begun.reserve, rest, RANDOM_SHARE)
        self.work = FeatureWork(begun.photos.paths, opens, self._more_features)
        self._sources = views.ViewSources(begun.photos, begun.labels, self.work, self.reserved)
        self._learning = Learning(count, lambda: self.work.features, begun.seed, self._label_state, self._changed)
        self._exports = Exports(begun.output, begun.photos)
        self._writer = Writer(lambda: self._exports.write(self._snapshot()), self._changed)
        self._model = ModelJob(begun.output, make, self._changed)

    def start(self) -> None:
        """Write the files as the journal has them, and begin to compute. Raises `OutputError`."""
        self._writer.write_now()
        self.work.start()
        self._learning.start()

    def agrees_with_output(self) -> bool:
        """Return whether the output has the labels and notes of this session, but for images that are gone."""
        return self._exports.agrees(self._snapshot(), self.labels.absent)

    def close(self) -> None:
        """Stop everything, and write the files for the last time. Raises `OutputError`."""
        try:
            self._model.close()
            self.work.close()
            self._learning.close()
        finally:
            if self._exports.leave_out_none():
                self._writer.wake()
            self._writer.close()

    def _changed(self) -> None:
        with self._counting:
            self.revision += 1

    def _more_features(self) -> None:
        self._learning.wake(is_label=False)
        self._changed()

    def _snapshot(self) -> Snapshot:
        with self._lock:
            return take_snapshot(self.labels, self.reserved, self._is_random())

    def _label_state(self) -> LabelState:
        with self._lock:
            labels = self.labels
            names = tuple(labels.class_names)
            return LabelState(
                labels.label.copy(), labels.status.copy(), self.reserved, self._is_random(), names, self._groups
            )

    def _is_random(self) -> NDArray[np.bool_]:
        """Which labels are a random sample: those of the images in `_decided`."""
        found = np.zeros(len(self.photos), bool)
        decided = self._decided()
        found[decided[self.labels.status[decided] == LABELED]] = True
        return found

    def _decided(self) -> NDArray[np.intp]:
        """The images of the reserve, as far as no image before them in its order is open.

        Images that somebody picked from the reserve, out of order, count once those before them are decided.
        """
        is_open = self._open_reserve()
        return self._order[: int(is_open.argmax()) if is_open.any() else len(is_open)]

    def _open_reserve(self) -> NDArray[np.bool_]:
        """Which images of the reserve are to be decided, in its order."""
        failed = self.work.errors
        is_failed = np.array([i in failed for i in self._order.tolist()], bool)
        return np.asarray((self.labels.status[self._order] == OPEN) & ~is_failed)

    def act(
        self, window: str, images: Sequence[Seen], do: Do, *, label: str | None = None, confirmed: bool = False
    ) -> Done:
        """Label images, clear their labels, or set them aside. A new label becomes a class.

        Images that another window has changed since are left as they are. Raises `Refused`, `OutputError`.
        """
        check_window(window)
        if not 0 < len(images) <= MAX_IMAGES:
            raise Refused("invalid", f"an action is of 1 to {MAX_IMAGES} images")
        if (label is None) == (do == "label"):
            raise Refused("invalid", "a label is given exactly if images are labeled")
        self._check_ids([seen.id for seen in images])
        with self._lock:
            mine, theirs = self._split(window, images)
            if do == "clear":
                mine = [i for i in mine if self.labels.status[i] != OPEN]
            if not mine:
                return Done(self.revision, None, [], self._records(theirs))
            name = None if label is None else self._own_class(window, label)
            event = Event(do=do, window=window, images=self._names(mine), label=name)
            if do == "label":
                event = replace(event, confirmed=confirmed)
            return self._keep(event if do == "clear" else self._with_guesses(event, mine), theirs)

    def note(self, window: str, seen: Seen, text: str) -> Done:
        """Set the note of an image; "" removes it. Raises `Refused`, `OutputError`."""
        check_window(window)
        self._check_ids([seen.id])
        text = check_note(text)
        with self._lock:
            mine, theirs = self._split(window, [seen])
            if not mine:
                return Done(self.revision, None, [], self._records(theirs))
            return self._keep(Event(do="note", window=window, images=self._names(mine), text=text))

    def undo(self, window: str) -> Done:
        """Undo the last action of a window. Raises `Refused`, `OutputError`."""
        check_window(window)
        with self._lock:
            return self._keep(Event(do="undo", window=window, of=self.labels.check_undo(window)))

    def redo(self, window: str) -> Done:
        """Do again what a window has undone last. Raises `Refused`, `OutputError`."""
        check_window(window)
        with self._lock:
            return self._keep(Event(do="redo", window=window, of=self.labels.check_redo(window)))

    def change_class(self, window: str, do: ClassDo, name: str, new_name: str | None) -> Done:
        """Add, rename or remove a class, or merge it into the class `new_name`. Raises `Refused`, `OutputError`."""
        check_window(window)
        if (new_name is None) == (do in ("rename", "merge")):
            raise Refused("invalid", "a new name is given exactly if a class is renamed or merged")
        with self._lock:
            if do == "add":
                return self._keep(Event(do="add_class", window=window, name=self.labels.check_name(name)))
            class_id = self.labels.class_id(name)
            if do == "rename":
                new = self.labels.check_name(new_name or "", other_than=class_id)
                return self._keep(Event(do="rename_class", window=window, old=name, new=new))
            if do == "merge":
                if self.labels.class_id(new_name or "") == class_id:
                    raise Refused("invalid", "a class cannot be merged with itself")
                return self._keep(Event(do="merge_class", window=window, old=name, new=new_name))
            if count := int(self.labels.class_counts()[class_id]):
                raise Refused("conflict", f"{count} images have the label '{name}': label them otherwise first")
            return self._keep(Event(do="remove_class", window=window, name=name))

    def _check_ids(self, ids: Sequence[int]) -> None:
        if any(not 0 <= i < len(self.photos) for i in ids):
            raise Refused("unknown", "there is no such image")
        if len(set(ids)) < len(ids):
            raise Refused("invalid", "an image is given twice")

    def _split(self, window: str, images: Sequence[Seen]) -> tuple[list[int], list[int]]:
        """Return the images as the window knows them, and those that another window has changed since."""
        mine: list[int] = []
        theirs: list[int] = []
        for seen in images:
            is_known = seen.version == self.labels.version[seen.id] or self.labels.changed_by(seen.id) == window
            (mine if is_known else theirs).append(seen.id)
        return mine, theirs

    def _own_class(self, window: str, label: str) -> str:
        """Return the name of a class, which is added if it is new."""
        if self.labels.find_class(spell(label)) is not None:
            return spell(label)
        name = self.labels.check_name(label)
        self._keep(Event(do="add_class", window=window, name=name))
        return name

    def _names(self, images: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.photos.names[i] for i in images)

    def _with_guesses(self, event: Event, images: Sequence[int]) -> Event:
        """Add to an event what the head says of images of the reserve without a label, which nobody has been told."""
        learned = self._learning.learned
        blind = [bool(self.reserved[i] and self.labels.status[i] != LABELED) for i in images]
        if not any(blind):
            return event
        top = [learned.top(i, 1) if is_blind else [] for i, is_blind in zip(images, blind, strict=True)]
        names = self.labels.class_names
        predicted = tuple(names[one[0][0]] if one else None for one in top)
        confidence = tuple(round(one[0][1], 4) if one else None for one in top)
        return replace(event, predicted=predicted, confidence=confidence)

    def _keep(self, event: Event, conflicts: Sequence[int] = ()) -> Done:
        """Put an event on disk, then carry it out. The lock must be held."""
        kept = self._journal.append(event)
        changed = self.labels.apply(kept)
        self._changed()
        self._writer.wake()
        self._learning.wake(is_label=True)
        return Done(self.revision, kept.n, self._records(changed.tolist()), self._records(conflicts))

    def _records(self, ids: Sequence[int]) -> list[Record]:
        return [views.record(self._sources, self._learning.learned, i) for i in ids]

    def records(self, ids: Sequence[int]) -> list[Record]:
        """Return what a page shows of images. Raises `Refused`."""
        if len(ids) > MAX_RECORDS:
            raise Refused("invalid", f"at most {MAX_RECORDS} images at once")
        self._check_ids(ids)
        with self._lock:
            return self._records(ids)

    def list_images(self, asked: views.Asked) -> tuple[int, list[int]]:
        """Return the revision and the images of a view. Raises `Refused`."""
        if asked.view == "similar":
            self._check_ids(asked.like)
            return self.revision, views.similar(self._sources, asked.like)
        if asked.window:
            check_window(asked.window)
        self._check_ids(asked.kept)
        with self._lock:
            if asked.view == "next":
                is_open = self.labels.status == OPEN
                is_open[list(self.work.errors)] = False
                chosen = self._learning.learned.chosen
                return self.revision, self._queue.offer(asked.window, views.QUEUE, chosen, is_open, kept=asked.kept)
            return self.revision, views.listed(self._sources, self._learning.learned, asked).tolist()

    def state(self, window: str = "") -> dict[str, Any]:
        """Return what the page shows of the session as a whole."""
        learned = self._learning.learned
        features = self.work.features
        with self._lock:
            classes = views.class_rows(self._sources, learned)
            status = np.bincount(self.labels.status, minlength=4).tolist()
            decided = self._decided()
            set_aside = int((self.labels.status[decided] > LABELED).sum())
            counted = int(self._is_random().sum())
            reserve = {"size": len(self._order), "open": int(self._open_reserve().sum()), "counted": counted}
            reserve["needed"] = MIN_RANDOM
            undo, redo = self.labels.can_undo(window), self.labels.can_redo(window)
        return {
            "revision": self.revision,
            "folder": encodable(str(self.photos.root)),
            "output": encodable(str(self.output)),
            "output_error": encodable(self._writer.fault) or None,
            "num_images": len(self.photos),
            "classes": classes,
            "counts": {
                "labeled": status[LABELED],
                "unsure": status[UNSURE],
                "skipped": status[SKIPPED],
                "failed": len(self.work.errors),
            },
            "features": {
                "done": self.work.done,
                "total": len(self.photos),
                "images_per_s": features and features.images_per_s,
                "eta_s": features and features.eta_s,
                "error": encodable(self.work.error) or None,
            },
            "head": views.head_row(learned, self._learning.is_fitting),
            "estimate": views.estimate_row(learned, set_aside),
            "reserve": reserve,
            "model": {name: encodable(text) for name, text in asdict(self._model.state).items()},
            "can_undo": undo,
            "can_redo": redo,
            "rule": {"name": RULE_NAME, "source_text": RULE_SOURCE, "random_share": RANDOM_SHARE},
        }

    def info(self, image: int) -> dict[str, Any]:
        """Return what a close look at an image shows: its file, and labeled images like it. Raises `Refused`."""
        self._check_ids([image])
        with self._lock:
            label, names = self.labels.label.copy(), self.labels.class_names
        return views.info(self._sources, image, label, names)

    def make_model(self, method: Method, name: str) -> None:
        """Begin to make a model from the labels so far. Raises `Refused`, `OutputError`."""
        self._model.start(method, name, self._write_for_model)

    def _write_for_model(self) -> str:
        """Write the labels of the images that are still there; returns which are left out."""
        left_out = self._exports.leave_out_lost(self._snapshot())
        self._writer.write_now()
        return left_out

    def cancel_model(self) -> None:
        """Cancel the model in the making. Raises `Refused`."""
        self._model.cancel()
