"""Define the columns and rows of output files for each kind of result.

Contains no file access.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from tl.runtime.imaging.regions import Box
from tl.runtime.results import (
    ClassFields,
    Classification,
    Failure,
    Fields,
    Landmarks,
    Multilabel,
    MultilabelFields,
    NoBox,
    PointFields,
    Regression,
    RegressionFields,
    Result,
)
from tl.runtime.sources.box_files import BOX, CATEGORY, CONFIDENCE, RELATIVE_BOX
from tl.runtime.sources.tables import csv_line

ColumnType = Literal["text", "number", "flag", "count", "degrees"]
# Joins the labels of an image; the name of a label must not contain it.
LABEL_SEPARATOR = ";"
# Fields of `MemberVotes` that get a column.
_DISAGREEMENT = ("agreement", "entropy", "mutual_information", "margin")


def join_set(names: Iterable[str]) -> str:
    r"""Join the classes of a set with `|`; in a name, `|` becomes `\|` and `\` becomes `\\`."""
    return "|".join(name.replace("\\", r"\\").replace("|", r"\|") for name in names)


class Columns(Protocol):
    """One kind of result as a table. The first column is `path`, the last `error`."""

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Convert a result's plain form to one value per column, None where it has none."""

    def line(self, result: Any) -> str:
        """Return a CSV row with its line end; for a failure, all cells but path and error are empty."""


def build_columns(fields: Fields) -> Columns:
    """Return the table for results with these fields."""
    if isinstance(fields, ClassFields):
        return ClassColumns(**vars(fields))
    if isinstance(fields, MultilabelFields):
        return MultilabelColumns(**vars(fields))
    if isinstance(fields, RegressionFields):
        return RegressionColumns(**vars(fields))
    return PointColumns(**vars(fields))


@dataclass(frozen=True)
class ClassColumns(ClassFields):
    """Table of classification results.

    `path[,box_x,box_y,box_w,box_h,box_confidence,box_category],label,confidence,p:<class>...[,set][,ood_score][,reason][,rank,rank_label,rank_confidence][,agreement,entropy,mutual_information,margin,
    vote:<member>...],error`. The classes of a set are joined by `join_set`. Boxes in fractions of the image are in
    `box_rel_x,box_rel_y,box_rel_w,box_rel_h`.
    """

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""
        types: dict[str, ColumnType] = {"path": "text"}
        if self.boxes is not None:
            sides = RELATIVE_BOX if self.boxes == "relative" else BOX
            types |= {**dict.fromkeys((*sides, CONFIDENCE), "number"), CATEGORY: "text"}
        types |= {"label": "text", "confidence": "number"}
        types |= {f"p:{name}": "number" for name in self.class_names}
        if self.with_set:
            types["set"] = "text"
        if self.with_ood_score:
            types["ood_score"] = "number"
        if self.with_reason:
            types["reason"] = "text"
        if self.with_rank:
            types |= {"rank": "text", "rank_label": "text", "rank_confidence": "number"}
        if self.member_names:
            types |= dict.fromkeys(_DISAGREEMENT, "number")
            types |= {f"vote:{name}": "text" for name in self.member_names}
        return {**types, "error": "text"}

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Return one value per column."""
        probabilities = line.get("probabilities", {})
        row = [line["path"]]
        if self.boxes is not None:
            row += line.get("box_rel" if self.boxes == "relative" else "box", [None] * len(BOX))
            row += map(line.get, (CONFIDENCE, CATEGORY))
        row += [line.get("label"), line.get("confidence"), *map(probabilities.get, self.class_names)]
        if self.with_set:
            row.append(join_set(line["set"]) if "set" in line else None)
        row += [line.get("ood_score")] * self.with_ood_score + [line.get("reason")] * self.with_reason
        if self.with_rank:
            row += map(line.get, ("rank", "rank_label", "rank_confidence"))
        if self.member_names:
            row += map(line.get, _DISAGREEMENT)
            row += line.get("votes", [None] * len(self.member_names))
        return [*row, line.get("error")]

    def line(self, result: Result) -> str:
        """Return a CSV row with its line end."""
        if not isinstance(result, Classification):
            return self._line_without_label(result)
        shown = shortest(result.probabilities)[1:-1]
        more: list[str] = []
        if self.with_set:
            more.append(join_set(result.class_set or ()))
        if self.with_ood_score:
            more.append("" if result.ood_score is None else number(result.ood_score))
        if self.with_reason:
            more.append(result.reason)
        if result.ranked is not None:
            more += [result.ranked.rank, result.ranked.name, number(result.ranked.confidence)]
        if result.votes is not None:
            more += [number(getattr(result.votes, name)) for name in _DISAGREEMENT] + [*result.votes.labels]
        known = [result.path, *self._box_cells(result.box), result.label]
        first = csv_line([*known, shortest(np.float32(result.confidence))])
        return f"{first[:-1]},{shown},{csv_line([*more, ''])}" if more else f"{first[:-1]},{shown},\n"

    def _box_cells(self, box: Box | None) -> list[str]:
        if self.boxes is None:
            return []
        if box is None:
            return [""] * (len(BOX) + 2)
        confidence = "" if box.confidence is None else number(box.confidence)
        return [*(f"{value:.9g}" for value in box.xywh), confidence, box.category]

    def _line_without_label(self, result: Result) -> str:
        cells = dict.fromkeys(self.types, "")
        boxed = [result.path, *self._box_cells(result.box if isinstance(result, Failure) else None)]
        cells |= dict(zip(self.types, boxed, strict=False))
        if isinstance(result, Failure):
            cells["reason" if isinstance(result, NoBox) else "error"] = result.error
        return csv_line(cells.values())


@dataclass(frozen=True)
class MultilabelColumns(MultilabelFields):
    """Table of several labels.

    `path,labels,p:<class>...[,set][,ood_score][,agreement,vote:<member>...],error`. Labels, those of a set and those of
    a vote are joined by `;`.
    """

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""
        types: dict[str, ColumnType] = {"path": "text", "labels": "text"}
        types |= {f"p:{name}": "number" for name in self.class_names}
        if self.with_set:
            types["set"] = "text"
        if self.with_ood_score:
            types["ood_score"] = "number"
        if self.member_names:
            types |= {"agreement": "number", **{f"vote:{name}": "text" for name in self.member_names}}
        return {**types, "error": "text"}

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Return one value per column."""
        joined = LABEL_SEPARATOR.join
        row = [line["path"], joined(line["labels"]) if "labels" in line else None]
        row += map(line.get("probabilities", {}).get, self.class_names)
        if self.with_set:
            row.append(joined(line["set"]) if "set" in line else None)
        row += [line.get("ood_score")] * self.with_ood_score
        if self.member_names:
            votes = line.get("votes", [None] * len(self.member_names))
            row += [line.get("agreement"), *(None if labels is None else joined(labels) for labels in votes)]
        return [*row, line.get("error")]

    def line(self, result: Result) -> str:
        """Return a CSV row with its line end."""
        if not isinstance(result, Multilabel):
            return _failed_line(result, len(self.types))
        shown = shortest(result.probabilities)[1:-1]
        more = self.values(result.as_dict())[2 + len(self.class_names) : -1]
        cells = [value if isinstance(value, str) else "" if value is None else number(value) for value in more]
        first = csv_line([result.path, LABEL_SEPARATOR.join(result.labels)])[:-1]
        return f"{first},{shown},{csv_line([*cells, ''])}" if cells else f"{first},{shown},\n"


@dataclass(frozen=True)
class PointColumns(PointFields):
    """Table of landmark results; can be read as a landmark file.

    `path[,mm_per_px],x<point>,y<point>[,p<point>][,s<point>]...,centroid_size,shape_distance,is_odd,error`.
    p: confidence. s: spread of an ensemble's members in pixels of the photo.
    """

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""
        types: dict[str, ColumnType] = {"path": "text"}
        if self.with_scale:
            types["mm_per_px"] = "number"
        for name in self.keypoint_names:
            joined = name if name.isdigit() else f"_{name}"
            types |= {f"{sign}{joined}": "number" for sign in self._signs}
        return {**types, "centroid_size": "number", "shape_distance": "number", "is_odd": "flag", "error": "text"}

    @property
    def _signs(self) -> str:
        return "xy" + "p" * self.with_confidence + "s" * self.with_spread

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Return one value per column."""
        row = [line["path"], *[line.get("mm_per_px")] * self.with_scale]
        points = line.get("keypoints", {})
        for name in self.keypoint_names:
            point = points.get(name, {})
            row += [point.get(key) for key in self._keys]
        return [*row, line.get("centroid_size"), line.get("shape_distance"), line.get("is_odd"), line.get("error")]

    @property
    def _keys(self) -> list[str]:
        return ["x", "y", *["confidence"] * self.with_confidence, *["spread_px"] * self.with_spread]

    def line(self, result: Result) -> str:
        """Return a CSV row with its line end."""
        if not isinstance(result, Landmarks):
            return _failed_line(result, len(self.types))
        row = [result.path]
        if self.with_scale:
            row.append("" if result.mm_per_px is None else f"{result.mm_per_px:.9g}")
        for k, (x, y) in enumerate(result.keypoints_xy.tolist()):
            row += [f"{x:.3f}", f"{y:.3f}"]
            if self.with_confidence:
                row.append("" if result.confidence is None else number(float(result.confidence[k])))
            if self.with_spread:
                row.append("" if result.spread_px is None else number(float(result.spread_px[k])))
        distance = "" if result.shape_distance is None else number(result.shape_distance)
        return csv_line([*row, number(result.centroid_size), distance, "yes" if result.is_odd else "no", ""])


@dataclass(frozen=True)
class RegressionColumns(RegressionFields):
    """Table of numbers.

    `path,<target>[,<target>_low,<target>_high][,<target>_spread,<target>:<member>...]...,error`.
    """

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""
        ends = ["", *["_low", "_high"] * self.with_interval]
        if self.member_names:
            ends += ["_spread", *(f":{member}" for member in self.member_names)]
        names: dict[str, ColumnType] = {f"{name}{end}": "number" for name in self.target_names for end in ends}
        return {"path": "text", **names, "error": "text"}

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Return one value per column."""
        keys = ["value", *["low", "high"] * self.with_interval, *["spread"] * bool(self.member_names)]
        cells: list[Any] = []
        for name in self.target_names:
            found = line.get("targets", {}).get(name, {})
            cells += [*map(found.get, keys), *found.get("members", [None] * len(self.member_names))]
        return [line["path"], *cells, line.get("error")]

    def line(self, result: Result) -> str:
        """Return a CSV row with its line end."""
        if not isinstance(result, Regression):
            return _failed_line(result, len(self.types))
        return self.plain_line(result.as_dict())

    def plain_line(self, line: dict[str, Any]) -> str:
        """Return a CSV row of a result's plain form."""
        path, *cells, _ = self.values(line)
        shown = shortest(np.array(cells, np.float32))[1:-1]
        return f"{csv_line([path])[:-1]},{shown},\n"


def number(value: float) -> str:
    """Format a number with six significant digits."""
    return f"{value:.6g}"


def shortest(values: NDArray[np.float32] | np.float32) -> str:
    """Format float32 numbers as JSON with the fewest digits that identify each value.

    For a thousand numbers, Python's own formatting would take a twentieth of a small model's time per image.
    """
    return orjson.dumps(
        np.ascontiguousarray(values) if values.ndim else values, option=orjson.OPT_SERIALIZE_NUMPY
    ).decode()


def _failed_line(result: Any, width: int) -> str:
    return csv_line([result.path, *[""] * (width - 2), result.error])
