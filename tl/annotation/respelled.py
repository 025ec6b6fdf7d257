"""Find images again whose names have another Unicode form than before, as after a copy between macOS and Linux.

The journal keeps the old names, and an event `rename_images` that says which names they are now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tl.annotation.journal import Event
from tl.annotation.photos import Photos
from tl.runtime.sources.names import composed

RENAME = "rename_images"


def find_respelled(photos: Photos, events: Sequence[Event]) -> dict[str, str]:
    """Return the present name of each image of a journal that is in the folder under another Unicode form of its name.

    None whose name could mean several images, of the journal or of the folder, or whose present name is in use.
    """
    acted = {name for event in events if event.do != RENAME for name in event.images}
    named = {name for event in events for name in event.drawn or ()}
    named |= {one.partition(" ")[2] for event in events for one in event.prints or ()}
    gone = _by_composed(name for name in sorted(acted | named) if name not in photos.index)
    present = _by_composed(photos.names) if gone else {}
    pairs = ((names, present.get(key, [])) for key, names in gone.items())
    return {old[0]: now[0] for old, now in pairs if len(old) == len(now) == 1 and now[0] not in acted}


def with_present_names(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return the events with the present names of images, but for the names that a `rename_images` begins with."""
    present: dict[str, str] = {}
    found = []
    for event in reversed(events):  # a name may have come back since, for another image
        found.append(_renamed(event, present) if present else event)
        if event.do == RENAME:
            present |= dict(zip(event.images, found[-1].renamed or (), strict=True))
    return tuple(reversed(found))


def _by_composed(names: Iterable[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name in names:
        found[composed(name)].append(name)
    return found


def _renamed(event: Event, present: Mapping[str, str]) -> Event:
    def rename(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(present.get(name, name) for name in names)

    prints = [one.partition(" ") for one in event.prints or ()]
    return replace(
        event,
        images=event.images if event.do == RENAME else rename(event.images),
        renamed=event.renamed and rename(event.renamed),
        drawn=event.drawn and rename(event.drawn),
        prints=event.prints and tuple(f"{known} {present.get(name, name)}" for known, _, name in prints),
    )
