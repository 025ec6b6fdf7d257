"""Finished JSON lines -> one Parquet table, some thousand rows at a time. The only file that imports pyarrow.

Knows the lines' keys and the table's columns, which are those of the CSV and of the same order. Does not know results.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl.errors import MissingExtraError
from tl.runtime.columns import Columns
from tl.runtime.files import atomic_path

_ROWS_AT_ONCE = 10_000


def check_parquet() -> None:
    """Raises `MissingExtraError` where no table could be written."""
    _pyarrow()


def write_parquet(
    lines: str | os.PathLike[str],
    table: str | os.PathLike[str],
    columns: Columns,
) -> None:
    r"""Write a table atomically. What is missing in a line is null; a path's bytes that are no text become `\xNN`.

    Raises `OutputError`, `MissingExtraError`.
    """
    arrow = _pyarrow()
    schema = _schema(arrow, columns)
    with (
        atomic_path(table) as temporary,
        arrow.parquet.ParquetWriter(temporary, schema) as writer,
        Path(lines).open(encoding="utf-8", errors="surrogateescape") as stream,
    ):
        for rows in _chunks(stream):
            values = zip(*(_row(columns.values(json.loads(line))) for line in rows), strict=True)
            arrays = [arrow.array(column, field.type) for column, field in zip(values, schema, strict=True)]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _schema(arrow: Any, columns: Columns) -> Any:
    kinds = {"text": arrow.string(), "number": arrow.float32(), "flag": arrow.bool_()}
    return arrow.schema([(name, kinds[kind]) for name, kind in columns.types.items()])


def _row(values: list[Any]) -> list[Any]:
    return [_text(value) if isinstance(value, str) else value for value in values]


def _text(text: str) -> str:
    return os.fsencode(text).decode(errors="backslashreplace")


def _chunks(stream: Iterator[str]) -> Iterator[list[str]]:
    while rows := list(itertools.islice(stream, _ROWS_AT_ONCE)):
        yield rows


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Parquet files need one more package: pip install 'tl-toolkit[parquet]'") from error
    return pyarrow
