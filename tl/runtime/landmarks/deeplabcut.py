"""DeepLabCut's `CollectedData*.csv` and predictions: header rows scorer, bodyparts, coords, then one row per image.

A row begins with the image's path, in one cell or, since DeepLabCut 2.2, in three. Projects with several animals have
a fourth header row and are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tl.errors import DataError
from tl.runtime.landmarks.sets import ImageLandmarks, LandmarkSet, image_landmarks
from tl.runtime.sources.tables import csv_text, decimal, header_of, read_cells, separator_of

SCORER = "tl"
_HEADER = ("scorer", "bodyparts", "coords")


def is_deeplabcut(text: str) -> bool:
    """Return whether a CSV begins like a DeepLabCut file."""
    return header_of(text)[:1] == ["scorer"]


def read(text: str, where: str) -> LandmarkSet:
    """Return the landmarks of all rows; empty cells are missing points. Raises `DataError` naming the row."""
    numbered = read_cells(text, where)
    rows = [row for _, row in numbered]
    found = [row[0] for row in rows[:3]]
    if found[1:2] == ["individuals"]:
        raise DataError(f"{where}: a multi-animal project; expected one specimen per image")
    if tuple(found) != _HEADER:
        raise DataError(f"{where}: expected header rows {', '.join(_HEADER)}, found {', '.join(found)}")
    start = _first_value(rows[2], where)
    columns = list(zip(rows[1][start:], rows[2][start:], strict=False))
    names = tuple(dict.fromkeys(name for name, _ in columns))
    width = len(columns) // len(names) if names else 0
    if columns != [(name, coord) for name in names for coord in ("x", "y", "likelihood")[:width]] or width < 2:
        raise DataError(f"{where}: expected columns x, y[, likelihood] for each body part")
    separator = separator_of(text)
    images = [_image(row, start, width, f"{where} row {line}", separator) for line, row in numbered[3:] if any(row)]
    return LandmarkSet(names, tuple(images))


def write(landmarks: LandmarkSet) -> str:
    """Return CSV text, with likelihoods if points were predicted; without visibility, boxes and scales."""
    has_likelihood = any(image.confidence is not None for image in landmarks.images)
    coords = ("x", "y", "likelihood")[: 3 if has_likelihood else 2]
    names = [name for name in landmarks.keypoint_names for _ in coords]
    rows: list[list[str]] = [
        ["scorer", *[SCORER] * len(names)],
        ["bodyparts", *names],
        ["coords", *coords * len(landmarks.keypoint_names)],
    ]
    for image in landmarks.images:
        values = image.keypoints_xy
        if has_likelihood:
            confidence = np.full(len(values), np.nan) if image.confidence is None else image.confidence
            values = np.column_stack([values, confidence])
        rows.append([image.name, *("" if math.isnan(v) else repr(v) for v in values.ravel().tolist())])
    return csv_text(rows)


def _first_value(coords: Sequence[str], where: str) -> int:
    """Return how many cells the path takes."""
    start = next((i for i, name in enumerate(coords) if name == "x"), 0)
    if start not in (1, 3):
        raise DataError(f"{where}: expected the path in one cell or three before the coordinates, found {start}")
    return start


def _image(row: Sequence[str], start: int, width: int, place: str, separator: str) -> ImageLandmarks:
    try:
        values = np.array([decimal(cell, separator) if cell else math.nan for cell in row[start:]]).reshape(-1, width)
    except ValueError as error:
        raise DataError(f"{place}: not a row of numbers ({error})") from error
    name = "/".join(row[:start]).replace("\\", "/")
    if np.isinf(values).any() or (np.isnan(values[:, 0]) != np.isnan(values[:, 1])).any():
        raise DataError(f"{place}: expected finite x and y, or neither")
    return image_landmarks(name, values[:, :2], confidence=values[:, 2] if width == 3 else None)
