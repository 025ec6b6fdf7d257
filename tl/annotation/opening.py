"""Open a session of labeling: its files, what they contain already, and the reserve; close it in order."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl import __version__
from tl.annotation.exports import notes_path
from tl.annotation.features import OpenSource
from tl.annotation.identity import has_prints, take_prints
from tl.annotation.journal import Event, Journal, check_kind
from tl.annotation.labels import LABELED, Labels
from tl.annotation.model_job import MakeModel, making_path
from tl.annotation.model_making import make_model
from tl.annotation.outputs import Say, copy_aside, journal_path, may_be_edited, modified, set_aside
from tl.annotation.page_requests import IMPORT, START, Refused, check_class_name, spell
from tl.annotation.photos import Photos, list_photos
from tl.annotation.reserve import Draw, draw_reserve, reserved_images, with_groups
from tl.annotation.respelled import RENAME, find_respelled, with_present_names
from tl.annotation.session import Begun, LabelSession
from tl.data.manifests import LabeledImage, ManifestColumns, read_images
from tl.errors import ConfigError, DataError, OutputError
from tl.runtime.output.claim import claim_output

GROUPS, KIND = "folder", "label"


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
        goes_on = _has_begun(plan.output) and not plan.overwrite
        if not goes_on:
            _check_output_is_free(plan)
        # What can be refused is refused before anything is changed.
        first = None if goes_on else _draw(plan, photos, say)
        if plan.overwrite:
            set_aside(_files(plan.output), say)
        written_at = modified(journal_path(plan.output))
        journal, events = Journal.open(journal_path(plan.output))
        stack.enter_context(closing(journal))
        if journal.repaired:
            say(journal.repaired)
        shutil.rmtree(making_path(plan.output), ignore_errors=True)  # of a session that was killed
        if events:
            begun = _go_on(plan, photos, journal, events, say)
        else:
            begun = _begin(plan, photos, journal, first or _draw(plan, photos, say))
        if not len(begun.reserve):
            say("no random images could be set aside to measure the accuracy: most images have labels, or one folder")
        session = LabelSession(begun, opens, make)
        stack.enter_context(closing(session))
        _keep_edits(session, written_at, say)
        session.start()
        yield session


def _check_output_is_free(plan: SessionPlan) -> None:
    """Raise `OutputError` if there are labels of somebody that the request does not mention."""
    output, source = plan.output, plan.labels
    is_taken_over = source is not None and source.exists() and output.exists() and output.samefile(source)
    if output.exists() and not plan.overwrite and not is_taken_over:
        raise OutputError(
            f"{output}: exists, without the journal of a session ({journal_path(output).name}): take over its labels, "
            "give another name, or set it aside",
            options=[f"import={output}", "overwrite"],
        )


def _files(output: Path) -> tuple[Path, ...]:
    return output, journal_path(output), notes_path(output)


def _has_begun(output: Path) -> bool:
    """Whether there is a journal with at least one event."""
    journal = journal_path(output)
    return journal.exists() and journal.stat().st_size > 0


@dataclass(frozen=True)
class _First:
    """The first events of a session, and the images that it reserves."""

    events: Sequence[Event]
    seed: int
    reserve: NDArray[np.intp]


def _draw(plan: SessionPlan, photos: Photos, say: Say) -> _First:
    """Decide what a new session is about, and read the labels it takes over."""
    imported = {} if plan.labels is None else _read_labels(plan.labels, photos, say)
    names = _check_classes([*plan.classes, *sorted(imported)], [])
    seed = secrets.randbelow(1 << 31) if plan.seed is None else plan.seed
    known = with_groups(photos, {photos.names[i] for images in imported.values() for i in images})
    draw = draw_reserve(photos, seed, known)
    reserve = reserved_images(photos, seed, draw, known)
    taken = [
        Event(do="label", window=IMPORT, images=tuple(photos.names[i] for i in images), label=label)
        for label, images in sorted(imported.items())
    ]
    opened = _opening(photos, reserve, classes=tuple(names), seed=seed, reserve=draw.limit, passed=draw.passed)
    return _First([opened, *taken], seed, reserve)


def _keep_edits(session: LabelSession, written_at: float, say: Say) -> None:
    """Copy an output that somebody has edited since the last session, as it is about to be written again.

    `written_at`: when the journal was written last.
    """
    output = session.output
    if may_be_edited(output, written_at) and not session.agrees_with_output():
        aside = copy_aside(output)
        say(
            f"{output.name} was edited since the last session, whose labels it gets again; the edited one is "
            f"{aside.name}"
        )


def _begin(plan: SessionPlan, photos: Photos, journal: Journal, first: _First) -> Begun:
    labels = Labels(photos)
    for event in journal.append_all(first.events):
        labels.apply(event)
    return Begun(photos, plan.output, journal, labels, first.reserve, first.seed)


def _opening(photos: Photos, drawn: NDArray[np.intp], **first: object) -> Event:
    """The event of a start. `drawn`: images that are reserved from now on."""
    values = {
        "version": __version__,
        "kind": KIND,
        "root": photos.root.absolute().name,
        "path": os.path.realpath(photos.root),
        "prints": take_prints(photos.places),
        "num_images": len(photos),
        "drawn": tuple(photos.names[i] for i in drawn.tolist()),
        **first,
    }
    if photos.has_groups:
        values["groups"] = GROUPS
    return Event(do="open", window=START, **values)  # type: ignore[arg-type]


def _check_classes(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Return names of new classes as they are written, without repetitions and those `known`. Raises `ConfigError`."""
    found: list[str] = []
    for name in map(spell, names):
        if name not in known and name not in found:
            try:
                found.append(check_class_name(name, [*known, *found]))
            except Refused as refused:
                raise ConfigError(f"classes: {refused.reason}") from refused
    return found


def _read_labels(source: Path, photos: Photos, say: Say) -> Mapping[str, list[int]]:
    """Return the images of each label of a data set, as far as they are among the photos. Raises `DataError`."""
    places = {os.path.realpath(path): i for i, path in enumerate(photos.paths)}
    found: dict[str, list[int]] = {}
    listed = _read_images(source, photos, say)
    if any(image.split for image in listed):
        say(f"{source}: its split is not taken over: images are set aside at random here")
    if boxed := next((image for image in listed if image.box is not None or image.region is not None), None):
        raise DataError(f"{source}: labels boxes of images, as of {boxed.name}, and whole images are labeled here")
    seen: set[int] = set()
    for image in listed:
        place = places.get(os.path.realpath(image.path))
        if place is not None and place not in seen:
            seen.add(place)
            found.setdefault(spell(image.label), []).append(place)
    if not seen:
        raise DataError(f"{source}: none of its {len(listed)} images are in {photos.root}")
    if len(seen) < len(listed):
        say(f"{source}: {len(listed) - len(seen)} of {len(listed)} images are not in {photos.root}: left out")
    return found


def _read_images(source: Path, photos: Photos, say: Say) -> list[LabeledImage]:
    """Read a data set whose paths may also be relative to the folder of photos. Raises `DataError`."""
    try:
        return read_images(source, say=say)
    except DataError:
        if source.is_dir():
            raise
        try:
            return read_images(source, ManifestColumns(images=os.fspath(photos.root)), say)
        except DataError:
            pass
        raise


def _go_on(plan: SessionPlan, photos: Photos, journal: Journal, events: Sequence[Event], say: Say) -> Begun:
    """Bring the state back from the journal, and add what is new."""
    if plan.labels is not None:
        raise ConfigError(
            f"{journal.path}: the session has begun, and labels are taken over at its start only: leave import out, or "
            "begin anew",
            options=["overwrite"],
        )
    check_kind(journal.path, events, KIND)
    first = events[0]
    if first.groups and not photos.has_groups:
        photos = Photos(photos.root, photos.names, has_groups=True)
    if photos.has_groups and not first.groups:
        raise ConfigError(f"{journal.path}: the session was begun without groups: go on without, or give another name")
    events = with_present_names(events)
    respelled = find_respelled(photos, events)
    renaming = Event(do=RENAME, window=START, images=tuple(respelled), renamed=tuple(respelled.values()))
    *events, _ = with_present_names([*events, renaming])
    labels = _replay(journal.path, photos, events)
    _check_photos(journal.path, photos, labels, events, say)
    classes = _new_classes(plan.classes, labels, events)
    reserve, new = _reserve_again(photos, labels, [*events, renaming])
    if respelled:
        labels.apply(journal.append(renaming))
        example = next(iter(respelled.values()))
        say(f"{len(respelled)} images have names in another Unicode form now, and keep their labels: first {example}")
    labels.apply(journal.append(_opening(photos, new)))
    for name in classes:
        labels.apply(journal.append(Event(do="add_class", window=START, name=name)))
    return Begun(photos, plan.output, journal, labels, reserve, first.seed or 0)


def _new_classes(asked: Sequence[str], labels: Labels, events: Sequence[Event]) -> list[str]:
    """Return the classes to add. One that was renamed, merged or removed is not added again. Raises `ConfigError`."""
    had = {name for event in events for name in (event.name, event.old, event.new, event.label, *(event.classes or ()))}
    names = [one.name for _, one in labels.classes]
    return _check_classes([name for name in asked if spell(name) not in had - set(names)], names)


def _reserve_again(
    photos: Photos, labels: Labels, events: Sequence[Event]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the reserved images, and those among them that are new since the last start."""
    first, drawn = events[0], list(dict.fromkeys(name for event in events for name in event.drawn or ()))
    # What was not drawn under its old name is not drawn under its new one.
    kept = {photos.index[name] for event in events for name in event.renamed or () if name in photos.index}
    known = with_groups(photos, labels.imported) | kept
    draw = Draw(first.reserve or "", first.passed or ())
    reserve = reserved_images(photos, first.seed or 0, draw, known, drawn)
    before = set(drawn)
    return reserve, np.array([i for i in reserve.tolist() if photos.names[i] not in before], np.intp)


def _replay(path: Path, photos: Photos, events: Sequence[Event]) -> Labels:
    """Return the state that the events of a journal lead to. Raises `DataError`."""
    labels = Labels(photos)
    for event in events:
        try:
            labels.apply(event)
        except (Refused, KeyError, IndexError) as error:
            raise DataError(f"{path} line {event.n}: does not fit the lines before it ({error})") from error
    return labels


def _check_photos(path: Path, photos: Photos, labels: Labels, events: Sequence[Event], say: Say) -> None:
    """Raise `ConfigError` if the journal is of another folder; say if photos are gone."""
    last = [event for event in events if event.do == "open"][-1]
    if last.path is None:  # of an older version
        is_same = bool(labels.version.any()) or not labels.absent
    else:
        is_same = last.path == os.path.realpath(photos.root) or has_prints(last.prints or (), photos.places)
    if not is_same:
        raise ConfigError(
            f"{path}: is of the folder {last.path or last.root}, and {photos.root} has other images: give that folder, "
            "or another name for the labels"
        )
    if not labels.absent:
        return
    everything = Photos(photos.root, [*photos.names, *labels.absent])
    kept = int(np.count_nonzero(labels.status == LABELED))
    if gone := int(np.count_nonzero(_replay(path, everything, events).status == LABELED)) - kept:
        say(f"{gone} images that were labeled are gone from {photos.root}; {kept} labels are left")
