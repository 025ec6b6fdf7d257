"""Lists of boxes: `path,box_x,box_y,box_w,box_h`, the part of each picture that is looked at.

Knows boxes. Does not open pictures.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from tl.errors import DataError
from tl.runtime.geometry import Region
from tl.runtime.landmark_files.lists import listed_path, read_list
from tl.runtime.landmark_files.wide_csv import BOX


def read_boxes(path: str | os.PathLike[str]) -> dict[str, Region]:
    """Picture path -> its box in pixels of the upright picture. Paths count from the list's folder.

    Other columns are read over, so that a file of landmarks will do; rows without a box are left out.
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
            raise DataError(f"{place}: a box needs four numbers, found {', '.join(texts)}") from None
        if not (math.isfinite(left + top + width + height) and width > 0 and height > 0):
            raise DataError(f"{place}: a box needs a width and height above 0")
        name = listed_path(path, row)
        if name in boxes:
            raise DataError(f"{place}: {row['path']} has a box already")
        boxes[name] = (left, top, width, height)
    return boxes
