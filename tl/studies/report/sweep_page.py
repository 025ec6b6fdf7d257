"""The page of a study: leaderboard, what was selected and how it did on the test split, curves, effects of each axis.

Knows settings and judgements. Does not know HTML or how charts are drawn.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.studies.leaderboard import METRIC, Setting, best_of_variants, effects
from tl.studies.report.charts import Line, bar_chart, line_chart
from tl.studies.report.page import Block, Cell, Chart, Code, Note, Page, Section, Table, write_page
from tl.studies.selection import Judged
from tl.studies.study import Study
from tl.studies.study_files import Row

_MOST_CURVES = 6
_CURVE = {"classification": "val_top1_accuracy", "landmarks": "val_error_px"}


@dataclass(frozen=True)
class Outcome:
    """What came of a study. `ensemble`: split, columns and rows of the selected models' votes, if asked for."""

    settings: Sequence[Setting]
    judged: Sequence[Judged]
    rows: Sequence[Row]
    ensemble: tuple[str, tuple[str, ...], Sequence[Row]] | None = None


def write_sweep_report(study: Study, outcome: Outcome, out: Path, command: str) -> Path:
    """Write `report.html` into the study's folder. Raises `OutputError`, `MissingExtraError`."""
    path = out / "report.html"
    write_page(build_sweep_page(study, outcome, command), path)
    return path


def build_sweep_page(study: Study, outcome: Outcome, command: str) -> Page:
    """All that the page shows."""
    settings, judged, rows = outcome.settings, outcome.judged, outcome.rows
    runs = [run for setting in settings for run in setting.runs]
    done, failed = (sum(run.state == state for run in runs) for state in ("done", "failed"))
    figures = [("runs", f"{done} of {len(runs)}"), ("settings", str(len(settings)))]
    if failed:
        figures.append(("failed", str(failed)))
    if settings and settings[0].val is not None:
        figures.append(("best on validation", settings[0].name))
    if any(each.test for each in judged):
        figures.append(("on test", _test_of_best(judged)))
    sections = [
        Section("Leaderboard", [Table(tuple(rows[0]), [tuple(map(_cell, row.values())) for row in rows])]),
        *_selected(study, judged),
        *_ensemble(outcome),
        *_curves(study, settings),
        *_effects(study, settings),
        *_failures(settings),
        Section("Repeat", [Code(command), *_doubled(study)]),
    ]
    subtitle = study.about or "Settings are ranked and selected by validation data alone."
    return Page(study.name, subtitle, figures, sections)


def _selected(study: Study, judged: Sequence[Judged]) -> list[Section]:
    if not judged:
        return []
    metric, _ = METRIC[study.task]
    rows = []
    for each in judged:
        val, test = each.setting.val, each.test
        rows.append(
            (
                each.setting.name,
                len(each.runs),
                None if val is None else val.mean,
                None if test is None else test.mean,
                None if test is None or test.low is None else test.low,
                None if test is None or test.high is None else test.high,
                each.model_mb,
                each.latency_ms,
            )
        )
    columns = (
        "setting",
        "seeds",
        f"val {metric}",
        f"test {metric}",
        "95% from",
        "to",
        "model, MB",
        "CPU, ms a picture",
    )
    note = (
        "The best setting of each variant by validation, exported and run as its users would run it. The test split "
        "was looked at for these alone, once; intervals are over seeds, or of one run over its pictures. Training with "
        "several seeds also divides training from validation data anew where the data do not say how."
    )
    without = "These data have no test split, so that the figures are those by which settings were chosen: too good."
    return [Section("Selected", [Table(columns, rows), Note(note if any(e.test for e in judged) else without)])]


def _ensemble(outcome: Outcome) -> list[Section]:
    if outcome.ensemble is None:
        return []
    split, columns, rows = outcome.ensemble
    table = Table(columns, [tuple(_cell(row[name]) for name in columns) for row in rows])
    note = f"The selected models, one of each variant, alone and together on the {split} split."
    return [Section("Ensemble", [table, Note(note)])]


def _curves(study: Study, settings: Sequence[Setting]) -> list[Section]:
    name = _CURVE[study.task]
    blocks: list[Block] = []
    for title, chosen in _together(settings).items():
        for column in ("train_loss", name):
            lines = []
            for setting in chosen[:_MOST_CURVES]:
                xs, ys = _curve(setting.done[0].folder / "history.csv", column)
                if ys:
                    lines.append(Line(setting.name, xs, ys))
            if lines:
                blocks.append(Chart(line_chart(f"{title}: {column}", "epoch", lines)))
    note = f"First seeds, {_MOST_CURVES} curves at most. Heads that are solved in one go have none."
    return [Section("Curves", [*blocks, Note(note)])] if blocks else []


def _together(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Which settings share a chart: the best of each variant, and those within a variant."""
    known = [setting for setting in settings if setting.val is not None]
    charts = {"the best of each variant": best_of_variants(settings)}
    for variant in dict.fromkeys(setting.variant for setting in settings):
        charts[variant or "settings"] = [setting for setting in known if setting.variant == variant]
    return {title: chosen for title, chosen in charts.items() if len(chosen) > 1} or {"curves": known}


def _effects(study: Study, settings: Sequence[Setting]) -> list[Section]:
    metric, _ = METRIC[study.task]
    blocks: list[Block] = []
    for axis in study.axes:
        found = effects(settings, axis)
        if len(found) > 1:
            names = [value for value, _, _ in found]
            blocks.append(Chart(bar_chart(f"{axis}", f"mean val {metric}", names, [mean for _, mean, _ in found])))
    note = "Means over all settings with a value, whatever else they have: they say where to look, not what to take."
    return [Section("Axes", [*blocks, Note(note)])] if blocks else []


def _failures(settings: Sequence[Setting]) -> list[Section]:
    rows = [
        (setting.name, run.cell.seed, run.error)
        for setting in settings
        for run in setting.runs
        if run.state == "failed"
    ]
    return [Section("Failed", [Table(("setting", "seed", "reason"), rows)])] if rows else []


def _doubled(study: Study) -> list[Block]:
    return [Note("Not run twice: " + "; ".join(study.doubled))] if study.doubled else []


def _test_of_best(judged: Sequence[Judged]) -> str:
    best = judged[0].test
    return "-" if best is None else f"{best.mean:.4g}"


def _curve(path: Path, column: str) -> tuple[list[float], list[float]]:
    if not path.is_file():
        return [], []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    known = [(float(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
    finite = [(x, y) for x, y in known if math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return "yes" if value else ""
    return value if value is None or isinstance(value, str | int | float) else str(value)
