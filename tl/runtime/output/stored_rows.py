"""Read rows that were written as JSON lines back into results, from which any other format can be written.

JSON rows keep every digit, so that a CSV row written from one is the same as one written at once. Not read: members'
own probabilities and points, which no row contains.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import orjson

from tl.runtime.ensembles.taxonomy import Ranked
from tl.runtime.imaging.regions import Box
from tl.runtime.output.columns import Columns, RegressionColumns
from tl.runtime.results import (
    ClassFields,
    Classification,
    Failure,
    Fields,
    Landmarks,
    MemberVotes,
    Multilabel,
    MultilabelFields,
    NoBox,
    PointFields,
    RegressionFields,
    Result,
)

_NO_PROBABILITIES = np.empty((0, 0), np.float32)


def parse_row(row: str) -> dict[str, Any]:
    """Parse one JSON line."""
    try:
        return cast("dict[str, Any]", orjson.loads(row))
    except orjson.JSONDecodeError:  # a path that is not valid UTF-8, with its bytes as surrogates
        return cast("dict[str, Any]", json.loads(row))


def csv_row(line: dict[str, Any], fields: Fields, columns: Columns) -> str:
    """Return the CSV row that `columns` would have written for the result of a line, with its line end."""
    if isinstance(fields, RegressionFields) and "error" not in line:
        return RegressionColumns(**vars(fields)).plain_line(line)  # ends of intervals are not computed again
    return columns.line(read_result(line, fields))


def read_result(line: dict[str, Any], fields: Fields) -> Result:
    """Return the result that `as_dict` has turned into `line`; for numbers only a failure.

    Raises KeyError and the like for any other line.
    """
    if "error" in line:
        return Failure(line["path"], line["error"], _box(line))
    if isinstance(fields, ClassFields) and "label" not in line:
        return NoBox(line["path"], line["reason"])
    for kind, read in _READERS.items():
        if isinstance(fields, kind):
            return read(line, fields)
    raise TypeError(f"unknown fields {type(fields).__name__}")


def _box(line: dict[str, Any]) -> Box | None:
    is_relative = "box_rel" in line
    place = line.get("box_rel" if is_relative else "box")
    if place is None:
        return None
    x, y, width, height = place
    return Box(
        (x, y, width, height),
        is_relative=is_relative,
        confidence=line.get("box_confidence"),
        category=line.get("box_category", ""),
        number=line["box_number"],
    )


def _read_classification(line: dict[str, Any], fields: ClassFields) -> Classification:
    names = tuple(fields.class_names)
    votes = None
    if "votes" in line:
        shown = (line[key] for key in ("agreement", "entropy", "mutual_information", "margin"))
        votes = MemberVotes(tuple(line["votes"]), _NO_PROBABILITIES, *shown)
    ranked = Ranked(line["rank"], line["rank_label"], line["rank_confidence"]) if "rank" in line else None
    return Classification(
        line["path"],
        line["label"],
        line["confidence"],
        names,
        np.array([line["probabilities"][name] for name in names], np.float32),
        votes=votes,
        class_set=tuple(line["set"]) if "set" in line else None,
        ood_score=line.get("ood_score"),
        reason=line.get("reason", ""),
        ranked=ranked,
        box=_box(line),
    )


def _read_landmarks(line: dict[str, Any], fields: PointFields) -> Landmarks:
    points = [line["keypoints"][name] for name in fields.keypoint_names]

    def column(key: str) -> list[float] | None:
        return [point[key] for point in points] if points and all(key in point for point in points) else None

    confidence, spread = column("confidence"), column("spread_px")
    return Landmarks(
        line["path"],
        tuple(fields.keypoint_names),
        np.array([(point["x"], point["y"]) for point in points], np.float64).reshape(-1, 2),
        None if confidence is None else np.array(confidence, np.float32),
        None if spread is None else np.array(spread, np.float64),
        line["shape_distance"],
        line["is_odd"],
        (line["image_hw"][0], line["image_hw"][1]),
        cast("tuple[float, float, float, float]", tuple(line["region_xywh"])),
        (),
        mm_per_px=line["mm_per_px"],
    )


def _read_multilabel(line: dict[str, Any], fields: MultilabelFields) -> Multilabel:
    return Multilabel(
        line["path"],
        tuple(fields.class_names),
        np.array([line["probabilities"][name] for name in fields.class_names], np.float32),
        tuple(line["labels"]),
        label_set=tuple(line["set"]) if "set" in line else None,
        agreement=line.get("agreement"),
        votes=tuple(tuple(labels) for labels in line["votes"]) if "votes" in line else None,
        ood_score=line.get("ood_score"),
    )


_READERS: dict[type, Callable[[dict[str, Any], Any], Result]] = {
    ClassFields: _read_classification,
    PointFields: _read_landmarks,
    MultilabelFields: _read_multilabel,
}
