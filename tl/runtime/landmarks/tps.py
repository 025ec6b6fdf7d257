"""TPS files of the tps programs and geomorph: `LM=`, points one per line, `IMAGE=`, `ID=`, `SCALE=`; y from the bottom.

Needs the height of each image, which TPS files do not contain.
Source: F. J. Rohlf, tpsDig's help; geomorph's `readland.tps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tl.errors import DataError
from tl.runtime.landmarks.sets import ImageLandmarks, LandmarkSet, image_landmarks, numbered_names

# Marks a missing point in geomorph, besides NA.
_MISSING = (-1.0, -1.0)

Height = Callable[[str], int]


@dataclass
class _Record:
    line: int
    points: list[tuple[float, float]]
    facts: dict[str, str] = field(default_factory=dict)
    curves: int = 0


def read(text: str, where: str, height: Height) -> LandmarkSet:
    """Return the landmarks of all records. `height`: IMAGE -> height of the upright image in pixels.

    Points are numbered, because TPS has no names. Curves are skipped and reported in `remarks`; three-dimensional
    points are rejected. Raises `DataError` naming the line.
    """
    records = list(_records(text, where))
    if not records:
        raise DataError(f"{where}: not a TPS file, because no record begins with LM=")
    counts = {len(record.points) for record in records}
    if len(counts) > 1:
        odd = next(record for record in records if len(record.points) != len(records[0].points))
        first = len(records[0].points)
        raise DataError(f"{where} line {odd.line}: LM={len(odd.points)}, but the first record has LM={first}")
    images = tuple(_image(record, where, height) for record in records)
    curves = sum(record.curves > 0 for record in records)
    remarks = (f"curves of {curves} records were discarded",) if curves else ()
    return LandmarkSet(numbered_names(counts.pop()), images, remarks=remarks)


def write(landmarks: LandmarkSet, height: Height) -> str:
    """Return TPS text, y from the bottom; without names, visibility and boxes. Missing points are -1 -1."""
    lines = []
    for i, image in enumerate(landmarks.images):
        lines.append(f"LM={len(landmarks.keypoint_names)}")
        for x, y in image.keypoints_xy.tolist():
            x, y = _MISSING if math.isnan(x) else (x, height(image.name) - y)
            lines.append(f"{x:.5f} {y:.5f}")
        lines += [f"IMAGE={image.name}", f"ID={i}"]
        if image.mm_per_px is not None:
            lines.append(f"SCALE={image.mm_per_px:.9g}")
    return "\n".join(lines) + "\n"


def _records(text: str, where: str) -> Iterator[_Record]:
    record: _Record | None = None
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if not line.strip():
            continue
        key, sign, value = line.partition("=")
        key, value = key.strip().upper(), value.strip()
        place = f"{where} line {number}"
        if not sign:
            raise DataError(f"{place}: expected KEY=VALUE, found '{line.strip()[:40]}'")
        if key in ("LM", "LM3"):
            if record is not None:
                yield record
            if key == "LM3":
                raise DataError(
                    f"{place}: LM3 (three-dimensional points) is not supported; expected two-dimensional points"
                )
            record = _Record(number, [_point(*next(lines, (0, "")), where) for _ in range(_count(value, place))])
        elif record is None:
            raise DataError(f"{place}: {key}= before the first LM=")
        elif key == "CURVES":
            record.curves = _count(value, place)
        elif key == "POINTS":
            for _ in range(_count(value, place)):
                next(lines, None)
        else:
            record.facts[key] = value
    if record is not None:
        yield record


def _count(value: str, place: str) -> int:
    if not value.isdigit():
        raise DataError(f"{place}: expected a number of points, found '{value[:40]}'")
    return int(value)


def _point(number: int, line: str, where: str) -> tuple[float, float]:
    words = line.split()
    try:
        x, y = (math.nan if word.upper() in ("NA", "NAN") else float(word) for word in words)
    except ValueError:
        raise DataError(f"{where} line {number}: expected a point such as '290. 108.', found '{line[:40]}'") from None
    if math.isinf(x) or math.isinf(y):
        raise DataError(f"{where} line {number}: a point must be finite, found '{line[:40]}'")
    return (math.nan, math.nan) if (x, y) == _MISSING else (x, y)


def _image(record: _Record, where: str, height: Height) -> ImageLandmarks:
    image = record.facts.get("IMAGE", "").replace("\\", "/")
    if not image:
        raise DataError(f"{where} line {record.line}: this record has no IMAGE=")
    scale = record.facts.get("SCALE")
    try:
        mm_per_px = None if scale is None else float(scale)
    except ValueError:
        raise DataError(f"{where} line {record.line}: SCALE={scale} is not a number") from None
    if mm_per_px is not None and not 0 < mm_per_px < math.inf:
        raise DataError(f"{where} line {record.line}: SCALE={scale} is not a positive number")
    size = height(image)
    return image_landmarks(image, [(x, size - y) for x, y in record.points], mm_per_px=mm_per_px)
