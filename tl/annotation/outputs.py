"""The files that a session of `tl label` or `tl review` writes: names beside the output, edits of people, a writer.

Knows no labels. Files of an earlier session are set aside instead of replaced.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from tl.errors import OutputError
from tl.runtime.output.files import output_errors

Say = Callable[[str], None]
# Actions that follow each other within this time are written together.
_SECONDS_TOGETHER = 0.4
_SECONDS_BETWEEN_TRIES = 5.0
# Longer than it takes until an action is in the output.
_SECONDS_TO_WRITE = 3.0
_log = logging.getLogger(__name__)


def journal_path(output: Path) -> Path:
    """`labels.csv` -> `labels.journal.jsonl`."""
    return output.with_name(f"{output.stem}.journal.jsonl")


def relative_name(path: str, folder: Path) -> str:
    """Return a path relative to a folder, with '/'; the absolute path if there is none, as on another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return Path(os.path.abspath(path)).as_posix()


def set_aside(paths: Sequence[Path], say: Say) -> None:
    """Rename an output, the first of `paths`, and the files beside it whose names begin as its own does.

    All get the same number: `labels.csv` and `labels.notes.csv` -> `labels.1.csv` and `labels.1.notes.csv`. Those that
    do not exist are passed over. Raises `OutputError`.
    """
    for path, aside in zip(paths, _free_names(paths), strict=True):
        if os.path.lexists(path):
            with output_errors(path):
                path.rename(aside)
            say(f"{path.name} is now {aside.name}")


def copy_aside(path: Path) -> Path:
    """Copy a file to a name of its own, and return it. Raises `OutputError`."""
    (aside,) = _free_names([path])
    with output_errors(aside):
        shutil.copyfile(path, aside)
    return aside


def _free_names(paths: Sequence[Path]) -> list[Path]:
    """The names with the first number that none of them has yet."""
    stem = paths[0].stem
    for n in count(1):
        names = [path.with_name(f"{stem}.{n}{path.name.removeprefix(stem)}") for path in paths]
        if not any(map(os.path.lexists, names)):
            break
    return names


def modified(path: Path) -> float:
    """Return when a file was changed last, infinitely late if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def may_be_edited(output: Path, written_at: float) -> bool:
    """Return whether somebody may have changed an output whose journal was written last at `written_at`.

    A process that was killed leaves an output that is no newer.
    """
    return output.exists() and modified(output) > written_at + _SECONDS_TO_WRITE


class Writer:
    """Writes in the background, within a second of each action. `fault`: why the last attempt failed, "" if it did not.

    `write` writes all files; it raises `OutputError` if it cannot. `told` is called when `fault` has changed.
    """

    def __init__(self, write: Callable[[], None], told: Callable[[], None]) -> None:
        self._write, self._told = write, told
        self.fault = ""
        self._wake = threading.Condition()
        self._is_due = self._is_closed = False
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Write soon."""
        with self._wake:
            self._is_due = True
            self._wake.notify()

    def write_now(self) -> None:
        """Write, and return when that is done. Raises `OutputError`."""
        with self._writing:
            try:
                self._write()
            except OutputError:
                raise
            except Exception as error:
                _log.exception("a fault of this program while writing")
                reason = f"the files could not be written, but the journal has everything: {error}"
                raise OutputError(reason) from error

    def close(self) -> None:
        """Write what is not yet written, and stop. Raises `OutputError`."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        self._thread.join()
        if self._is_due or self.fault:
            self.write_now()

    def _work(self) -> None:
        while self._wait():
            fault = ""
            try:
                self.write_now()
            except OutputError as error:
                fault = str(error)
            if fault != self.fault:
                self.fault = fault
                self._told()

    def _wait(self) -> bool:
        """Wait until something is due, then for what follows it at once. Returns whether to write."""
        with self._wake:
            while not (self._is_due or self._is_closed):
                if not self._wake.wait(_SECONDS_BETWEEN_TRIES if self.fault else None):
                    break  # try again
            if self._is_closed or self._wake.wait_for(lambda: self._is_closed, _SECONDS_TOGETHER):
                return False
            self._is_due = False
            return True
