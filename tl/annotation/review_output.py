"""The output of a review: held by one process at a time, with its journal, and written a moment after each change.

Knows no images.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from tl import __version__
from tl.annotation.journal import Event, Journal
from tl.annotation.review_log import ACTING
from tl.annotation.reviewed import ReviewedFiles
from tl.errors import DataError, OutputError
from tl.runtime.output.claim import Claim, hold
from tl.runtime.output.files import check_output, output_errors

_WRITE_AFTER_S = 0.3


class ReviewOutput:
    """The files of a review while it lasts. Use as a context manager.

    `events`: what was done before. Raises `OutputError` if another process has the output, if it cannot be written, or
    if a file exists that no review has written, which `overwrite` replaces; `DataError` if its journal is of other data
    or damaged.
    """

    def __init__(
        self, output: Path, source: Path, say: Callable[[str], None] = lambda line: None, *, overwrite: bool = False
    ) -> None:
        self.files, self._root, self._exit = ReviewedFiles(output), source.resolve().name, ExitStack()
        try:
            _hold(output, self._exit)
            self._prepare(overwrite)
            self.journal, self.events = Journal.open(self.files.journal)
            self._exit.callback(self.journal.close)
            if self.journal.repaired:
                say(self.journal.repaired)
            self._check_same_data()
            self.journal.append(Event(do="open", version=__version__, root=self._root))
        except BaseException:
            self._exit.close()
            raise
        self._lines = len(self.events) + 1

    @property
    def has_actions(self) -> bool:
        """Whether people have done anything before."""
        return any(event.do in ACTING for event in self.events)

    def _prepare(self, overwrite: bool) -> None:
        files = self.files
        others = (files.output, files.changes, files.text)
        is_new = overwrite or not files.journal.exists()
        for path in (files.journal, *others):
            check_output(path, overwrite=overwrite or not is_new)
        if overwrite:
            with output_errors(files.journal):
                files.journal.unlink(missing_ok=True)

    def _check_same_data(self) -> None:
        for event in self.events:
            if event.do == "open" and event.root != self._root:
                raise DataError(
                    f"{self.files.journal}: is of the data '{event.root}', not of '{self._root}': give another output, "
                    "or start anew",
                    options=["overwrite"],
                )

    def __enter__(self) -> ReviewOutput:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the output. A journal in which nobody did anything is removed."""
        self._exit.close()
        with suppress(OSError):
            if not any(b'"do":"open"' not in line for line in self.files.journal.read_bytes().splitlines()):
                self.files.journal.unlink()


class DelayedWriter:
    """Calls `write` in a thread of its own, a moment after it was asked to, and once more at the end if need be."""

    def __init__(self, write: Callable[[], None], delay_s: float = _WRITE_AFTER_S) -> None:
        self._write, self._delay_s = write, delay_s
        self._wake, self._stop, self._is_asked = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="review-writer", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Write soon."""
        self._is_asked.set()
        self._wake.set()

    def close(self) -> None:
        """Write what is left, and end."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._stop.wait(self._delay_s)  # several decisions, one file
            is_last = self._stop.is_set()
            self._wake.clear()
            if self._is_asked.is_set():
                self._is_asked.clear()
                self._write()
            if is_last:
                return


def _hold(output: Path, until: ExitStack) -> None:
    """Be the only process that writes an output. Raises `OutputError`."""
    check_output(output, overwrite=True)
    folder = Claim(output).folder
    if folder.is_symlink():
        raise OutputError(f"{folder}: is a symbolic link: remove it")
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    until.callback(_remove_folder, folder)
    until.enter_context(hold(folder / "lock", folder / "holder.json", str(output), leaves_lock=False))


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
