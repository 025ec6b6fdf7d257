"""A review of labels: the problems of a data set, what people decide about each, and the files that come of it.

Every decision is in the journal before anyone is told that it is kept; the other files follow within a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tl.annotation.journal import Event
from tl.annotation.refusals import Refused
from tl.annotation.review_items import ReviewItems, check_new_class, trust
from tl.annotation.review_log import DECIDING, ReviewLog
from tl.annotation.review_output import DelayedWriter, ReviewOutput
from tl.annotation.review_table import ReviewTable, place_key
from tl.annotation.reviewed import Change, Decision, Remark, list_changes, write_changes, write_reviewed
from tl.errors import OutputError

# An image and the version of it that the person has seen.
Seen = tuple[int, int]
ACCEPT = "accept"
ACTIONS = (*DECIDING, ACCEPT)
MAX_NOTE = 2000


@dataclass(frozen=True)
class Outcome:
    """What an action did. `changed`, `conflicts`: places of images; conflicts were changed by another window since."""

    changed: tuple[int, ...] = ()
    conflicts: tuple[int, ...] = ()
    events: tuple[Event, ...] = field(default=(), repr=False)


class Review:
    """A review in progress. Thread-safe. `close` writes what is left; the output's own `close` comes after it.

    `on_change`: called with the revision after each change, from any thread. `fault`: why the output could not be
    written, "" if it could.
    """

    def __init__(
        self,
        items: ReviewItems,
        table: ReviewTable,
        output: ReviewOutput,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.items, self.table, self.files = items, table, output.files
        self.revision, self.fault = 0, ""
        self.on_change: Callable[[int], None] = lambda revision: None
        self._lock, self._journal = threading.RLock(), output.journal
        self.places = {image.name: place for place, image in enumerate(items.images)}
        self._log = ReviewLog(self.places, output.events)
        self._batches: dict[int, tuple[int, ...]] = {}  # event -> all events of the same action
        if self._log.ignored:
            say(f"{self.files.journal}: {self._log.ignored} decisions are on images that the data does not have now")
        if count := len(self._log.decisions()):
            say(f"goes on with the {count} decisions in {self.files.journal}")
        self._writer = DelayedWriter(self.write)
        if output.has_actions:
            self._writer.ask()

    def close(self) -> None:
        """Write what is not yet written."""
        self._writer.close()

    # What there is

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the data, and those that decisions have added."""
        with self._lock:
            new = {made.label for made in self._log.decisions().values() if made.do == "relabel"}
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
            turns = {do: self._log.next_turn(window, do) is not None for do in ("undo", "redo")}
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
        for place, image in enumerate(self.items.images):
            made = decisions.get(place)
            if made is None or not made.removes:
                label = made.label if made is not None and made.do == "relabel" else image.label
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
        now = made.label if made is not None and made.do == "relabel" else image.label
        return facts | {"now": None if made is not None and made.removes else now}

    def _is_equal(self, one: int, other: int) -> bool:
        hashes = self.items.evidence.hashes
        return max(one, other) < len(hashes) and hashes[one] == hashes[other]

    def changes(self) -> tuple[Change, ...]:
        """Everything that was decided, in the order of the data."""
        with self._lock:
            return self._list_changes(*self._in_table())

    # What people do

    def decide(self, window: str, seen: Sequence[Seen], do: str, label: str = "", of: int | None = None) -> Outcome:
        """Decide about images. `do`: one of `ACTIONS`; `accept` gives each image its suggested label.

        `label`: of relabel. `of`: for duplicate and group, None for the other image of each pair.
        Raises `Refused` for what cannot be meant, `OutputError` if the journal cannot be written.
        """
        with self._lock:
            conflicts = tuple(place for place, version in seen if self._log.version(place) != version)
            wanted = [place for place, _ in seen if place not in conflicts]
            asked = self._ask(wanted, do, label, of)
            done = self._append(window, asked)
        return Outcome(
            tuple(place for places in done for place in places[1]), conflicts, tuple(event for event, _ in done)
        )

    def _ask(self, places: Sequence[int], do: str, label: str, of: int | None) -> list[tuple[Decision, list[int]]]:
        """Return decisions and the images that each is for. Raises `Refused`."""
        if do == "relabel" and (why := check_new_class(label, self.class_names)):
            raise Refused("invalid", f"'{label[:100]}': {why}")
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
        return Decision(do, of=other)  # type: ignore[arg-type]  # one of ACTIONS

    def _check_none_is_lost(self, asked: Mapping[Decision, Sequence[int]]) -> None:
        """Raise `Refused` if images were removed as duplicates of each other, directly or by way of others."""
        if all(made.do != "duplicate" for made in asked):
            return
        decisions = self._log.decisions() | {place: made for made, places in asked.items() for place in places}
        for made, places in asked.items():
            if made.do == "duplicate":
                for place in places:
                    self._check_is_left(place, decisions)

    def _check_is_left(self, place: int, decisions: Mapping[int, Decision]) -> None:
        passed, other = {place}, decisions[place].of
        while other is not None and other in decisions and decisions[other].do == "duplicate":
            if other in passed:
                break
            passed.add(other)
            other = decisions[other].of
        if other in passed:
            raise Refused(
                "conflict",
                f"{self.items.images[place].name}: its duplicate was itself removed as a duplicate: both would be "
                "lost; keep one of them",
            )

    def _append(self, window: str, asked: Sequence[tuple[Decision, list[int]]]) -> list[tuple[Event, list[int]]]:
        """Write events and take them into account. What was written before a fault holds."""
        done: list[tuple[Event, list[int]]] = []
        try:
            for made, places in asked:
                names = tuple(self.items.images[place].name for place in places)
                event = self._journal.append(
                    Event(
                        do=made.do,
                        window=window,
                        images=names,
                        label=made.label if made.do == "relabel" else None,
                        of=None if made.of is None else self.items.images[made.of].name,
                    )
                )
                self._log.apply(event)
                done.append((event, places))
        finally:
            if done:
                batch = tuple(event.n for event, _ in done)
                self._batches |= dict.fromkeys(batch, batch)
                self._changed()
        return done

    def write_note(self, window: str, seen: Seen, text: str) -> Outcome:
        """Keep a note on an image; an empty one removes it. Raises `Refused`, `OutputError`."""
        place, version = seen
        if len(text) > MAX_NOTE:
            raise Refused("invalid", f"a note has at most {MAX_NOTE:,} characters, found {len(text):,}")
        with self._lock:
            if self._log.version(place) != version:
                return Outcome(conflicts=(place,))
            name = self.items.images[place].name
            event = self._journal.append(Event(do="note", window=window, images=(name,), text=text.strip()))
            self._log.apply(event)
            self._changed()
        return Outcome((place,), events=(event,))

    def turn(self, window: str, do: str) -> Outcome:
        """Undo or redo the last action of a window. Raises `Refused`, `OutputError`."""
        with self._lock:
            found = self._log.next_turn(window, do)
            if found is None:
                raise Refused("conflict", f"there is nothing to {do}")
            batch = self._batches.get(found[0], (found[0],))
            changed: dict[int, None] = {}
            events: list[Event] = []
            for _ in batch:
                found = self._log.next_turn(window, do)
                if found is None or found[0] not in batch:
                    break
                if found[1]:
                    if not events:
                        raise Refused("conflict", "another window has changed these images since")
                    break
                events.append(self._journal.append(Event(do=do, window=window, of=found[0])))
                changed |= dict.fromkeys(self._log.apply(events[-1]))
            self._changed()
        return Outcome(tuple(changed), events=tuple(events))

    # Files

    def _changed(self) -> None:
        self.revision += 1
        self._writer.ask()
        self.on_change(self.revision)

    def _in_table(self) -> tuple[dict[int, Decision], dict[int, Remark]]:
        """Decisions and remarks by the row of the table."""
        rows = {
            place: self.table.places[key]
            for place, image in enumerate(self.items.images)
            if (key := place_key(image)) in self.table.places
        }
        decisions, notes = self._log.decisions(), self._log.notes()
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
        return in_table, remarks

    def _list_changes(self, decisions: dict[int, Decision], remarks: dict[int, Remark]) -> tuple[Change, ...]:
        return list_changes(self.table, decisions, remarks)

    def write(self) -> None:
        """Write the output and its changes now. A fault is kept in `fault`: the journal has everything."""
        with self._lock:
            decisions, remarks = self._in_table()
        title = f"Changes of labels: {self.table.source.name} to {self.files.output.name}"
        try:
            write_reviewed(self.table, decisions, self.files.output)
            write_changes(self._list_changes(decisions, remarks), self.files, title)
            fault = ""
        except OutputError as error:
            fault = str(error)
        if fault != self.fault:
            self.fault = fault
            self.revision += 1
            self.on_change(self.revision)
