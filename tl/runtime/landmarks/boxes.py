"""Read lists that accompany images: boxes, and scales in millimeters per pixel.

Opens CSV files, but no images.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from tl.errors import DataError
from tl.runtime.imaging.geometry import Region
from tl.runtime.landmarks.files import image_finder, read_landmarks
from tl.runtime.landmarks.wide_csv import BOX


def read_list(path: Path, columns: Sequence[str], what: str) -> list[tuple[str, dict[str, str]]]:
    """Return `FILE row N` and the row for each row of a CSV with `path` and `columns`; other columns are ignored.

    Empty cells are "". `what`: name of the list in messages. Raises `DataError`.
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
    """Return the path of the image in a row, resolved relative to the list's folder."""
    return os.path.join(path.parent, os.path.normpath(row["path"]))


def read_boxes(path: str | os.PathLike[str]) -> dict[str, Region]:
    """Return image path -> box in pixels of the upright image. Paths are relative to the list's folder.

    Other columns are ignored, so a landmark file can be used; rows without a box are skipped.
    Raises `DataError` naming the row.
    """
    path = Path(path)
    boxes: dict[str, Region] = {}
    for place, row in read_list(path, BOX, "boxes"):
        texts = [row[name].strip() for name in BOX]
        if not any(texts):
            continue
        try:
            left, top, width, height = map(float, texts)
        except ValueError:
            raise DataError(f"{place}: expected four numbers for a box, found {', '.join(texts)}") from None
        if not (math.isfinite(left + top + width + height) and width > 0 and height > 0):
            raise DataError(f"{place}: the width and height of a box must be above 0")
        name = listed_path(path, row)
        if name in boxes:
            raise DataError(f"{place}: a second box for {row['path']}; expected one per image")
        boxes[name] = (left, top, width, height)
    return boxes


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
