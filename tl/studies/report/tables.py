"""Turn rows of metrics into tables for people: titles in words, intervals in one cell, and no empty columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl.runtime.metric_names import MAIN_METRICS, plain_name
from tl.studies.report.page import Cell, Figure, Table, shown

# Column of a value -> those of its interval. Others are NAME_low and NAME_high.
_ENDS = {
    **dict.fromkeys(MAIN_METRICS, ("ci_low", "ci_high")),
    "sequence_top1_accuracy": ("sequence_ci_low", "sequence_ci_high"),
}


def metric_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Table:
    """Build a table of rows by technical name. `title` folds it."""
    kept = [name for name in columns if any(_is_known(row.get(name)) for row in rows)]
    intervals = {name: ends for name in kept if (ends := _ends(name, kept)) is not None}
    inside = {end for ends in intervals.values() for end in ends}
    names = [name for name in kept if name not in inside]
    heads = [f"{_title(name)} (95%)" if name in intervals else _title(name) for name in names]
    cells = [[_cell(row, name, intervals.get(name)) for name in names] for row in rows]
    hints = {
        head: ", ".join((name, *intervals.get(name, ())))
        for head, name in zip(heads, names, strict=True)
        if head != name
    }
    return Table(heads, cells, hints, title)


def with_interval(value: float | None, low: float | None, high: float | None) -> Cell:
    """Return a cell that shows a value with its interval, if known."""
    if value is None:
        return None
    if low is None or high is None:
        return float(value)
    return Figure(value, f"{shown(float(value))} ({shown(float(low))} to {shown(float(high))})")


def _ends(name: str, columns: Sequence[str]) -> tuple[str, str] | None:
    ends = _ENDS.get(name, (f"{name}_low", f"{name}_high"))
    return ends if set(ends) <= set(columns) else None


def _title(name: str) -> str:
    plain = plain_name(name)
    return plain.replace("_", " ") if plain == name else plain


def _cell(row: Mapping[str, Any], name: str, ends: tuple[str, str] | None) -> Cell:
    value = row.get(name)
    if isinstance(value, bool):
        return "yes" if value else ""
    if value == "":
        return None
    if ends is not None and value is not None:
        low, high = (row.get(end) if _is_known(row.get(end)) else None for end in ends)
        return with_interval(value, low, high)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _is_known(value: object) -> bool:
    return value is not None and value is not False and value != ""  # 0 is known, though it equals False
