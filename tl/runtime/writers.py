"""Results -> CSV or JSON lines, a whole row at a time; Parquet when all are there.

Knows result dataclasses and columns. Does not know where results come from.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Protocol, TextIO

from tl.errors import OutputError
from tl.runtime.files import output_errors
from tl.runtime.parquet import check_parquet, write_parquet
from tl.runtime.results import Classification, Result


class ResultWriter(Protocol):
    """Writes results one by one."""

    def write(self, result: Result) -> None:
        """Write one whole row."""

    def row(self, result: Result) -> str:
        """A whole row as text, with its line end."""

    def write_row(self, row: str) -> None:
        """Write what `row` gave."""


class _RowWriter(ABC):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, result: Result) -> None:
        """Write one whole row."""
        self._stream.write(self.row(result))

    def write_row(self, row: str) -> None:
        """Write what `row` gave."""
        self._stream.write(row)

    @abstractmethod
    def row(self, result: Result) -> str:
        """A whole row as text, with its line end."""


class CsvWriter(_RowWriter):
    """`path,label,confidence,p:<class>...[,agreement,entropy,vote:<member>...],error`, header first."""

    def __init__(self, stream: TextIO, class_names: Sequence[str], member_names: Sequence[str] = ()) -> None:
        super().__init__(stream)
        self._num_blank = 2 + len(class_names) + (2 + len(member_names) if member_names else 0)
        votes = ["agreement", "entropy", *(f"vote:{name}" for name in member_names)] if member_names else []
        names = ["path", "label", "confidence", *(f"p:{name}" for name in class_names), *votes, "error"]
        stream.write(_csv_line(names))

    def row(self, result: Result) -> str:
        """A whole row; a failure has everything but path and error empty."""
        if not isinstance(result, Classification):
            return _csv_line([result.path, *[""] * self._num_blank, result.error])
        row = [result.path, result.label, _number(result.confidence), *map(_number, result.probabilities.tolist())]
        if result.votes is not None:
            row += [_number(result.votes.agreement), _number(result.votes.entropy), *result.votes.labels]
        return _csv_line([*row, ""])


class JsonLinesWriter(_RowWriter):
    """One JSON object a line, with the keys of `as_dict`."""

    def row(self, result: Result) -> str:
        """One line."""
        return json.dumps(result.as_dict(), ensure_ascii=False) + "\n"


@contextmanager
def open_writer(
    output: str | os.PathLike[str] | None, class_names: Sequence[str], member_names: Sequence[str] = ()
) -> Iterator[ResultWriter]:
    """A writer for a path (`.csv`, `.jsonl` for JSON lines, `.parquet`), or CSV on stdout for None.

    A file gets its name when all rows are written; until then, and after a failure, the rows are in `NAME.partial`: as
    JSON lines for `.parquet`. Raises `OutputError`, and `MissingExtraError` for Parquet without its package.
    """
    if output is None:
        yield CsvWriter(sys.stdout, class_names, member_names)
        sys.stdout.flush()
        return
    final, partial = Path(output), partial_path(output)
    kind = final.suffix.lower()
    if kind not in (".csv", ".jsonl", ".parquet"):
        raise OutputError(f"{final}: expected a name that ends in .csv, .jsonl or .parquet")
    if kind == ".parquet":
        check_parquet()
    with output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield CsvWriter(stream, class_names, member_names) if kind == ".csv" else JsonLinesWriter(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if kind == ".parquet":
            write_parquet(partial, final, class_names, member_names)
            partial.unlink()
        else:
            partial.replace(final)


def partial_path(output: str | os.PathLike[str]) -> Path:
    """Where the rows of an unfinished output are."""
    return Path(f"{os.fspath(output)}.partial")


def _csv_line(cells: Sequence[str]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _number(value: float) -> str:
    return f"{value:.6g}"
