"""What the events of a review make of each image: decisions, notes, versions, and what can be undone.

Knows no files and no problems.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from tl.annotation.journal import Event
from tl.annotation.reviewed import Decision, Do

DECIDING: tuple[str, ...] = get_args(Do)
ACTING = (*DECIDING, "note")


class ReviewLog:
    """The events so far. `places`: name of each image -> its place. Not thread-safe.

    `ignored`: how many events name images that the data does not have any more.
    """

    def __init__(self, places: Mapping[str, int], events: Iterable[Event] = ()) -> None:
        self._places = places
        self._actions: dict[int, Event] = {}
        self._undone: set[int] = set()
        self._of_image: dict[int, list[int]] = {}  # numbers of the actions on an image
        self._touched: dict[int, Event] = {}  # the last event on an image, which may be an undo
        self._can_undo: dict[str, list[int]] = {}
        self._can_redo: dict[str, list[int]] = {}
        self.ignored = 0
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> tuple[int, ...]:
        """Take an event into account. Returns the places of the images that it concerns."""
        if event.do in ACTING:
            return self._act(event)
        if event.do in ("undo", "redo") and isinstance(event.of, int) and event.of in self._actions:
            return self._turn(event, event.of)
        return ()

    def _act(self, event: Event) -> tuple[int, ...]:
        found = tuple(self._places[name] for name in event.images if name in self._places)
        is_lost = event.do in ("duplicate", "group") and event.of not in self._places
        if len(found) < len(event.images) or is_lost:
            self.ignored += 1
        if is_lost or not found:
            return ()
        self._actions[event.n] = event
        for place in found:
            self._of_image.setdefault(place, []).append(event.n)
            self._touched[place] = event
        self._can_undo.setdefault(event.window, []).append(event.n)
        self._can_redo.pop(event.window, None)
        return found

    def _turn(self, event: Event, number: int) -> tuple[int, ...]:
        """Undo or redo the action of a number."""
        source, target = (self._can_undo, self._can_redo) if event.do == "undo" else (self._can_redo, self._can_undo)
        if number in source.get(event.window, ()):
            source[event.window].remove(number)
        target.setdefault(event.window, []).append(number)
        (self._undone.add if event.do == "undo" else self._undone.discard)(number)
        found = self.images_of(number)
        self._touched.update(dict.fromkeys(found, event))
        return found

    def images_of(self, number: int) -> tuple[int, ...]:
        """Places of the images of an action."""
        return tuple(self._places[name] for name in self._actions[number].images if name in self._places)

    def version(self, place: int) -> int:
        """Number of the last event on an image, 0 for none: who sends an older one has not seen the image as it is."""
        return self._touched[place].n if place in self._touched else 0

    def decision(self, place: int) -> Decision | None:
        """What holds for an image."""
        event = self._last(place, DECIDING)
        return None if event is None else self._decision(event)

    def decisions(self) -> dict[int, Decision]:
        """What holds for each image that was decided about, in the order of the decisions."""
        events = {place: self._last(place, DECIDING) for place in self._of_image}
        held = sorted((event.n, place, event) for place, event in events.items() if event is not None)
        return {place: self._decision(event) for _, place, event in held}

    def note(self, place: int) -> str:
        """The note on an image, "" if it has none."""
        event = self._last(place, ("note",))
        return "" if event is None else event.text or ""

    def notes(self) -> dict[int, str]:
        """All notes, by image."""
        return {place: note for place in sorted(self._of_image) if (note := self.note(place))}

    def next_turn(self, window: str, do: str) -> tuple[int, bool] | None:
        """Return the number of the action that an undo or redo of a window concerns, None if there is none.

        The second value is whether another window has changed one of these images since.
        """
        numbers = (self._can_undo if do == "undo" else self._can_redo).get(window)
        if not numbers:
            return None
        touched = (self._touched[place] for place in self.images_of(numbers[-1]))
        return numbers[-1], any(event.window != window for event in touched)

    def _last(self, place: int, kinds: tuple[str, ...]) -> Event | None:
        for number in reversed(self._of_image.get(place, ())):
            if number not in self._undone and self._actions[number].do in kinds:
                return self._actions[number]
        return None

    def _decision(self, event: Event) -> Decision:
        of = self._places[event.of] if isinstance(event.of, str) else None
        return Decision(event.do, event.label or "", of)  # type: ignore[arg-type]  # checked by the journal
