"""Write results for spreadsheet programs: Excel files, and CSV in which no cell is run as a formula.

Reads the rows as JSON lines, as `writers` keeps them until a file is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl.errors import MissingExtraError, OutputError
from tl.runtime.output.columns import Columns
from tl.runtime.output.files import atomic_path
from tl.runtime.sources.tables import csv_line

# Limits of a sheet and of a cell. Source: Microsoft, "Excel specifications and limits".
_MAX_ROWS, _MAX_COLUMNS, _MAX_TEXT = 1_048_576, 16_384, 32_767
# What a spreadsheet program takes for the beginning of a formula. Source: OWASP, "CSV Injection".
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def check_xlsx(path: str | os.PathLike[str], columns: Columns) -> None:
    """Raise `MissingExtraError` if Excel files cannot be written, `OutputError` for too many columns."""
    _xlsxwriter()
    if len(columns.types) > _MAX_COLUMNS:
        raise OutputError(
            f"{os.fspath(path)}: {len(columns.types)} columns, but Excel reads {_MAX_COLUMNS}: write .csv or .parquet"
        )


def write_xlsx(lines: Path, table: str | os.PathLike[str], columns: Columns) -> None:
    r"""Write an Excel file atomically. Texts are text cells, never formulas or links; missing values are empty cells.

    Path bytes that are not UTF-8 become `\xNN`. Raises `OutputError`, also for more rows or text than Excel reads.
    """
    with atomic_path(table) as temporary:
        workbook = _xlsxwriter().Workbook(str(temporary), {"constant_memory": True})
        try:
            _fill(workbook, lines, table, columns)
        finally:
            _close(workbook, table)


def _fill(workbook: Any, lines: Path, table: str | os.PathLike[str], columns: Columns) -> None:
    sheet, bold = workbook.add_worksheet("predictions"), workbook.add_format({"bold": True})
    sheet.freeze_panes(1, 1)
    for column, name in enumerate(columns.types):
        sheet.write_string(0, column, name, bold)
    for row, values in enumerate(iter_values(lines, columns), start=1):
        if row >= _MAX_ROWS:
            raise OutputError(f"{os.fspath(table)}: more than {_MAX_ROWS - 1} rows: write .csv or .parquet")
        if any(isinstance(value, str) and len(value) > _MAX_TEXT for value in values):
            raise OutputError(f"{os.fspath(table)}: a text in row {row + 1} is too long for Excel: write .csv")
        for column, value in enumerate(values):
            if isinstance(value, str):
                sheet.write_string(row, column, value)
            elif isinstance(value, bool):
                sheet.write_boolean(row, column, value)
            elif value is not None:
                sheet.write_number(row, column, value)


def _close(workbook: Any, table: str | os.PathLike[str]) -> None:
    try:
        workbook.close()
    except _xlsxwriter().exceptions.FileCreateError as error:
        raise OutputError(f"{os.fspath(table)}: cannot be written ({error})") from error


def write_excel_csv(lines: Path, table: str | os.PathLike[str], columns: Columns) -> None:
    """Write CSV for spreadsheet programs atomically. Raises `OutputError`.

    It begins with a byte order mark, and an apostrophe precedes each text that would be run as a formula.
    """
    with (
        atomic_path(table) as temporary,
        temporary.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as stream,
    ):
        stream.write(csv_line(map(_harmless, columns.types)))
        for values in iter_values(lines, columns):
            stream.write(csv_line(map(_harmless, values)))


def iter_values(lines: Path, columns: Columns) -> Iterator[list[Any]]:
    r"""Yield one value per column for each line. Path bytes that are not UTF-8 become `\xNN`."""
    with lines.open(encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            yield [legible(value) if isinstance(value, str) else value for value in columns.values(json.loads(line))]


def legible(text: str) -> str:
    r"""Replace bytes that are not UTF-8, kept as surrogates, with `\xNN`."""
    return os.fsencode(text).decode(errors="backslashreplace")


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _xlsxwriter() -> Any:
    try:
        import xlsxwriter
        import xlsxwriter.exceptions
    except ImportError as error:
        raise MissingExtraError("Excel files require an additional package: pip install 'tl-toolkit[cli]'") from error
    return xlsxwriter
