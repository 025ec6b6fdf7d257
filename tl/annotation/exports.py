"""Write what a session has decided as files that other programs read: labels.csv, and notes on images without a label.

Each file is always complete: it is written beside its name and renamed. The journal, not these files, is what a session
goes on from.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.annotation.file_changes import FileStamps
from tl.annotation.labels import LABELED, STATUS_NAMES, Labels
from tl.annotation.outputs import relative_name
from tl.annotation.page_requests import Refused
from tl.annotation.photos import Photos
from tl.errors import DataError
from tl.runtime.output.files import output_errors, write_text
from tl.runtime.sources.tables import csv_text, read_table

COLUMNS = ("path", "label", "split", "group", "sampled", "note")
NOTE_COLUMNS = ("path", "status", "note")
# With fewer random labels, a split for validation would say nothing; training then makes its own.
MIN_VALIDATION = 20


def notes_path(output: Path) -> Path:
    """`labels.csv` -> `labels.notes.csv`."""
    return output.with_name(f"{output.stem}.notes.csv")


@dataclass(frozen=True)
class Snapshot:
    """What is written: copies, so that the session may go on meanwhile. `reserved` bool (N,): images labeled blind.

    `is_random` bool (N,): labels that are a random sample. `version` int64 (N,): as in `Labels`.
    """

    label: NDArray[np.int32]
    status: NDArray[np.uint8]
    version: NDArray[np.int64]
    notes: dict[int, str]
    class_names: Sequence[str]
    reserved: NDArray[np.bool_]
    is_random: NDArray[np.bool_]


def take_snapshot(labels: Labels, reserved: NDArray[np.bool_], is_random: NDArray[np.bool_]) -> Snapshot:
    """Copy the state of a session. Its lock must be held."""
    arrays = labels.label.copy(), labels.status.copy(), labels.version.copy()
    return Snapshot(*arrays, dict(labels.notes), labels.class_names, reserved, is_random)


class Exports:
    """Writes the files of one session to `output` and beside it. Thread-safe.

    Images that `leave_out_lost` has found are no rows of `output` until somebody acts on them, or `leave_out_none`.
    """

    def __init__(self, output: Path, photos: Photos) -> None:
        self.output, self._photos = output, photos
        self._above = _relative_root(photos.root, output.parent)
        self._lock = threading.Lock()
        self._stamps = FileStamps(photos)
        self._left_out: set[int] = set()

    def path_of(self, image: int) -> str:
        """The path of an image relative to the output, with '/'."""
        return self._above + self._photos.names[image]

    def write(self, snapshot: Snapshot) -> None:
        """Write both files. Raises `OutputError`."""
        with self._lock:
            self._write_labels(snapshot)
            self._write_notes(snapshot)

    def _write_labels(self, snapshot: Snapshot) -> None:
        labeled = _labeled(snapshot)
        self._left_out -= self._stamps.remember(labeled, snapshot.version[labeled].tolist())
        labeled = [i for i in labeled if i not in self._left_out]
        columns = [name for name in COLUMNS if name != "group" or self._photos.has_groups]
        splits = _splits(snapshot, labeled, [self._photos.group(i) for i in labeled])
        rows = (self._row(snapshot, i, split, columns) for i, split in zip(labeled, splits, strict=True))
        write_text(self.output, csv_text([columns, *rows]))

    def _write_notes(self, snapshot: Snapshot) -> None:
        noted = np.zeros(len(self._photos), bool)
        noted[list(snapshot.notes)] = True
        others = np.flatnonzero((snapshot.status != LABELED) & ((snapshot.status != 0) | noted)).tolist()
        notes = notes_path(self.output)
        if others:
            status = snapshot.status
            cells = ([self.path_of(i), STATUS_NAMES[status[i]], snapshot.notes.get(i, "")] for i in others)
            write_text(notes, csv_text([NOTE_COLUMNS, *cells]))
        else:
            with output_errors(notes):
                notes.unlink(missing_ok=True)

    def leave_out_lost(self, snapshot: Snapshot) -> str:
        """Leave out labeled images whose file is gone or was changed since, and return a sentence that names them.

        Raises `Refused` if these are most of the labeled images.
        """
        labeled = _labeled(snapshot)
        with self._lock:
            lost = self._stamps.find_lost(labeled)
            told = lost.describe(self._photos)
            if 2 * len(lost) > len(labeled):
                cure = "connect their drive, or put them back" if lost.missing else "look at them, and label them again"
                raise Refused("conflict", f"{told}: {cure}, then make the model")
            self._left_out = {*lost.missing, *lost.changed}
        return told

    def leave_out_none(self) -> bool:
        """Write all labels from now on. Returns whether any were left out."""
        with self._lock:
            had, self._left_out = self._left_out, set()
        return bool(had)

    def agrees(self, snapshot: Snapshot, gone: Collection[str] = ()) -> bool:
        """Return whether the output that exists has the same images, labels and notes. `gone`: images left out."""
        compared = ("path", "label", "note")
        absent = {self._above + name for name in gone}
        try:
            table = read_table(self.output)
            found = sorted([row[name] for name in compared] for _, row in table.rows if row["path"] not in absent)
        except (DataError, KeyError, OSError):
            return False
        return found == sorted(self._row(snapshot, i, "", compared) for i in _labeled(snapshot))

    def _row(self, snapshot: Snapshot, image: int, split: str, columns: Sequence[str]) -> list[str]:
        cells = {
            "path": self.path_of(image),
            "label": snapshot.class_names[snapshot.label[image]],
            "split": split,
            "group": self._photos.group(image),
            "sampled": "random" if snapshot.is_random[image] else "selected",
            "note": snapshot.notes.get(image, ""),
        }
        return [cells[name] for name in columns]


def _labeled(snapshot: Snapshot) -> list[int]:
    found: list[int] = np.flatnonzero(snapshot.status == LABELED).tolist()
    return found


def _splits(snapshot: Snapshot, labeled: Sequence[int], groups: Sequence[str]) -> list[str]:
    """The split of each labeled image: val for the reserved ones. `groups`: of the labeled images, "" for none.

    That was fixed when the reserve was drawn, so that no image changes sides; only images of classes that have no other
    labels yet, and their groups, are for training, which needs an image of each class.
    """
    reserved, label = snapshot.reserved[labeled], snapshot.label[labeled]
    is_val = reserved & np.isin(label, label[~reserved])
    moved = {groups[i] for i in np.flatnonzero(reserved & ~is_val).tolist()} - {""}
    is_val &= ~np.array([group in moved for group in groups], bool)
    if is_val.sum() < MIN_VALIDATION:
        return [""] * len(labeled)
    return ["val" if one else "train" for one in is_val.tolist()]


def _relative_root(root: Path, folder: Path) -> str:
    """The folder of photos as seen from the folder of the output, "" if they are one, else with a '/' at its end."""
    found = relative_name(str(root), folder)
    return "" if found == "." else f"{found.rstrip('/')}/"
