"""Lists of boxes: `path,box_x,box_y,box_w,box_h`, the part of each picture that is looked at.

Knows CSV. Does not open pictures.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from tl.errors import DataError
from tl.runtime.geometry import Region
from tl.runtime.landmark_files.wide_csv import BOX


def read_boxes(path: str | os.PathLike[str]) -> dict[str, Region]:
    """Picture path -> its box in pixels of the upright picture. Paths count from the list's folder.

    Other columns are read over, so that a file of landmarks will do; rows without a box are left out.
    Raises `DataError` naming the row.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: the list of boxes cannot be read ({error})") from error
    if lacking := [name for name in ("path", *BOX) if name not in columns]:
        raise DataError(f"{path}: has no column {', '.join(lacking)} (found: {', '.join(columns[:8])})")
    boxes: dict[str, Region] = {}
    for line, row in rows:
        texts = [(row[name] or "").strip() for name in BOX]
        if not any(texts):
            continue
        try:
            left, top, width, height = map(float, texts)
        except ValueError:
            raise DataError(f"{path.name} row {line}: a box needs four numbers, found {', '.join(texts)}") from None
        if not (math.isfinite(left + top + width + height) and width > 0 and height > 0):
            raise DataError(f"{path.name} row {line}: a box needs a width and height above 0")
        name = os.path.join(path.parent, os.path.normpath(row["path"]))
        if name in boxes:
            raise DataError(f"{path.name} row {line}: {row['path']} has a box already")
        boxes[name] = (left, top, width, height)
    return boxes
