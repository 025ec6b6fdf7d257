"""Landmark CSV with one row per point, for statistics: `path,point,x,y[,visibility][,confidence][,mm_per_px]`.

Images and points are in order of first appearance; a point without a row is missing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tl.errors import DataError
from tl.runtime.landmarks.sets import MISSING, VISIBLE, ImageLandmarks, LandmarkSet, image_landmarks
from tl.runtime.sources.tables import Table, csv_text, parse_table

COLUMNS = ("path", "point", "x", "y")


def read(text: str, where: str) -> LandmarkSet:
    """Return the landmarks of all rows. Raises `DataError` naming the row."""
    table = parse_table(text, where)
    names: dict[str, int] = {}
    found: dict[str, dict[str, _Row]] = {}
    for line, row in table.rows:
        place = f"{where} row {line}"
        path, point = row["path"], row["point"]
        if not path or not point:
            raise DataError(f"{place}: path and point must not be empty")
        names.setdefault(point, len(names))
        points = found.setdefault(path, {})
        if point in points:
            raise DataError(f"{place}: {path} has point '{point}' twice")
        points[point] = _values(row, place, table)
    images = tuple(_image(path, points, list(names)) for path, points in found.items())
    return LandmarkSet(tuple(names), images)


def write(landmarks: LandmarkSet) -> str:
    """Return CSV text with all columns; unknown values are empty. Boxes, splits and groups are not included."""
    rows: list[list[object]] = [[*COLUMNS, "visibility", "confidence", "mm_per_px"]]
    for image in landmarks.images:
        scale = "" if image.mm_per_px is None else f"{image.mm_per_px:.9g}"
        for i, name in enumerate(landmarks.keypoint_names):
            x, y = ("" if math.isnan(value) else f"{value:.9g}" for value in image.keypoints_xy[i].tolist())
            confidence = "" if image.confidence is None else f"{float(image.confidence[i]):.6g}"
            rows.append([image.name, name, x, y, int(image.visibility[i]), confidence, scale])
    return csv_text(rows)


class _Row(NamedTuple):
    """One point: coordinates, COCO's visibility, confidence and the image's scale; NaN if unknown."""

    x: float
    y: float
    visibility: int
    confidence: float
    mm_per_px: float


def _values(row: dict[str, str], place: str, table: Table) -> _Row:
    try:
        x, y, confidence, scale = (
            table.number(row.get(name) or "nan") for name in ("x", "y", "confidence", "mm_per_px")
        )
        visibility = int(row.get("visibility") or VISIBLE)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if math.isinf(x) or math.isinf(y) or math.isnan(x) != math.isnan(y) or visibility not in (0, 1, 2):
        raise DataError(f"{place}: expected finite x and y, or neither, and visibility 0, 1 or 2")
    if scale <= 0 or math.isinf(scale):
        raise DataError(f"{place}: mm_per_px must be a number above 0, found {scale:g}")
    return _Row(x, y, visibility, confidence, scale)


def _image(path: str, points: dict[str, _Row], names: list[str]) -> ImageLandmarks:
    nothing = _Row(math.nan, math.nan, MISSING, math.nan, math.nan)
    rows = [points.get(name, nothing) for name in names]
    confidence = np.array([row.confidence for row in rows])
    return image_landmarks(
        path,
        [(row.x, row.y) for row in rows],
        [row.visibility for row in rows],
        confidence=None if np.isnan(confidence).all() else confidence,
        mm_per_px=next((row.mm_per_px for row in rows if not math.isnan(row.mm_per_px)), None),
    )
