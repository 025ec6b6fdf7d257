"""Results -> CSV or JSON lines, a whole row at a time.

Knows result dataclasses and columns. Does not know where results come from.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from tl.errors import OutputError
from tl.runtime.files import output_errors
from tl.runtime.results import Classification, Result


class ResultWriter(Protocol):
    """Writes results one by one."""

    def write(self, result: Result) -> None:
        """Write one whole row."""


class CsvWriter:
    """`path,label,confidence,p:<class>...[,agreement,entropy,vote:<member>...],error`, header first."""

    def __init__(self, stream: TextIO, class_names: Sequence[str], member_names: Sequence[str] = ()) -> None:
        self._rows = csv.writer(stream, lineterminator="\n")
        self._num_blank = 2 + len(class_names) + (2 + len(member_names) if member_names else 0)
        votes = ["agreement", "entropy", *(f"vote:{name}" for name in member_names)] if member_names else []
        self._rows.writerow(["path", "label", "confidence", *(f"p:{name}" for name in class_names), *votes, "error"])

    def write(self, result: Result) -> None:
        """Write one row; a failure has everything but path and error empty."""
        if not isinstance(result, Classification):
            self._rows.writerow([result.path, *[""] * self._num_blank, result.error])
            return
        row = [result.path, result.label, _number(result.confidence), *map(_number, result.probabilities.tolist())]
        if result.votes is not None:
            row += [_number(result.votes.agreement), _number(result.votes.entropy), *result.votes.labels]
        self._rows.writerow([*row, ""])


class JsonLinesWriter:
    """One JSON object a line, with the keys of `as_dict`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, result: Result) -> None:
        """Write one line."""
        self._stream.write(json.dumps(result.as_dict(), ensure_ascii=False) + "\n")


@contextmanager
def open_writer(
    output: str | os.PathLike[str] | None, class_names: Sequence[str], member_names: Sequence[str] = ()
) -> Iterator[ResultWriter]:
    """A writer for a path (`.csv`, or `.jsonl` for JSON lines), or CSV on stdout for None.

    A file gets its name when all rows are written; until then, and after a failure, the rows are in `NAME.partial`.
    Raises `OutputError`.
    """
    if output is None:
        yield CsvWriter(sys.stdout, class_names, member_names)
        sys.stdout.flush()
        return
    final, partial = Path(output), partial_path(output)
    if final.suffix.lower() not in (".csv", ".jsonl"):
        raise OutputError(f"{final}: expected a name that ends in .csv or .jsonl")
    with output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            is_csv = final.suffix.lower() == ".csv"
            yield CsvWriter(stream, class_names, member_names) if is_csv else JsonLinesWriter(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(final)


def partial_path(output: str | os.PathLike[str]) -> Path:
    """Where the rows of an unfinished output are."""
    return Path(f"{os.fspath(output)}.partial")


def _number(value: float) -> str:
    return f"{value:.6g}"
