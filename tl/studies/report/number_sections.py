"""Build the sections on numbers of a run's report: predicted against true, errors, and the worst images."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.studies.report.charts import histogram, scatter_chart
from tl.studies.report.page import Card, Chart, Gallery, Section, Table
from tl.studies.report.run_files import FinishedRun
from tl.studies.report.thumbnails import thumbnail

_SIDE, _WORST = 320, 12


def number_figures(finished: FinishedRun) -> list[tuple[str, str]]:
    """Return the key figures, (name, value)."""
    s, units = finished.scores, finished.config.unit or ()
    unit = f" {units[0]}" if len(units) == 1 else ""
    return [
        ("mean absolute error (95%)", f"{s['mae']:.4g}{unit} ({s['ci_low']:.4g} to {s['ci_high']:.4g})"),
        ("of the training mean", f"{s['baseline_mae']:.4g}{unit}"),
        ("RMSE", f"{s['rmse']:.4g}{unit}"),
        ("R2", "undefined" if s["r2"] is None else f"{s['r2']:.3f}"),
        ("images", str(s["n"])),
    ]


def number_sections(finished: FinishedRun) -> list[Section]:
    """Build the sections. Raises `RunError`."""
    names, columns = finished.card.target_names, ("n", "mae", "rmse", "r2", "baseline_mae")
    rows = [(name, *(scores[key] for key in columns)) for name, scores in finished.scores["per_target"].items()]
    heads = ("target", "images", "mean absolute error", "RMSE", "R2", "error of the training mean")
    sections = [Section("Targets", [Table(heads, rows)])]
    return [*sections, *(_target(finished, name) for name in names if name in finished.scores["per_target"])]


@dataclass(frozen=True)
class _Predicted:
    """The images of a target that is known: paths, and true and predicted numbers (N,)."""

    paths: list[str]
    true: NDArray[np.float64]
    found: NDArray[np.float64]


def _target(finished: FinishedRun, name: str) -> Section:
    unit = dict(zip(finished.card.target_names, finished.config.unit or (), strict=False)).get(name, "")
    of = f", {unit}" if unit else ""
    data = _read(finished, name)
    errors = data.found - data.true
    charts = [
        scatter_chart(
            f"{name}: predicted against true", f"true{of}", f"predicted{of}", data.true.tolist(), data.found.tolist()
        ),
        histogram(f"{name}: errors, predicted minus true", f"error{of}", errors.tolist()),
    ]
    worst = np.argsort(-np.abs(errors), kind="stable")[:_WORST]
    cards = [
        Card(
            thumbnail(data.paths[i], finished.card.preprocessing, _SIDE),
            [os.path.basename(data.paths[i]), f"true {data.true[i]:.4g}, predicted {data.found[i]:.4g}"],
        )
        for i in worst
    ]
    note = f"The {len(worst)} largest errors of {len(errors)} images."
    return Section(name, [*map(Chart, charts), Gallery(cards, note)])


def _read(finished: FinishedRun, name: str) -> _Predicted:
    rows = finished.rows(f"predictions_{finished.split}.csv")
    paths = finished.paths(finished.split)
    known = [i for i, row in enumerate(rows) if row[f"true:{name}"]]
    true, found = (np.array([float(rows[i][column]) for i in known]) for column in (f"true:{name}", name))
    return _Predicted([paths[i] for i in known], true, found)
