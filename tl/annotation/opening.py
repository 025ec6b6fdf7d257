"""Open a session of labeling: its files, what they contain already, and the reserve; close it in order."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tl import __version__
from tl.annotation.exports import journal_path
from tl.annotation.feature_work import OpenSource
from tl.annotation.journal import Event, Journal
from tl.annotation.labels import IMPORT, LABELED, Labels
from tl.annotation.model_job import MakeModel
from tl.annotation.model_making import make_model
from tl.annotation.photos import Photos, list_photos
from tl.annotation.refusals import Refused
from tl.annotation.reserve import draw_limit, reserved_images, with_groups
from tl.annotation.session import START, Begun, LabelSession
from tl.data.manifests import read_images
from tl.errors import ConfigError, DataError, OutputError
from tl.runtime.output.claim import claim_output
from tl.runtime.output.files import output_errors

GROUPS = "folder"
# Longer than it takes until an action is in the output.
_SECONDS_TO_WRITE = 3.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class SessionPlan:
    """What a session is opened with. `classes`: added to those of the journal. `labels`: a data set to begin with.

    `has_groups`: images of one sub-folder are one group. `overwrite`: set an existing session aside, and begin anew.
    `seed`: of the random draw; None for one that nobody knows.
    """

    photos: Path
    output: Path
    classes: Sequence[str] = ()
    labels: Path | None = None
    has_groups: bool = False
    overwrite: bool = False
    seed: int | None = None


@contextmanager
def open_session(
    plan: SessionPlan, opens: OpenSource | None, say: Say = lambda line: None, make: MakeModel = make_model
) -> Iterator[LabelSession]:
    """Open or go on with a session, which begins to compute; at the end, stop it and write its files.

    `opens`: opens what computes features, None for none. `make`: makes a model. Raises
    `DataError`, `ConfigError`, `OutputError`.
    """
    if plan.output.suffix.lower() != ".csv":
        raise ConfigError(f"{plan.output}: labels are written as CSV: give a name that ends in .csv")
    photos = list_photos(plan.photos, has_groups=plan.has_groups, say=say)
    with ExitStack() as stack:
        stack.enter_context(claim_output(journal_path(plan.output)))
        _make_way(plan, say)
        # What can be refused is refused before there is a journal.
        first = None if _has_begun(plan.output) else _draw(plan, photos, say)
        last_event = _modified(journal_path(plan.output))
        journal, events = Journal.open(journal_path(plan.output))
        stack.enter_context(closing(journal))
        if journal.repaired:
            say(journal.repaired)
        if events:
            begun = _go_on(plan, photos, journal, events, say)
        else:
            begun = _begin(plan, photos, journal, first or _draw(plan, photos, say))
        session = LabelSession(begun, opens, make)
        stack.enter_context(closing(session))
        _keep_edits(session, last_event, say)
        session.start()
        yield session


def _make_way(plan: SessionPlan, say: Say) -> None:
    """Check that nobody's labels are replaced, and set aside what is to be replaced."""
    journal = journal_path(plan.output)
    if plan.overwrite:
        for path in (journal, plan.output):
            if os.path.lexists(path):
                aside = _free_name(path)
                with output_errors(path):
                    path.rename(aside)
                say(f"{path.name} is now {aside.name}")
        return
    is_taken_over = plan.labels is not None and plan.labels.exists() and plan.output.exists()
    is_taken_over = is_taken_over and plan.labels is not None and plan.output.samefile(plan.labels)
    if plan.output.exists() and not _has_begun(plan.output) and not is_taken_over:
        raise OutputError(
            f"{plan.output}: exists, without the journal of a session ({journal.name}): take over its labels, give "
            "another name, or set it aside",
            options=[f"import={plan.output}", "overwrite"],
        )


def _free_name(path: Path) -> Path:
    """`labels.csv` -> `labels.1.csv`, the first number that is free."""
    first, rest = path.name.split(".", 1)
    names = (path.with_name(f"{first}.{n}.{rest}") for n in range(1, 10_000))
    return next(name for name in names if not os.path.lexists(name))


def _has_begun(output: Path) -> bool:
    """Whether there is a journal with at least one event."""
    journal = journal_path(output)
    return journal.exists() and journal.stat().st_size > 0


@dataclass(frozen=True)
class _First:
    """The first events of a session, its seed, and the images that are never reserved, as they have labels."""

    events: Sequence[Event]
    seed: int
    limit: str
    known: set[int]


def _draw(plan: SessionPlan, photos: Photos, say: Say) -> _First:
    """Decide what a new session is about, and read the labels it takes over."""
    imported = {} if plan.labels is None else _read_labels(plan.labels, photos, say)
    names = _checked_classes([*plan.classes, *sorted(imported)])
    seed = secrets.randbelow(1 << 31) if plan.seed is None else plan.seed
    known = with_groups(photos, {i for images in imported.values() for i in images})
    limit = draw_limit(photos, seed, known)
    taken = [
        Event(do="label", window=IMPORT, images=tuple(photos.names[i] for i in images), label=label)
        for label, images in sorted(imported.items())
    ]
    opened = _opening(photos, classes=tuple(names), seed=seed, reserve=limit)
    return _First([opened, *taken], seed, limit, known)


def _modified(path: Path) -> float:
    """When a file was changed last, infinitely late if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def _keep_edits(session: LabelSession, begun_at: float, say: Say) -> None:
    """Copy an output that somebody has edited since the last session, as it is about to be written again.

    `begun_at`: when the journal was written last; a session that was killed leaves an output that is no newer.
    """
    output = session.output
    if not output.exists() or _modified(output) < begun_at + _SECONDS_TO_WRITE or session.agrees_with_output():
        return
    aside = _free_name(output)
    with output_errors(aside):
        shutil.copyfile(output, aside)
    say(f"{output.name} was edited since the last session, whose labels it gets again; the edited one is {aside.name}")


def _begin(plan: SessionPlan, photos: Photos, journal: Journal, first: _First) -> Begun:
    labels = Labels(photos)
    for event in first.events:
        labels.apply(journal.append(event))
    reserve = reserved_images(photos, first.seed, first.limit, first.known)
    return Begun(photos, plan.output, journal, labels, reserve, first.seed)


def _opening(photos: Photos, **first: object) -> Event:
    root = photos.root.absolute().name
    values = {"version": __version__, "root": root, "num_images": len(photos), **first}
    if photos.has_groups:
        values["groups"] = GROUPS
    return Event(do="open", window=START, **values)  # type: ignore[arg-type]


def _checked_classes(names: Sequence[str]) -> list[str]:
    """Return names of classes without repetitions. Raises `ConfigError` for one that cannot be used."""
    labels = Labels(Photos(Path(), []))
    for number, name in enumerate(dict.fromkeys(names), 1):
        try:
            labels.apply(Event(do="add_class", name=labels.check_name(name), n=number))
        except Refused as refused:
            raise ConfigError(f"classes: {refused.reason}") from refused
    return labels.class_names


def _read_labels(source: Path, photos: Photos, say: Say) -> Mapping[str, list[int]]:
    """Return the images of each label of a data set, as far as they are among the photos. Raises `DataError`."""
    places = {os.path.realpath(path): i for i, path in enumerate(photos.paths)}
    found: dict[str, list[int]] = {}
    listed = read_images(source, say=say)
    if boxed := next((image for image in listed if image.box is not None or image.region is not None), None):
        raise DataError(f"{source}: labels boxes of images, as of {boxed.name}, and whole images are labeled here")
    seen: set[int] = set()
    for image in listed:
        place = places.get(os.path.realpath(image.path))
        if place is not None and place not in seen:
            seen.add(place)
            found.setdefault(" ".join(image.label.split()), []).append(place)
    if not seen:
        raise DataError(f"{source}: none of its {len(listed)} images are in {photos.root}")
    if len(seen) < len(listed):
        say(f"{source}: {len(listed) - len(seen)} of {len(listed)} images are not in {photos.root}: left out")
    return found


def _go_on(plan: SessionPlan, photos: Photos, journal: Journal, events: Sequence[Event], say: Say) -> Begun:
    """Bring the state back from the journal, and add what is new."""
    if plan.labels is not None:
        raise ConfigError(
            f"{journal.path}: the session has begun, and labels are taken over at its start only: leave import out, or "
            "begin anew",
            options=["overwrite"],
        )
    first = events[0]
    if first.do != "open" or first.seed is None:
        raise DataError(f"{journal.path} line 1: is not the beginning of a session of labeling")
    if first.groups and not photos.has_groups:
        photos = Photos(photos.root, photos.names, has_groups=True)
    if photos.has_groups and not first.groups:
        raise ConfigError(f"{journal.path}: the session was begun without groups: go on without, or give another name")
    labels = Labels(photos)
    for event in events:
        try:
            labels.apply(event)
        except (Refused, KeyError) as error:
            raise DataError(f"{journal.path} line {event.n}: does not fit the lines before it ({error})") from error
    _check_photos(journal.path, photos, labels, first, say)
    known = with_groups(photos, labels.imported)
    reserve = reserved_images(photos, first.seed, first.reserve or "", known)
    labels.apply(journal.append(_opening(photos)))
    for name in plan.classes:
        if labels.find_class(name) is None:
            try:
                added = Event(do="add_class", window=START, name=labels.check_name(name))
            except Refused as refused:
                raise ConfigError(f"classes: {refused.reason}") from refused
            labels.apply(journal.append(added))
    return Begun(photos, plan.output, journal, labels, reserve, first.seed)


def _check_photos(path: Path, photos: Photos, labels: Labels, first: Event, say: Say) -> None:
    """Raise `ConfigError` if the journal is of another folder; say if photos are gone."""
    if not labels.absent:
        return
    if not labels.version.any():
        raise ConfigError(
            f"{path}: is of the folder '{first.root}', and {photos.root} has none of its images: give that folder, or "
            "another name for the labels"
        )
    kept = int(np.count_nonzero(labels.status == LABELED))
    say(f"{len(labels.absent)} images that were labeled are gone from {photos.root}; {kept} labels are left")
