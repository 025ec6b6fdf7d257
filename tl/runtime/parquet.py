"""Finished JSON lines -> one Parquet table, some thousand rows at a time. The only file that imports pyarrow.

Knows the lines' keys and the table's columns, which are those of the CSV and of the same order. Does not know results.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tl.errors import MissingExtraError
from tl.runtime.files import atomic_path

_ROWS_AT_ONCE = 10_000


def check_parquet() -> None:
    """Raises `MissingExtraError` where no table could be written."""
    _pyarrow()


def write_parquet(
    lines: str | os.PathLike[str],
    table: str | os.PathLike[str],
    class_names: Sequence[str],
    member_names: Sequence[str] = (),
) -> None:
    r"""Write a table atomically. What is missing in a line is null; a path's bytes that are no text become `\xNN`.

    Raises `OutputError`, `MissingExtraError`.
    """
    arrow = _pyarrow()
    schema = _schema(arrow, class_names, member_names)
    with (
        atomic_path(table) as temporary,
        arrow.parquet.ParquetWriter(temporary, schema) as writer,
        Path(lines).open(encoding="utf-8", errors="surrogateescape") as stream,
    ):
        for rows in _chunks(stream):
            columns = list(zip(*(_row(json.loads(line), class_names, member_names) for line in rows), strict=True))
            arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _schema(arrow: Any, class_names: Sequence[str], member_names: Sequence[str]) -> Any:
    text, number = arrow.string(), arrow.float32()
    fields = [("path", text), ("label", text), ("confidence", number), *((f"p:{name}", number) for name in class_names)]
    if member_names:
        fields += [("agreement", number), ("entropy", number), *((f"vote:{name}", text) for name in member_names)]
    return arrow.schema([*fields, ("error", text)])


def _row(line: dict[str, Any], class_names: Sequence[str], member_names: Sequence[str]) -> list[Any]:
    probabilities = line.get("probabilities", {})
    row = [_text(line["path"]), line.get("label"), line.get("confidence"), *map(probabilities.get, class_names)]
    if member_names:
        row += [line.get("agreement"), line.get("entropy"), *line.get("votes", [None] * len(member_names))]
    return [*row, _text(line["error"]) if "error" in line else None]


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
