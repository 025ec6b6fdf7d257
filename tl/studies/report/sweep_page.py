"""Build the report of a study: leaderboard, selected settings and their test scores, curves, effect of each axis."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.runtime.metric_names import plain_name
from tl.studies.ensembles import EnsembleScores
from tl.studies.leaderboard import METRIC, Setting, best_of_variants, effects
from tl.studies.report.charts import Line, bar_chart, line_chart
from tl.studies.report.page import Block, Cell, Chart, Code, Note, Page, Section, Table, write_page
from tl.studies.selection import Judged
from tl.studies.study import Study
from tl.studies.study_files import Row

_MOST_CURVES, _MOST_BARS = 6, 12
_CURVE = {
    **{"classification": "val_top1_accuracy", "multilabel": "val_macro_f1"},
    **{"landmarks": "val_error_px", "regression": "val_scaled_mae"},
}


@dataclass(frozen=True)
class Outcome:
    """Results of a study. `tested`: whether test splits were evaluated. `ensemble`: scores of the selected models."""

    settings: Sequence[Setting]
    judged: Sequence[Judged]
    rows: Sequence[Row]
    tested: bool
    ensemble: EnsembleScores | None = None
    faults: Sequence[str] = ()


def write_sweep_report(study: Study, outcome: Outcome, out: Path, command: str) -> Path:
    """Write `report.html` to the study's folder. Raises `OutputError`, `MissingExtraError`."""
    path = out / "report.html"
    write_page(build_sweep_page(study, outcome, command), path)
    return path


def build_sweep_page(study: Study, outcome: Outcome, command: str) -> Page:
    """Build the page."""
    settings, judged, rows = outcome.settings, outcome.judged, outcome.rows
    runs = [run for setting in settings for run in setting.runs]
    done, failed = (sum(run.state == state for run in runs) for state in ("done", "failed"))
    figures = [("runs", f"{done} of {len(runs)}"), ("settings", str(len(settings)))]
    if failed:
        figures.append(("failed", str(failed)))
    best = judged[0].setting if judged else settings[0]
    if best.val is not None:
        figures.append(("best on validation", best.name))
    if judged and judged[0].test is not None:
        figures.append((f"test {plain_name(METRIC[study.task][0])} of the best", f"{judged[0].test.mean:.4g}"))
    sections = [
        Section(
            "Leaderboard",
            [Table([plain_name(name) for name in rows[0]], [tuple(map(_cell, row.values())) for row in rows])],
        ),
        *_selected(study, outcome),
        *_ensemble(outcome),
        *_curves(study, settings),
        *_effects(study, settings),
        *_failures(settings, outcome.faults),
        Section("Repeat", [Code(command), *_doubled(study)]),
    ]
    subtitle = study.plan.about or "Settings are ranked and selected on validation data only."
    return Page(study.plan.name, subtitle, figures, sections)


def _selected(study: Study, outcome: Outcome) -> list[Section]:
    judged = outcome.judged
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
                f"models/{each.setting.done[0].cell.name}.onnx",
            )
        )
    columns = (
        "setting",
        "seeds",
        plain_name(f"val_{metric}"),
        plain_name(f"test_{metric}"),
        "95% CI low",
        "95% CI high",
        "model, MB",
        "CPU, ms per image",
        "model of the first seed",
    )
    note = (
        "The best setting of each variant on validation data, exported and run with the same runtime as in production. "
        "Intervals are over seeds, or over images for a single run. If the data has no split, each seed also draws its "
        "own split into training and validation images. "
    )
    if any(each.test for each in judged):
        note += "Only these settings were evaluated on test images."
    elif outcome.tested:
        note += "The data has no test split: these scores were also used for selection and are too optimistic."
    else:
        note += "No test image was evaluated."
    if any(each.setting.runs[0].cell.config.crop != "whole" for each in judged):
        note += " Models that use a region of each photo received the region from the annotations."
    return [Section("Selected", [Table(columns, rows), Note(note)])]


def _ensemble(outcome: Outcome) -> list[Section]:
    if outcome.ensemble is None:
        return []
    found = outcome.ensemble
    table = Table(
        [plain_name(name) for name in found.columns],
        [tuple(_cell(row[name]) for name in found.columns) for row in found.rows],
    )
    note = f"The selected models, one per variant, from seed {found.seed}: alone and combined, on {found.split} data."
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
                blocks.append(Chart(line_chart(f"{title}: {plain_name(column)}", "epoch", lines)))
    note = f"First seed of each setting, at most {_MOST_CURVES} curves. Heads that are solved without epochs have none."
    return [Section("Curves", [*blocks, Note(note)])] if blocks else []


def _together(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Group settings into charts: the best of each variant, and all settings of each variant."""
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
            blocks.append(Chart(_effect_chart(axis, f"mean {plain_name(f'val_{metric}')}", found)))
    note = (
        "Mean over all settings with the same value on an axis. Use it as a hint for further runs, not for selection."
    )
    return [Section("Axes", [*blocks, Note(note)])] if blocks else []


def _effect_chart(axis: str, label: str, found: Sequence[tuple[str, float, int]]) -> str:
    names, means = [value for value, _, _ in found], [mean for _, mean, _ in found]
    if len(found) > _MOST_BARS:  # drawn from a range
        with suppress(ValueError):
            return line_chart(f"{axis}: {label}", axis, [Line(label, [float(name) for name in names], means)])
    return bar_chart(axis, label, names, means)


def _failures(settings: Sequence[Setting], faults: Sequence[str]) -> list[Section]:
    rows = [
        (setting.name, run.cell.seed, run.error)
        for setting in settings
        for run in setting.runs
        if run.state == "failed"
    ]
    blocks: list[Block] = [Note(fault) for fault in faults]
    if rows:
        blocks.append(Table(("setting", "seed", "reason"), rows))
    return [Section("Failed", blocks)] if blocks else []


def _doubled(study: Study) -> list[Block]:
    return [Note("Duplicate settings, run only once: " + "; ".join(study.doubled))] if study.doubled else []


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
