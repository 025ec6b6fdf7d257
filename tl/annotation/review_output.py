"""The output of a review: held by one process at a time, with its journal.

Knows no images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from tl import __version__
from tl.annotation.identity import has_prints, take_prints
from tl.annotation.journal import Event, Journal, check_kind
from tl.annotation.outputs import copy_aside, may_be_edited, modified, set_aside
from tl.annotation.review_log import ACTING
from tl.annotation.review_table import ReviewTable
from tl.annotation.reviewed import ReviewedFiles
from tl.errors import ConfigError
from tl.runtime.output.claim import claim_output
from tl.runtime.output.files import check_output

KIND = "review"


class ReviewOutput:
    """The files of a review while it lasts. Use as a context manager.

    `table`: the data. `events`: what was done before. Raises `OutputError` if another process has the output, if it
    cannot be written, or if a file exists that no review has written; `ConfigError` if its journal is of other data, or
    of `tl label`; `DataError` if it is damaged. With `overwrite`, files of these names are renamed instead, and only
    when `begin` is called.
    """

    def __init__(
        self,
        output: Path,
        table: ReviewTable,
        say: Callable[[str], None] = lambda line: None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.files, self._say = ReviewedFiles(output), say
        self._root, self._paths = table.source.resolve(), {image.name: image.path for image in table.images}
        self.events: tuple[Event, ...] = ()
        self._overwrites, self._has_begun, self._may_be_edited = overwrite, False, False
        self._exit = ExitStack()
        try:
            check_output(output, overwrite=True)
            self._exit.enter_context(claim_output(self.files.journal))
            replaces = overwrite or self.files.journal.exists()
            for path in self.files.all:
                check_output(path, overwrite=replaces)
            if not overwrite:
                self.begin()
        except BaseException:
            self._exit.close()
            raise

    @property
    def has_actions(self) -> bool:
        """Whether people have done anything before."""
        return any(event.do in ACTING for event in self.events)

    def begin(self) -> None:
        """Open the journal, when nothing else can fail any more. Calls after the first do nothing."""
        if self._has_begun:
            return
        self._has_begun = True
        if self._overwrites:
            set_aside(self.files.all, self._say)
        written_at = modified(self.files.journal)
        self.journal, self.events = Journal.open(self.files.journal)
        self._exit.callback(self._remove_unused)
        self._exit.callback(self.journal.close)
        if self.journal.repaired:
            self._say(self.journal.repaired)
        self._check_journal()
        self._may_be_edited = may_be_edited(self.files.output, written_at)
        self.journal.append(
            Event(
                do="open",
                version=__version__,
                kind=KIND,
                root=self._root.name,
                path=str(self._root),
                prints=take_prints(self._paths),
            )
        )

    def keep_edits(self, text: Callable[[], str]) -> None:
        """Copy an output that somebody has edited, as it is about to be written again. `text`: what a review writes."""
        output = self.files.output
        if self._may_be_edited and output.read_bytes() != text().encode("utf-8", "surrogateescape"):
            aside = copy_aside(output)
            self._say(
                f"{output.name} was edited since the last review, whose decisions it gets again; the edited one "
                f"is {aside.name}"
            )

    def _check_journal(self) -> None:
        """Raise `ConfigError` if the journal is of another command or other data. Data that was moved is the same."""
        check_kind(self.files.journal, self.events, KIND)
        last = next((event for event in reversed(self.events) if event.do == "open"), None)
        if last is None or (last.path or last.root) in (str(self._root), self._root.name):
            return
        if not has_prints(last.prints or (), self._paths):
            raise ConfigError(
                f"{self.files.journal}: is of the data {last.path or last.root}, not of {self._root}: give another "
                "output, or start anew",
                options=["overwrite"],
            )

    def _remove_unused(self) -> None:
        """Remove a journal that this process has begun, and in which nobody did anything."""
        with suppress(OSError):
            if not self.events and len(self.files.journal.read_bytes().splitlines()) <= 1:
                self.files.journal.unlink()

    def __enter__(self) -> ReviewOutput:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the output. A journal that was begun now, and in which nobody did anything, is removed."""
        self._exit.close()
