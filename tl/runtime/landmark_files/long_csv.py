"""CSV of landmarks with one point a row: `path,point,x,y[,visibility][,confidence]`, for plotting and statistics.

Pictures and points come in the order in which they first appear; a point without a row is missing.
"""

from __future__ import annotations

import csv
import math
from io import StringIO

import numpy as np

from tl.errors import DataError
from tl.runtime.landmarks import MISSING, VISIBLE, LandmarkSet, PictureLandmarks, picture_landmarks

COLUMNS = ("path", "point", "x", "y")


def read(text: str, where: str) -> LandmarkSet:
    """Landmarks of all rows. Raises `DataError` naming the row."""
    reader = csv.DictReader(StringIO(text, newline=""))
    names: dict[str, int] = {}
    found: dict[str, dict[str, tuple[float, float, int, float]]] = {}
    for row in reader:
        place = f"{where} row {reader.line_num}"
        path, point = row["path"], row["point"]
        if not path or not point:
            raise DataError(f"{place}: path and point must not be empty")
        names.setdefault(point, len(names))
        points = found.setdefault(path, {})
        if point in points:
            raise DataError(f"{place}: {path} has point '{point}' twice")
        points[point] = _values(row, place)
    pictures = tuple(_picture(path, points, list(names)) for path, points in found.items())
    return LandmarkSet(tuple(names), pictures)


def write(landmarks: LandmarkSet) -> str:
    """CSV text with all columns; what is not known is empty. Boxes, scales, splits and groups have no place in it."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, "visibility", "confidence"])
    for picture in landmarks.pictures:
        for i, name in enumerate(landmarks.keypoint_names):
            x, y = ("" if math.isnan(value) else f"{value:.9g}" for value in picture.keypoints_xy[i].tolist())
            confidence = "" if picture.confidence is None else f"{float(picture.confidence[i]):.6g}"
            writer.writerow([picture.name, name, x, y, int(picture.visibility[i]), confidence])
    return stream.getvalue()


def _values(row: dict[str, str], place: str) -> tuple[float, float, int, float]:
    try:
        x, y, confidence = (float(row.get(name) or "nan") for name in ("x", "y", "confidence"))
        visibility = int(row.get("visibility") or VISIBLE)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if math.isinf(x) or math.isinf(y) or math.isnan(x) != math.isnan(y) or visibility not in (0, 1, 2):
        raise DataError(f"{place}: expected finite x and y, or neither, and visibility 0, 1 or 2")
    return x, y, visibility, confidence


def _picture(path: str, points: dict[str, tuple[float, float, int, float]], names: list[str]) -> PictureLandmarks:
    nothing = (math.nan, math.nan, MISSING, math.nan)
    rows = [points.get(name, nothing) for name in names]
    confidence = np.array([row[3] for row in rows])
    return picture_landmarks(
        path,
        [row[:2] for row in rows],
        [row[2] for row in rows],
        confidence=None if np.isnan(confidence).all() else confidence,
    )
