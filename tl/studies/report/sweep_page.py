"""Build the report of a study: leaderboard, selected settings and their test scores, curves, effect of each axis."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tl.runtime.metric_names import plain_name
from tl.studies.ensembles import EnsembleScores
from tl.studies.leaderboard import METRIC, Estimate, Setting, best_of_variants, effects
from tl.studies.report.charts import Line, bar_chart, line_chart, trade_chart
from tl.studies.report.page import (
    Block,
    Cell,
    Chart,
    Code,
    Comparison,
    Mark,
    Note,
    Page,
    Section,
    Table,
    shown,
    write_page,
)
from tl.studies.report.tables import metric_table, with_interval
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
    if judged and judged[0].test is not None:
        metric = METRIC[study.task][0]
        figures.append((f"test {plain_name(metric)} of the best", f"{judged[0].test.mean:.3g}"))
    details = metric_table(list(rows[0]), rows, title="All columns of leaderboard.csv")
    sections = [
        Section("Leaderboard", [*_compared(study, outcome), details]),
        *_trades(study, outcome),
        *_selected(outcome),
        *_ensemble(outcome),
        *_effects(study, settings),
        *_curves(study, settings),
        *_failures(settings, outcome.faults),
        Section("Repeat", [Code(command), *_doubled(study)]),
    ]
    return Page(
        title=study.plan.name,
        subtitle=study.plan.about or "Settings are ranked and selected on validation data only.",
        figures=figures,
        sections=sections,
        kicker=f"Study of {len(settings)} settings",
        headline=_headline(study, outcome),
    )


def _headline(study: Study, outcome: Outcome) -> str:
    """The best setting, and its scores."""
    judged = outcome.judged
    best = judged[0].setting if judged else outcome.settings[0]
    if best.val is None:
        return "No run has finished."
    name = plain_name(METRIC[study.task][0])
    text = f"Best on validation: {best.name}, with a {name} of {_interval(best.val)}."
    if judged and judged[0].test is not None:
        text += f" On test images: {_interval(judged[0].test)}."
    others = [each for each in outcome.settings if each is not best and each.val is not None]
    close = [each for each in others if _overlaps(each.val, best.val)]
    if close:
        text += f" The intervals of {len(close)} other settings overlap with its own: the order may be chance."
    return text


def _interval(found: Estimate | None) -> str:
    return "-" if found is None else shown(with_interval(found.mean, found.low, found.high))


def _overlaps(one: Estimate | None, other: Estimate | None) -> bool:
    """Whether two intervals are known and have values in common."""
    ends = [end for each in (one, other) if each is not None for end in (each.low, each.high)]
    low, high, other_low, other_high = ends if len(ends) == 4 else [None] * 4
    if low is None or high is None or other_low is None or other_high is None:
        return False
    return low <= other_high and other_low <= high


def _compared(study: Study, outcome: Outcome) -> list[Block]:
    """The picture of all settings, in their order on validation data."""
    metric, more_is_better = METRIC[study.task]
    tests = {each.setting.name: each for each in outcome.judged}
    rows = []
    for setting in outcome.settings:
        judged = tests.get(setting.name)
        test = judged.test if judged else None
        found = (("validation", setting.val), ("test", test))
        marks = [Mark(name, each.mean, each.low, each.high) for name, each in found if each is not None]
        cells: list[Cell] = [
            None if each is None else with_interval(each.mean, each.low, each.high) for each in (setting.val, test)
        ]
        cells += [len(setting.done), setting.train_seconds]
        rows.append((setting.name, marks, cells))
    names = (f"val_{metric}", f"test_{metric}", "seeds", "train_seconds")
    heads = [plain_name(name) for name in names]
    note = (
        f"{plain_name(metric).capitalize()} of each setting with its 95% interval, best validation result first; "
        f"{'higher' if more_is_better else 'lower'} is better. Intervals are over seeds, or over images for one seed."
    )
    tested = any(each.test for each in outcome.judged)
    if not tested:
        rows = [(name, marks, [cell for k, cell in enumerate(cells) if k != 1]) for name, marks, cells in rows]
        heads.pop(1)
    hints = {plain_name(name): name for name in names if plain_name(name) != name}
    return [Note(note), Comparison(heads, rows, hints)]


def _trades(study: Study, outcome: Outcome) -> list[Section]:
    """Score against what it costs: training time of all settings, latency and size of the selected ones."""
    metric, _ = METRIC[study.task]
    label = plain_name(f"val_{metric}")
    known = [
        (each.name, each.train_seconds, each.val.mean)
        for each in outcome.settings
        if each.val is not None and each.train_seconds is not None
    ]
    charts = []
    if len(known) > 1:
        names, seconds, scores = zip(*known, strict=True)
        charts.append(trade_chart(f"{label}, by training time", "training, s", label, names, seconds, scores))
    chosen = [each for each in outcome.judged if each.setting.val is not None]
    if len(chosen) > 1:
        own = [each.setting.val.mean for each in chosen if each.setting.val is not None]
        shown_names = [each.setting.name for each in chosen]
        for title, values in (
            ("CPU, ms per image", [each.latency_ms for each in chosen]),
            ("model, MB", [each.model_mb for each in chosen]),
        ):
            charts.append(trade_chart(f"{label}, by {title}", title, label, shown_names, values, own))
    return [Section("Cost", [Chart(chart) for chart in charts])] if charts else []


def _selected(outcome: Outcome) -> list[Section]:
    judged = outcome.judged
    if not judged:
        return []
    columns = ("setting", "model of the first seed", "model, MB", "CPU, ms per image")
    rows = [
        (each.setting.name, f"models/{each.setting.done[0].cell.name}.onnx", each.model_mb, each.latency_ms)
        for each in judged
    ]
    note = (
        "The best setting of each variant on validation data, exported and run with the same runtime as in production. "
        "If the data has no split, each seed also draws its own split into training and validation images. "
    )
    if any(each.test for each in judged):
        note += "Only these settings were evaluated on test images."
    elif outcome.tested:
        note += "The data has no test split: these scores were also used for selection and are too optimistic."
    else:
        note += "No test image was evaluated."
    if any(each.setting.runs[0].cell.config.crop != "whole" for each in judged):
        note += " Models that use a region of each photo received the region from the annotations."
    hints = {"model, MB": "model_mb", "CPU, ms per image": "latency_ms"}
    return [Section("Selected", [Table(columns, rows, hints), Note(note)])]


def _ensemble(outcome: Outcome) -> list[Section]:
    if outcome.ensemble is None:
        return []
    found = outcome.ensemble
    note = f"The selected models, one per variant, from seed {found.seed}: alone and combined, on {found.split} data."
    return [Section("Ensemble", [metric_table(found.columns, found.rows), Note(note)])]


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
