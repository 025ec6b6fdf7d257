"""Results -> CSV or JSON lines, a whole row at a time; Parquet when all are there.

Knows columns and streams. Does not know where results come from.
"""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

import orjson

from tl.errors import OutputError
from tl.runtime.columns import Columns, PointColumns, csv_line
from tl.runtime.files import output_errors
from tl.runtime.landmark_files.files import SUFFIXES, Format
from tl.runtime.landmark_files.lines import write_point_file
from tl.runtime.parquet import check_parquet, write_parquet
from tl.runtime.results import Result


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
    """A header, then a row a result; a failure has everything but path and error empty."""

    def __init__(self, stream: TextIO, columns: Columns) -> None:
        super().__init__(stream)
        self._columns = columns
        stream.write(csv_line(list(columns.types)))

    def row(self, result: Result) -> str:
        """A whole row."""
        return self._columns.line(result)


class JsonLinesWriter(_RowWriter):
    """One JSON object a line, with the keys of `as_dict`."""

    def row(self, result: Result) -> str:
        """One line."""
        plain = result.as_dict()
        try:
            return orjson.dumps(plain).decode() + "\n"
        except orjson.JSONEncodeError:  # a name that is no text: bytes of a path, kept as surrogates
            return json.dumps(plain, ensure_ascii=False) + "\n"


@contextmanager
def open_writer(
    output: str | os.PathLike[str] | None, columns: Columns, point_format: Format | None = None
) -> Iterator[ResultWriter]:
    """A writer for a path (`.csv`, `.jsonl` for JSON lines, `.parquet`), or CSV on stdout for None.

    Points may also go into `.tps` and `.json` (COCO keypoints), or into what `point_format` names; what failed is then
    in `NAME.failed.csv`.
    A file gets its name when all rows are written; until then, and after a failure, the rows are in `NAME.partial`: as
    JSON lines but for `.csv`. Raises `OutputError`, and `MissingExtraError` for Parquet without its package.
    """
    if output is None:
        yield CsvWriter(sys.stdout, columns)
        sys.stdout.flush()
        return
    final, partial = Path(output), partial_path(output)
    kind = final.suffix.lower()
    known = [".csv", ".jsonl", ".parquet", *([".tps", ".json"] if isinstance(columns, PointColumns) else [])]
    if kind not in known:
        raise OutputError(f"{final}: expected a name that ends in {', '.join(known[:-1])} or {known[-1]}")
    if point_format is not None and kind != SUFFIXES[point_format]:
        raise OutputError(f"{final}: a file of format {point_format} has a name that ends in {SUFFIXES[point_format]}")
    is_point_file = kind in (".tps", ".json") or point_format in ("long", "deeplabcut")
    if kind == ".parquet":
        check_parquet()
    with output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            is_table = kind == ".csv" and not is_point_file
            yield CsvWriter(stream, columns) if is_table else JsonLinesWriter(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if kind == ".parquet":
            write_parquet(partial, final, columns)
            partial.unlink()
        elif is_point_file:
            write_point_file(partial, final, point_format)
            partial.unlink()
        else:
            partial.replace(final)


def partial_path(output: str | os.PathLike[str]) -> Path:
    """Where the rows of an unfinished output are."""
    return Path(f"{os.fspath(output)}.partial")
