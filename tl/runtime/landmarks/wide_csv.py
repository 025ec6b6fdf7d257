"""Landmark CSV with one row per image: `path[,split][,group][,mm_per_px][,box_x,box_y,box_w,box_h],x0,y0[,v0]...`.

A point's columns are `xNAME,yNAME[,vNAME][,pNAME]`; an underscore before the name is not part of it. Points are in
column order. Empty cells are missing points. v: COCO's visibility. p: confidence of a predicted point. s: its spread in
an ensemble, which is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tl.errors import DataError
from tl.runtime.landmarks.sets import MISSING, VISIBLE, ImageLandmarks, LandmarkSet, image_landmarks
from tl.runtime.sources.box_files import BOX
from tl.runtime.sources.tables import Table, csv_text, parse_table

_OTHERS = ("path", "split", "group", "mm_per_px", *BOX)
# Columns of predictions, ignored. Rows with an error have no points and are counted in `remarks`.
_PREDICTED = ("centroid_size", "shape_distance", "is_odd", "error")
_OF_FILES = ("captured", "camera_make", "camera_model", "latitude", "longitude")


def read(text: str, where: str) -> LandmarkSet:
    """Return the landmarks of all rows. Raises `DataError` naming the row and the column."""
    table = parse_table(text, where)
    path = table.column("path")
    points = _point_columns(["path" if name == path else name for name in table.columns], where)
    good = [(line, {**row, "path": row[path]}) for line, row in table.rows if not row.get("error")]
    images = tuple(_image(f"{where} row {line}", row, points, table) for line, row in good)
    failed = len(table.rows) - len(good)
    remarks = (f"{failed} rows with an error instead of points were skipped",) if failed else ()
    return LandmarkSet(tuple(points), images, remarks=remarks)


def write(landmarks: LandmarkSet) -> str:
    """Return CSV text. Columns that are empty for all images are left out."""
    images = landmarks.images
    facts = [
        name for name in ("split", "group", "mm_per_px") if any(getattr(p, name) not in ("", None) for p in images)
    ]
    has_box = any(p.box_xywh is not None for p in images)
    has_confidence = any(p.confidence is not None for p in images)
    signs = "xy" + ("v" if any((p.visibility == 1).any() for p in images) else "") + ("p" if has_confidence else "")
    header = ["path", *facts, *(BOX if has_box else ())]
    for name in landmarks.keypoint_names:
        joined = name if name.isdigit() else f"_{name}"
        header += [f"{sign}{joined}" for sign in signs]
    rows = [header]
    for image in images:
        cells = [image.name, *(_cell(getattr(image, name)) for name in facts)]
        cells += map(_cell, image.box_xywh or [None] * 4) if has_box else ()
        rows.append([*cells, *_point_cells(image, signs)])
    return csv_text(rows)


def _point_cells(image: ImageLandmarks, signs: str) -> list[str]:
    cells = []
    for i, (x, y) in enumerate(image.keypoints_xy.tolist()):
        p = None if image.confidence is None else float(image.confidence[i])
        values: dict[str, float | int | None] = {"x": x, "y": y, "v": int(image.visibility[i]), "p": p}
        cells += [_cell(values[sign]) for sign in signs]
    return cells


def _point_columns(columns: Sequence[str], where: str) -> dict[str, dict[str, str]]:
    """Return point name -> {"x": column, "y": column ...}, in order of the x columns."""
    if "path" not in columns:
        raise DataError(f"{where}: has no column path (found: {', '.join(columns[:8])})")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise DataError(f"{where}: column {twice[0]} appears twice")
    known = set(columns)
    points = {}
    for column in columns:
        if column.startswith("x") and f"y{column[1:]}" in known:
            suffix = column[1:]
            points[suffix.removeprefix("_")] = {sign: sign + suffix for sign in "xyvps" if sign + suffix in known}
    taken = {column for point in points.values() for column in point.values()}
    if half := [name for name in columns if name[:1] == "x" and len(name) > 1 and name not in taken]:
        raise DataError(f"{where}: column {half[0]} has no matching column y{half[0][1:]}")
    if unknown := [name for name in columns if name not in taken and name not in (*_OTHERS, *_PREDICTED, *_OF_FILES)]:
        raise DataError(f"{where}: column '{unknown[0]}' is neither a point (xNAME, yNAME) nor {', '.join(_OTHERS)}")
    if not points:
        raise DataError(f"{where}: contains no points: expected columns x0,y0,x1,y1 ...")
    if len(box := [name for name in BOX if name in known]) not in (0, 4):
        raise DataError(f"{where}: contains only {', '.join(box)}: a box requires {', '.join(BOX)}")
    return points


def _image(place: str, row: Mapping[str, str], points: Mapping[str, Mapping[str, str]], table: Table) -> ImageLandmarks:
    if not row["path"]:
        raise DataError(f"{place}: path must not be empty")
    xy, visibility, confidence = [], [], []
    for columns in points.values():
        x, y = _number(row, columns["x"], place, table), _number(row, columns["y"], place, table)
        if math.isnan(x) != math.isnan(y):
            raise DataError(f"{place}: {columns['x']} and {columns['y']} must both be filled or both be empty")
        xy.append((x, y))
        visibility.append(_visibility(row, columns.get("v"), x, place))
        confidence.append(_number(row, columns["p"], place, table) if "p" in columns else math.nan)
    box = [_number(row, name, place, table) for name in BOX if name in row]
    scale = _number(row, "mm_per_px", place, table) if "mm_per_px" in row else math.nan
    has_confidence = any("p" in columns for columns in points.values())
    return image_landmarks(
        row["path"],
        xy,
        visibility,
        confidence=np.array(confidence) if has_confidence else None,
        box_xywh=None if not box or any(map(math.isnan, box)) else tuple(box),
        mm_per_px=None if math.isnan(scale) else scale,
        split=row.get("split") or "",
        group=row.get("group") or "",
    )


def _visibility(row: Mapping[str, str], column: str | None, x: float, place: str) -> int:
    if math.isnan(x):
        return MISSING
    text = (row[column] or "").strip() if column else ""
    if text not in ("", "0", "1", "2"):
        raise DataError(f"{place}: {column} is '{text}', expected 0 missing, 1 occluded or 2 visible")
    return int(text) if text else VISIBLE


def _number(row: Mapping[str, str], column: str, place: str, table: Table) -> float:
    """Return the number in a cell, NaN if it is empty."""
    text = (row[column] or "").strip()
    try:
        value = table.number(text) if text else math.nan
    except ValueError:
        raise DataError(f"{place}: {column} is '{text}', expected a number or an empty cell") from None
    if math.isinf(value):
        raise DataError(f"{place}: {column} is '{text}', expected a finite number")
    return value


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
