"""Scales of photos, millimetres a pixel: one number for all, or a file that has one for each.

Knows scales, and the landmark files that hold scales. Opens pictures' headers only, for TPS.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from tl.errors import DataError
from tl.runtime.landmark_files.files import picture_finder, read_landmarks
from tl.runtime.landmark_files.lists import listed_path, read_list


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
    scales: dict[str, float] = {}
    for place, row in read_list(path, ["mm_per_px"], "scales"):
        text = row["mm_per_px"].strip()
        if not text:
            continue
        try:
            scale = float(text)
        except ValueError:
            scale = math.nan
        if not 0 < scale < math.inf:
            raise DataError(f"{place}: mm_per_px is '{text}', expected a number above 0")
        scales[listed_path(path, row)] = scale
    return scales
