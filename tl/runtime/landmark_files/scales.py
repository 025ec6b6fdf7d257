"""Scales of photos, millimetres a pixel: one number for all, or a file that has one for each.

Knows CSV, and the landmark files that hold scales. Opens pictures' headers only, for TPS.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from tl.errors import DataError
from tl.runtime.landmark_files.files import picture_finder, read_landmarks

COLUMNS = ("path", "mm_per_px")


def read_scales(path: str | os.PathLike[str]) -> dict[str, float]:
    """Picture path -> its scale. A CSV with `path,mm_per_px`, whose other columns are read over, or a TPS or COCO file.

    Paths count from the file's folder; pictures without a scale are left out. Raises `DataError` naming the row.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    find = picture_finder(path)
    known = {find(p.name): p.mm_per_px for p in read_landmarks(path).pictures if p.mm_per_px is not None}
    if not known:
        raise DataError(f"{path}: no picture has a scale")
    return known


def _read_csv(path: Path) -> dict[str, float]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: the list of scales cannot be read ({error})") from error
    if lacking := [name for name in COLUMNS if name not in columns]:
        raise DataError(f"{path}: has no column {', '.join(lacking)} (found: {', '.join(columns[:8])})")
    scales: dict[str, float] = {}
    for line, row in rows:
        text = (row["mm_per_px"] or "").strip()
        if not text:
            continue
        try:
            scale = float(text)
        except ValueError:
            scale = math.nan
        if not 0 < scale < math.inf:
            raise DataError(f"{path.name} row {line}: mm_per_px is '{text}', expected a number above 0")
        scales[os.path.join(path.parent, os.path.normpath(row["path"]))] = scale
    return scales
