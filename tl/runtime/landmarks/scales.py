"""Read the scales of images, in millimeters per pixel.

Opens CSV files, but no images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tl.errors import DataError
from tl.runtime.landmarks.files import image_finder, read_landmarks
from tl.runtime.sources.names import FileFinder
from tl.runtime.sources.tables import Table, read_table


def read_list(path: Path, columns: Sequence[str]) -> tuple[Table, list[ListRow]]:
    """Return the rows of a CSV with `path` and `columns`; other columns are ignored. Raises `DataError`.

    Paths are relative to the list's folder; see `FileFinder` for names from other systems.
    """
    table = read_table(path)
    named = table.column("path")
    if lacking := [name for name in ("path", *columns) if name not in (*table.columns, "path" if named else "")]:
        raise DataError(f"{path}: has no column {', '.join(lacking)} (found: {table.shown})")
    finder = FileFinder([path.parent])
    rows = []
    for line, row in table.rows:
        name = os.path.normpath(row[named])
        found = finder.find(name) or os.path.join(path.parent, name)
        rows.append(ListRow(f"{path.name} row {line}", found, row))
    return table, rows


class ListRow(NamedTuple):
    """`place`: `FILE row N`. `path`: the image. `cells` by column."""

    place: str
    path: str
    cells: dict[str, str]


def read_scales(path: str | os.PathLike[str]) -> dict[str, float]:
    """Return image path -> scale, from a CSV with `path,mm_per_px` (other columns are ignored), or a TPS or COCO file.

    Paths are relative to the file's folder; images without a scale are skipped. Raises `DataError` naming the row.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    find = image_finder(path)
    known = {find(p.name): p.mm_per_px for p in read_landmarks(path).images if p.mm_per_px is not None}
    if not known:
        raise DataError(f"{path}: no image has a scale")
    return known


def _read_csv(path: Path) -> dict[str, float]:
    scales: dict[str, float] = {}
    table, rows = read_list(path, ["mm_per_px"])
    for place, name, row in rows:
        text = row["mm_per_px"].strip()
        if not text:
            continue
        try:
            scale = table.number(text)
        except ValueError:
            scale = math.nan
        if not 0 < scale < math.inf:
            raise DataError(f"{place}: mm_per_px is '{text}', expected a number above 0")
        scales[name] = scale
    return scales
