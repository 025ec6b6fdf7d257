"""What the events of a review make of each image: decisions, notes, versions, and what can be undone.

Knows no files and no problems.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from tl.annotation.journal import Event
from tl.annotation.page_requests import Refused
from tl.annotation.reviewed import Decision, Do, find_lost

DECIDING: tuple[str, ...] = get_args(Do)
ACTING = (*DECIDING, "note")


class ReviewLog:
    """The events so far. `places`: name of each image -> its place. Not thread-safe.

    An action may consist of several events; its number is that of the first one. `ignored`: how many events name images
    that the data does not have any more.
    """

    def __init__(self, places: Mapping[str, int], events: Iterable[Event] = ()) -> None:
        self._places = places
        self._actions: dict[int, list[Event]] = {}
        self._undone: set[int] = set()
        self._of_image: dict[int, list[Event]] = {}
        self._versions: dict[int, int] = {}
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
        found = self._known(event)
        is_lost = event.do in ("duplicate", "group") and event.of not in self._places
        if len(found) < len(event.images) or is_lost:
            self.ignored += 1
        if is_lost or not found:
            return ()
        number = _number(event)
        if number not in self._actions:
            self._can_undo.setdefault(event.window, []).append(number)
            self._can_redo.pop(event.window, None)
        self._actions.setdefault(number, []).append(event)
        for place in found:
            self._of_image.setdefault(place, []).append(event)
            self._versions[place] = event.n
        return found

    def _turn(self, event: Event, number: int) -> tuple[int, ...]:
        """Undo or redo the action of a number."""
        source, target = (self._can_undo, self._can_redo) if event.do == "undo" else (self._can_redo, self._can_undo)
        if number in source.get(event.window, ()):
            source[event.window].remove(number)
        target.setdefault(event.window, []).append(number)
        (self._undone.add if event.do == "undo" else self._undone.discard)(number)
        found = tuple(place for acted in self._actions[number] for place in self._known(acted))
        self._versions |= dict.fromkeys(found, event.n)
        return found

    def _known(self, event: Event) -> tuple[int, ...]:
        return tuple(self._places[name] for name in event.images if name in self._places)

    def version(self, place: int) -> int:
        """Number of the last event on an image, 0 for none: who sends an older one has not seen the image as it is."""
        return self._versions.get(place, 0)

    def decision(self, place: int) -> Decision | None:
        """What holds for an image."""
        event = self._last(place, DECIDING, self._undone)
        return None if event is None else self._decision(event)

    def decisions(self, turned: int | None = None) -> dict[int, Decision]:
        """What holds for each image that was decided about, in the order of the decisions.

        `turned`: what would hold if the action of this number were undone, or redone if it is undone now.
        """
        undone = self._undone if turned is None else self._undone ^ {turned}
        events = {place: self._last(place, DECIDING, undone) for place in self._of_image}
        held = sorted((event.n, place, event) for place, event in events.items() if event is not None)
        return {place: self._decision(event) for _, place, event in held}

    def note(self, place: int) -> str:
        """The note on an image, "" if it has none."""
        event = self._last(place, ("note",), self._undone)
        return "" if event is None else event.text or ""

    def notes(self) -> dict[int, str]:
        """All notes, by image."""
        return {place: note for place in sorted(self._of_image) if (note := self.note(place))}

    def can_turn(self, window: str, do: str) -> bool:
        """Whether a window has something to undo or redo."""
        return bool(self._stack(window, do))

    def check_turn(self, window: str, do: str) -> int:
        """Return the number of the action that an undo or redo of a window concerns. Raises `Refused`.

        One that was refused is not offered again, so that the window can go on with the one before it.
        """
        stack = self._stack(window, do)
        if not stack:
            raise Refused("conflict", f"there is nothing to {do}")
        never = f"this cannot be {'undone' if do == 'undo' else 'done again'} any more"
        if self._is_overtaken(stack[-1], do):
            stack.pop()
            raise Refused("conflict", f"these images have been changed since: {never}")
        if find_lost(self.decisions(stack[-1])) - find_lost(self.decisions()):
            stack.pop()
            raise Refused("conflict", f"both images of a pair of duplicates would be lost: {never}")
        return stack[-1]

    def _stack(self, window: str, do: str) -> list[int]:
        return (self._can_undo if do == "undo" else self._can_redo).get(window, [])

    def _is_overtaken(self, number: int, do: str) -> bool:
        """Whether a later action holds for one of the images, so that an undo or redo would not change it."""
        for event in self._actions[number]:
            kinds = DECIDING if event.do in DECIDING else (event.do,)
            for place in self._known(event):
                top = self._last(place, kinds, self._undone)
                if top is not event if do == "undo" else top is not None and top.n > event.n:
                    return True
        return False

    def _last(self, place: int, kinds: tuple[str, ...], undone: set[int]) -> Event | None:
        for event in reversed(self._of_image.get(place, ())):
            if _number(event) not in undone and event.do in kinds:
                return event
        return None

    def _decision(self, event: Event) -> Decision:
        of = self._places[event.of] if isinstance(event.of, str) else None
        return Decision(event.do, event.label or "", of)  # type: ignore[arg-type]  # checked by the journal


def _number(event: Event) -> int:
    """The number of the action that an event is part of."""
    return event.n if event.first is None else event.first
