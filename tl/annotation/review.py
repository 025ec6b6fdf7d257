"""A review of labels: the problems of a data set, what people decide about each, and the files that come of it.

Every decision is in the journal before anyone is told that it is kept; the other files follow within a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl.annotation.journal import Event
from tl.annotation.outputs import Writer
from tl.annotation.page_requests import Refused, Seen, check_class_name, check_note
from tl.annotation.review_items import ReviewItems, trust
from tl.annotation.review_log import DECIDING, ReviewLog
from tl.annotation.review_output import ReviewOutput
from tl.annotation.review_table import ReviewTable, place_key
from tl.annotation.reviewed import Change, Decision, Remark, Result, find_lost
from tl.errors import OutputError

ACCEPT = "accept"
ACTIONS = (*DECIDING, ACCEPT)


@dataclass(frozen=True)
class Outcome:
    """What an action did. `changed`, `conflicts`: places of images; conflicts were changed by another window since."""

    changed: tuple[int, ...] = ()
    conflicts: tuple[int, ...] = ()


class Review:
    """A review in progress, of an output that it begins. Thread-safe. The output is closed after it.

    `revision` counts changes of any kind.
    """

    def __init__(
        self,
        items: ReviewItems,
        table: ReviewTable,
        output: ReviewOutput,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.items, self.table, self.files = items, table, output.files
        self.revision = 0
        self._lock, self._counting = threading.RLock(), threading.Lock()
        output.begin()
        self._journal = output.journal
        self.places = {image.name: place for place, image in enumerate(items.images)}
        self._log = ReviewLog(self.places, output.events)
        if self._log.ignored:
            say(f"{self.files.journal}: {self._log.ignored} decisions are on images that the data does not have now")
        if count := len(self._log.decisions()):
            say(f"goes on with the {count} decisions in {self.files.journal}")
        self._rows = {
            place: table.places[key]
            for place, image in enumerate(items.images)
            if (key := place_key(image)) in table.places
        }
        output.keep_edits(lambda: self._result().text(self.files.output))
        self._writer = Writer(lambda: self._result().write(self.files), self._count)
        if output.has_actions:
            self._writer.wake()

    def close(self) -> None:
        """Write what is not yet written. Raises `OutputError`."""
        try:
            self._writer.close()
        except OutputError as error:
            message = f"{error}; all decisions are in {self.files.journal}: run the same command again"
            raise OutputError(message) from error

    @property
    def fault(self) -> str:
        """Why the output could not be written the last time, "" if it could."""
        return self._writer.fault

    # What there is

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the data, and those that decisions have added."""
        with self._lock:
            new = {made.label for made in self._log.decisions().values()} - {""}
        known = self.items.evidence.class_names
        return (*known, *sorted(new - set(known)))

    def decisions(self) -> dict[int, Decision]:
        """What holds now, by place."""
        with self._lock:
            return self._log.decisions()

    def list_places(self, kind: str | None, status: str) -> tuple[int, ...]:
        """Places with a problem of a kind (None for any), most doubtful first. `status`: open, decided or all."""
        decisions = self.decisions()
        places = self.items.places(kind)
        if status == "open":
            return tuple(place for place in places if self.items.is_open(place, decisions, kind))
        return places if status == "all" else tuple(place for place in places if place in decisions)

    def state(self, window: str) -> dict[str, Any]:
        """What a page shows besides images."""
        with self._lock:
            decisions, notes = self._log.decisions(), self._log.notes()
            turns = {do: self._log.can_turn(window, do) for do in ("undo", "redo")}
        items = self.items
        kinds = [
            items.describe_kind(kind)
            | {
                "total": len(items.places(kind)),
                "open": sum(items.is_open(place, decisions, kind) for place in items.places(kind)),
            }
            for kind in items.kinds
        ]
        every = items.places(None)
        return {
            "revision": self.revision,
            "data": str(self.table.source),
            "output": str(self.files.output),
            "files": [str(path) for path in (self.files.output, self.files.changes, self.files.text)],
            "num_images": len(items.images),
            "classes": self._count_classes(decisions),
            "kinds": kinds,
            "total": len(every),
            "decided": len(every) - sum(items.is_open(place, decisions) for place in every),
            "counts": {do: sum(made.do == do for made in decisions.values()) for do in DECIDING},
            "notes": len(notes),
            "trust": trust(items.evidence),
            "source": items.evidence.source,
            "fault": self.fault,
            "can_undo": turns["undo"],
            "can_redo": turns["redo"],
        }

    def _count_classes(self, decisions: dict[int, Decision]) -> list[dict[str, Any]]:
        counts: dict[str, int] = dict.fromkeys(self.class_names, 0)
        for place in range(len(self.items.images)):
            made = decisions.get(place)
            if made is None or not made.removes:
                label = self.items.label_after(place, made)
                counts[label] = counts.get(label, 0) + 1
        return [{"name": name, "count": count} for name, count in counts.items()]

    def records(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """What a page shows of images."""
        with self._lock:
            return [self._record(place) for place in places]

    def _record(self, place: int) -> dict[str, Any]:
        items, made = self.items, self._log.decision(place)
        twin, suggested, shares = items.twin(place), items.suggestion(place), items.probabilities(place)
        return {
            **self._brief(place),
            "kinds": items.kinds_of(place),
            "reasons": items.reasons(place),
            "suggested": suggested,
            "confidence": shares.get(suggested) if suggested is not None else None,
            "label_confidence": shares.get(items.images[place].label),
            "top": list(shares.items())[:3],
            "neighbors": [self._brief(near) for near in items.neighbors(place)],
            "twin": None if twin is None else self._brief(twin) | {"is_equal": self._is_equal(place, twin)},
            "decision": None
            if made is None
            else {
                "do": made.do,
                "label": made.label,
                "of": None if made.of is None else items.images[made.of].name,
            },
            "note": self._log.note(place),
            "version": self._log.version(place),
        }

    def _brief(self, place: int) -> dict[str, Any]:
        image, made = self.items.images[place], self._log.decision(place)
        facts = {"id": place, "name": image.name, "label": image.label, "split": image.split, "group": image.group}
        return facts | {"now": None if made is not None and made.removes else self.items.label_after(place, made)}

    def _is_equal(self, one: int, other: int) -> bool:
        hashes = self.items.evidence.hashes
        return max(one, other) < len(hashes) and hashes[one] == hashes[other]

    def changes(self) -> tuple[Change, ...]:
        """Everything that was decided, in the order of the data."""
        return self._result().changes()

    # What people do

    def decide(self, window: str, seen: Sequence[Seen], do: str, label: str = "", of: int | None = None) -> Outcome:
        """Decide about images. `do`: one of `ACTIONS`; `accept` gives each image its suggested label.

        `label`: of relabel. `of`: for duplicate and group, None for the other image of each pair.
        Raises `Refused` for what cannot be meant, `OutputError` if the journal cannot be written.
        """
        with self._lock:
            conflicts = tuple(one.id for one in seen if self._log.version(one.id) != one.version)
            asked = self._ask([one.id for one in seen if one.id not in conflicts], do, label, of)
            self._append(window, asked)
        return Outcome(tuple(place for _, places in asked for place in places), conflicts)

    def _ask(self, places: Sequence[int], do: str, label: str, of: int | None) -> list[tuple[Decision, list[int]]]:
        """Return decisions and the images that each is for. Raises `Refused`."""
        if do == "relabel" and label not in self.class_names:
            label = check_class_name(label, self.class_names)
        asked: dict[Decision, list[int]] = {}
        for place in places:
            asked.setdefault(self._decision(place, do, label, of), []).append(place)
        self._check_none_is_lost(asked)
        return list(asked.items())

    def _decision(self, place: int, do: str, label: str, of: int | None) -> Decision:
        items, name = self.items, self.items.images[place].name
        if do == ACCEPT:
            suggested = items.suggestion(place)
            if suggested is None:
                raise Refused("invalid", f"{name}: has no suggested label: choose another action")
            return Decision("relabel", suggested)
        if do == "relabel":
            return Decision("keep") if label == items.images[place].label else Decision("relabel", label)
        if do not in ("duplicate", "group"):
            return Decision(do)  # type: ignore[arg-type]  # one of ACTIONS
        other = items.twin(place) if of is None else of
        if other is None or other == place:
            raise Refused("invalid", f"{name}: has no other image that it could be a duplicate of")
        if do == "group" and self._is_equal(place, other):
            labels = {items.label_after(one, self._log.decision(one)) for one in (place, other)}
            if len(labels) > 1:
                why = f"is the same file as {items.images[other].name}, with another label"
                raise Refused("conflict", f"{name}: {why}: relabel or remove one of the two first")
        return Decision(do, of=other)  # type: ignore[arg-type]  # one of ACTIONS

    def _check_none_is_lost(self, asked: Mapping[Decision, Sequence[int]]) -> None:
        """Raise `Refused` if no copy of an image were left that was removed as a duplicate."""
        if not any(made.removes for made in asked):
            return
        before = self._log.decisions()
        after = before | {place: made for made, places in asked.items() for place in places}
        lost = find_lost(after) - find_lost(before)
        if lost:
            raise Refused(
                "conflict",
                f"{self.items.images[min(lost)].name}: its duplicate is removed too: both would be lost; keep one of "
                "them, or remove each without naming the other",
            )

    def _append(self, window: str, asked: Sequence[tuple[Decision, list[int]]]) -> None:
        """Write the events of one action, all or none, and take them into account."""
        if not asked:
            return
        images = self.items.images
        events = self._journal.append_all(
            [
                Event(
                    do=made.do,
                    window=window,
                    images=tuple(images[place].name for place in places),
                    label=made.label or None,
                    of=None if made.of is None else images[made.of].name,
                )
                for made, places in asked
            ]
        )
        for event in events:
            self._log.apply(event)
        self._changed()

    def write_note(self, window: str, seen: Seen, text: str) -> Outcome:
        """Keep a note on an image; an empty one removes it. Raises `Refused`, `OutputError`."""
        place, text = seen.id, check_note(text)
        with self._lock:
            if self._log.version(place) != seen.version:
                return Outcome(conflicts=(place,))
            name = self.items.images[place].name
            event = self._journal.append(Event(do="note", window=window, images=(name,), text=text))
            self._log.apply(event)
            self._changed()
        return Outcome((place,))

    def turn(self, window: str, do: str) -> Outcome:
        """Undo or redo the last action of a window, all of it. Raises `Refused`, `OutputError`."""
        with self._lock:
            event = self._journal.append(Event(do=do, window=window, of=self._log.check_turn(window, do)))
            changed = self._log.apply(event)
            self._changed()
        return Outcome(changed)

    # Files

    def _changed(self) -> None:
        self._count()
        self._writer.wake()

    def _count(self) -> None:
        with self._counting:
            self.revision += 1

    def _result(self) -> Result:
        """What the decisions make of the table, and remarks on its images."""
        with self._lock:
            decisions, notes = self._log.decisions(), self._log.notes()
        rows = self._rows
        in_table = {
            rows[place]: Decision(made.do, made.label, None if made.of is None else rows[made.of])
            for place, made in decisions.items()
            if place in rows and (made.of is None or made.of in rows)
        }
        remarks = {
            rows[place]: Remark(self.items.kinds_of(place), " ".join(self.items.reasons(place)), notes.get(place, ""))
            for place in {*decisions, *notes}
            if place in rows
        }
        return Result(self.table, in_table, remarks)
