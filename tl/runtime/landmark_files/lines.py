"""Finished JSON lines of predictions -> a landmark file of another kind, and a list of what failed.

Knows the lines' keys. Does not know how a format is written (`files`).
"""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from tl.runtime.files import write_text
from tl.runtime.landmark_files.files import Format, write_landmarks
from tl.runtime.landmarks import LandmarkSet, PictureLandmarks, picture_landmarks


def write_point_file(lines: Path, final: Path, kind: Format | None) -> None:
    """Write `final`, as its name says for None; rows without points go to `NAME.failed.csv` beside it.

    Raises `OutputError`, `DataError`.
    """
    with lines.open(encoding="utf-8", errors="surrogateescape") as stream:
        rows = [json.loads(line) for line in stream]
    good = [row for row in rows if "error" not in row]
    names = tuple(good[0]["keypoints"]) if good else ()
    sizes = {row["path"]: (int(row["image_hw"][0]), int(row["image_hw"][1])) for row in good}
    write_landmarks(LandmarkSet(names, tuple(map(_picture, good))), final, kind, sizes.__getitem__)
    failed = [row for row in rows if "error" in row]
    if failed:
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "error"))
        writer.writerows((row["path"], row["error"]) for row in failed)
        write_text(f"{final}.failed.csv", text.getvalue())


def _picture(row: dict[str, Any]) -> PictureLandmarks:
    points = list(row["keypoints"].values())
    sure = [point["confidence"] for point in points if "confidence" in point]
    confidence = np.array(sure) if len(sure) == len(points) else None
    xy = [(point["x"], point["y"]) for point in points]
    return picture_landmarks(row["path"], xy, confidence=confidence, mm_per_px=row["mm_per_px"])
