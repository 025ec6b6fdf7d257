"""Compare finished runs: their results, and the options in which they differ.

Does not rank: runs may use different data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl.errors import ConfigError
from tl.studies.leaderboard import METRIC
from tl.studies.report.run_files import FinishedRun, open_finished
from tl.trainer.config_files import own_choices
from tl.trainer.run_folder.run import Run

# The run's location and hardware settings are not differences of method.
_UNTOLD = ("out", "device", "threads", "workers", "cache", "test")


def compare_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run, in the given order: scores with 95% intervals, cost, and the options in which the runs differ.

    `same_data`: whether images, labels and splits equal those of the first run. Raises `RunError`, and `ConfigError`
    for runs of different tasks.
    """
    opened = [open_finished(run) for run in runs]
    tasks = {each.config.task for each in opened}
    if len(tasks) > 1:
        raise ConfigError(f"runs of different tasks cannot be compared: {', '.join(sorted(map(str, tasks)))}")
    first = runs[0].data_hash()
    differing = _differing([each.config for each in opened])
    return [
        {
            "run": str(each.run.folder),
            "same_data": each.run.data_hash() == first,
            **_scores(each, "val"),
            **_scores(each, "test"),
            "best_epoch": each.metrics["best_epoch"],
            "train_seconds": each.metrics["train_seconds"],
            "trained_parameters": each.metrics.get("trained_parameters"),
            **{name: _plain(getattr(each.config, name)) for name in differing},
        }
        for each in opened
    ]


def _scores(finished: FinishedRun, split: str) -> dict[str, Any]:
    metric, _ = METRIC[str(finished.config.task)]
    found = finished.metrics.get(split, {})
    names = {metric: metric, "low": "ci_low", "high": "ci_high"}
    return {
        f"{split}_{metric}" if name == metric else f"{split}_{metric}_{name}": found.get(key)
        for name, key in names.items()
    }


def _differing(configs: Sequence[Any]) -> list[str]:
    """Explicitly chosen options that differ between runs."""
    chosen = dict.fromkeys(name for config in configs for name in own_choices(config) if name not in _UNTOLD)
    return [name for name in chosen if len({repr(getattr(config, name)) for config in configs}) > 1]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
