"""Tables of metrics and the numbers in their cells."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tl.studies.report.page import Cell, Figure, shown
from tl.studies.report.tables import metric_table, with_interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("0.5", "0.5"),
        (Figure(0.5, "half"), "half"),
        (True, "True"),
        (0, "0"),
        (1234, "1234"),
        (99_999, "99999"),
        (100_000, "100,000"),
        (-1_234_567, "-1,234,567"),
        (0.0, "0"),
        (0.0001234, "0.000123"),
        (0.001, "0.001"),
        (0.05, "0.050"),
        (-0.05, "-0.050"),
        (0.9116, "0.912"),
        (0.9994, "0.999"),
        (0.9996, "0.9996"),
        (0.99996, "0.99996"),
        (0.999999, "0.999999"),
        (-0.999999, "-0.999999"),
        (math.fsum([0.1] * 10) - 1e-16, "1.000"),
        (1.0, "1.000"),
        (1.234, "1.23"),
        (9.5, "9.5"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234.0, "1234"),
        (1234.4, "1234"),
        (99_999.6, "100,000"),
        (-123_456.7, "-123,457"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_shown(value: Cell, text: str) -> None:
    assert shown(value) == text


def test_with_interval__as_far_as_known() -> None:
    assert with_interval(0.5, 0.0, 1.0) == Figure(0.5, "0.500 (0 to 1.000)")
    assert with_interval(2, 1, 3) == Figure(2, "2 (1.000 to 3)")
    assert with_interval(0.5, None, 1.0) == with_interval(0.5, 0.0, None) == 0.5
    assert with_interval(None, 0.0, 1.0) is None


@pytest.mark.parametrize(
    ("name", "low", "high", "head"),
    [
        ("top1_accuracy", "ci_low", "ci_high", "top-1 accuracy (95%)"),
        ("map", "ci_low", "ci_high", "mean average precision (95%)"),
        ("error_px", "ci_low", "ci_high", "mean error, px (95%)"),
        ("mae", "ci_low", "ci_high", "mean absolute error (95%)"),
        (
            *("sequence_top1_accuracy", "sequence_ci_low", "sequence_ci_high"),
            "top-1 accuracy of sequences (95%)",
        ),
        ("val_macro_f1", "val_macro_f1_low", "val_macro_f1_high", "validation macro F1 (95%)"),
    ],
)
def test_metric_table__intervals_in_one_cell(name: str, low: str, high: str, head: str) -> None:
    """An interval that begins at 0 in all rows is known; one that a row lacks is left out there."""
    rows: list[dict[str, Any]] = [{name: 0.25, low: 0.0, high: 0.5}, {name: 0.75, low: "", high: None}, {name: None}]
    table = metric_table([name, low, high], rows, title="All")
    assert (table.columns, table.title) == ([head], "All")
    assert table.rows == [[Figure(0.25, "0.250 (0 to 0.500)")], [0.75], [None]]
    assert table.hints == {head: f"{name}, {low}, {high}"}


def test_metric_table__zero_is_known_and_no_is_not() -> None:
    names = ("model", "failed", "gain", "tta", "is_best", "voting", "ece")
    rows = [
        {"model": "a", "failed": 0, "gain": 0.0, "tta": False, "is_best": True, "voting": "", "ece": None},
        {"model": "b", "failed": 0, "gain": 0.0, "tta": False, "is_best": False, "voting": ""},
    ]
    table = metric_table(names, rows)
    assert table.columns == ["model", "failed", "gain", "is best"]
    assert table.rows == [["a", 0, 0.0, "yes"], ["b", 0, 0.0, ""]]
    assert table.hints == {"is best": "is_best"}
