"""The files in a study's folder: leaderboard.csv, leaderboard.json, and study.json, which says whose folder it is.

Does not run or select.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tl.errors import OutputError
from tl.runtime.output.files import check_output_folder, write_text
from tl.runtime.sources.tables import csv_text
from tl.studies.leaderboard import METRIC, Estimate, Setting
from tl.studies.selection import Judged
from tl.studies.study import Study

Row = dict[str, Any]
_MARK = "study.json"


def check_study_folder(out: Path, study: str, *, overwrite: bool = False) -> None:
    """Check, before any work, that a folder is new, empty, or that of the study `study`. Raises `OutputError`.

    With `overwrite`, any folder may become a study's: what is not of the study stays in it.
    """
    check_output_folder(out)
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    owner = _owner(out) or (study if (out / "sweep.lock").is_file() else None)  # from before folders were marked
    if owner != study:
        what = f"is the folder of another study, '{owner}'" if owner else "exists and was not made by a study"
        raise OutputError(f"{out}: {what}: give another folder, or use it all the same", options=["overwrite"])


def mark_study_folder(out: Path, study: str) -> None:
    """Record which study a folder belongs to. Raises `OutputError`."""
    write_text(out / _MARK, json.dumps({"study": study}, ensure_ascii=False) + "\n")


def _owner(out: Path) -> str | None:
    """The study that a folder belongs to, None if it was not made by one."""
    try:
        found = json.loads((out / _MARK).read_text(encoding="utf-8"))
        return str(found["study"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def leaderboard_rows(study: Study, settings: Sequence[Setting], judged: Sequence[Judged]) -> list[Row]:
    """One row per setting, best validation result first. Unknown values are None."""
    metric, _ = METRIC[study.task]
    by_name = {each.setting.name: each for each in judged}
    return [_row(study, setting, by_name.get(setting.name), metric) for setting in settings]


def write_leaderboard(rows: Sequence[Row], out: Path) -> None:
    """Write leaderboard.csv and leaderboard.json. Raises `OutputError`."""
    columns = tuple(rows[0])
    shown = [["" if row[name] is None else _digits(row[name]) for name in columns] for row in rows]
    write_text(out / "leaderboard.csv", csv_text([columns, *shown]))
    write_text(out / "leaderboard.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def _row(study: Study, setting: Setting, judged: Judged | None, metric: str) -> Row:
    point = dict(setting.point)
    return {
        "variant": setting.variant,
        **{axis: _plain(point.get(axis)) for axis in study.axes},
        "seeds": len(setting.done),
        "failed": setting.failed,
        **_interval(f"val_{metric}", setting.val),
        "selected": judged is not None,
        **_interval(f"test_{metric}", judged.test if judged else None),
        "best_epoch": setting.best_epoch,
        "train_seconds": setting.train_seconds,
        "images_per_s": setting.images_per_s,
        "trained_parameters": setting.trained_parameters,
        "model_mb": judged.model_mb if judged else None,
        "latency_ms": judged.latency_ms if judged else None,
    }


def _interval(name: str, found: Estimate | None) -> Row:
    return {
        name: found.mean if found else None,
        f"{name}_low": found.low if found else None,
        f"{name}_high": found.high if found else None,
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _digits(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
