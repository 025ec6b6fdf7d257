"""Summarize a study's runs: one row per setting, over its seeds. Selected and ranked by validation data only.

Does not train, export or read test splits (`selection`).
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl.studies.plan import Search, rung_epochs
from tl.studies.study import Cell
from tl.studies.sweep import CellRun

# Task -> the ranking metric, and whether higher is better.
METRIC = {
    **{"classification": ("top1_accuracy", True), "multilabel": ("map", True)},
    **{"landmarks": ("error_px", False), "regression": ("mae", False)},
}
LARGEST = {"top1_accuracy": 1.0, "map": 1.0, "error_px": math.inf, "mae": math.inf}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval, or a single run's value with its own interval."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Setting:
    """A combination of options, without the seed, and its results. `val` is None if no run has finished."""

    variant: str
    point: tuple[tuple[str, Any], ...]
    runs: tuple[CellRun, ...]
    val: Estimate | None
    best_epoch: float | None
    train_seconds: float | None
    images_per_s: float | None
    trained_parameters: int | None

    @property
    def name(self) -> str:
        """A description for display."""
        return self.runs[0].cell.setting

    @property
    def done(self) -> tuple[CellRun, ...]:
        """The finished runs."""
        return tuple(run for run in self.runs if run.state == "done")

    @property
    def failed(self) -> int:
        """Number of failed runs."""
        return sum(run.state == "failed" for run in self.runs)


def build_settings(runs: Sequence[CellRun], task: str) -> list[Setting]:
    """All settings, best validation result first; those without a finished run last."""
    metric, more_is_better = METRIC[task]
    grouped: dict[tuple[str, tuple[tuple[str, Any], ...]], list[CellRun]] = {}
    for run in runs:
        key = (run.cell.variant, tuple((name, str(value)) for name, value in run.cell.point))
        grouped.setdefault(key, []).append(run)
    settings = [_setting(tuple(own), metric) for own in grouped.values()]
    sign = -1 if more_is_better else 1
    return sorted(settings, key=lambda s: (s.val is None, 0.0 if s.val is None else sign * s.val.mean))


def best_of_variants(settings: Sequence[Setting], apart: Sequence[str] = ()) -> list[Setting]:
    """The first setting of each variant in a ranked list; settings with all seeds come before incomplete ones.

    `apart`: axes whose values count as variants.
    """
    whole = sorted((s for s in settings if s.val is not None), key=lambda s: len(s.done) < len(s.runs))
    first: dict[tuple[str, ...], Setting] = {}
    for setting in whole:
        point = dict(setting.point)
        first.setdefault((setting.variant, *(str(point.get(axis)) for axis in apart)), setting)
    return list(first.values())


def estimate(
    values: Sequence[float], own_interval: tuple[float, float] | None = None, largest: float = math.inf
) -> Estimate:
    """Mean and 95% interval of the mean over seeds (Student's t), within 0 and `largest`.

    For a single value, or equal values, which have no measurable spread, returns the value's own interval.
    """
    mean = float(np.mean(values))
    if len(set(values)) == 1:
        low, high = own_interval or (None, None)
        return Estimate(mean, low, high)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, max(0.0, mean - half), min(largest, mean + half))


def effects(settings: Sequence[Setting], axis: str) -> list[tuple[str, float, int]]:
    """Effect of an axis on validation results: value, mean over its settings, their number; ordered by value."""
    found: dict[str, list[float]] = {}
    for setting in settings:
        point = dict(setting.point)
        if axis in point and setting.val is not None:
            found.setdefault(str(point[axis]), []).append(setting.val.mean)
    return [(value, float(np.mean(means)), len(means)) for value, means in sorted(found.items(), key=_order)]


def _order(pair: tuple[str, list[float]]) -> tuple[float, str]:
    try:
        return float(pair[0]), ""
    except ValueError:
        return math.inf, pair[0]


def _setting(runs: tuple[CellRun, ...], metric: str) -> Setting:
    cell = runs[0].cell
    metrics = [run.metrics() for run in runs if run.state == "done"]
    if not metrics:
        return Setting(cell.variant, cell.point, runs, None, None, None, None, None)
    scores = [each["val"][metric] for each in metrics]
    epochs = [each["best_epoch"] for each in metrics if each["best_epoch"] is not None]
    speeds = list(itertools.chain.from_iterable(_speeds(run) for run in runs if run.state == "done"))
    return Setting(
        variant=cell.variant,
        point=cell.point,
        runs=runs,
        val=estimate(scores, (metrics[0]["val"]["ci_low"], metrics[0]["val"]["ci_high"]), LARGEST[metric]),
        best_epoch=float(np.mean(epochs)) if epochs else None,
        train_seconds=float(np.mean([each["train_seconds"] for each in metrics])),
        images_per_s=float(np.median(speeds)) if speeds else None,
        trained_parameters=metrics[0].get("trained_parameters"),
    )


def _speeds(run: CellRun) -> list[float]:
    path = run.folder / "history.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [float(row["images_per_s"]) for row in csv.DictReader(stream)]


def next_rung(settings: Sequence[Setting], search: Search, epochs: Mapping[str, int]) -> list[Cell]:
    """The runs of the next halving round, once all runs have ended: the best of the last round, with more epochs.

    `settings`: best validation result first. `epochs`: variant -> those of its last round. Failed settings are dropped.
    For each variant and combination of non-searched options, one in `factor` continues, at least one. Empty when the
    search is complete.
    """
    groups: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in settings:
        rest = tuple((n, str(v)) for n, v in setting.point if n not in search.ranges and n != "epochs")
        groups.setdefault((setting.variant, rest), []).append(setting)
    cells: list[Cell] = []
    for (variant, _), own in groups.items():
        rungs = rung_epochs(search, epochs[variant])
        reached = max(dict(setting.point)["epochs"] for setting in own)
        if reached not in rungs[:-1]:
            continue
        last = [s for s in own if dict(s.point)["epochs"] == reached]
        good = [setting for setting in last if setting.val is not None]
        best = good[: max(1, len(last) // (search.factor or 1))]
        more = rungs[rungs.index(reached) + 1]
        cells += [run.cell.with_epochs(more) for setting in best for run in setting.done]
    return cells
