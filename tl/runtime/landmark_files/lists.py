"""CSV lists of facts about pictures, such as boxes or scales: rows, and paths that count from the list's folder.

Knows CSV. Does not know what the facts mean.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from tl.errors import DataError


def read_list(path: Path, columns: Sequence[str], what: str) -> list[tuple[str, dict[str, str]]]:
    """`FILE row N` and the row, of a list that has `path` and `columns`; others are read over.

    Empty cells are "". `what`: the list's name in messages. Raises `DataError`.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = [(f"{path.name} row {reader.line_num}", row) for row in reader]
            found = reader.fieldnames or []
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: the list of {what} cannot be read ({error})") from error
    if lacking := [name for name in ("path", *columns) if name not in found]:
        raise DataError(f"{path}: has no column {', '.join(lacking)} (found: {', '.join(found[:8])})")
    return rows


def listed_path(path: Path, row: dict[str, str]) -> str:
    """The picture that a row names, counted from the list's folder."""
    return os.path.join(path.parent, os.path.normpath(row["path"]))
