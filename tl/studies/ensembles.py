"""The selected models of a study as an ensemble: each member and every way of voting or merging, on one split.

Knows model files and the runtime's evaluation. Does not choose members.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tl.runtime.files import write_text
from tl.studies.selection import Judged
from tl.trainer.progress import Progress
from tl.trainer.runs import Run, write_csv


def judge_ensemble(
    judged: Sequence[Judged], task: str, out: Path, progress: Progress, *, test: bool
) -> tuple[str, tuple[str, ...], list[dict[str, Any]]]:
    """The split, the columns and the rows of ensemble.csv, which is written. Members: one of each variant, first seed.

    The split is test where there is one, else validation. Scored once: ensemble.json keeps it. Raises `EnsembleError`
    for models that cannot vote together.
    """
    first = [each.setting.done[0] for each in judged]
    models = [out / "models" / f"{run.cell.name}.onnx" for run in first]
    run = Run(first[0].folder)
    split = "test" if test and run.pictures("test") else "val"
    kept = out / "ensemble.json"
    key = {"models": [model.name for model in models], "split": split}
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["key"] == key:
            return split, tuple(found["columns"]), found["rows"]
    columns, rows = (_points if task == "landmarks" else _classes)(run, models, split, progress)
    write_text(kept, json.dumps({"key": key, "columns": columns, "rows": rows}) + "\n")
    write_csv(out / "ensemble.csv", columns, [[_digits(row[name]) for name in columns] for row in rows])
    return split, columns, rows


def _classes(
    run: Run, models: Sequence[Path], split: str, progress: Progress
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    from tl.runtime.predictor import load
    from tl.trainer.data import read_pictures
    from tl.trainer.evaluate import COLUMNS, choose_split, evaluate

    _, pictures = choose_split(read_pictures(str(run.folder / "manifest.csv"), "split"), split)
    with load(models) as predictor:
        return COLUMNS, evaluate(predictor, pictures, progress).rows


def _points(
    run: Run, models: Sequence[Path], split: str, progress: Progress
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    from tl.runtime.predictor import load_landmarks
    from tl.trainer.landmarks.evaluate import COLUMNS, evaluate_points, read_split

    pictures = read_split(run.folder / "annotations.json", split)
    with load_landmarks(models, boxes=pictures.boxes(run.load_config().crop)) as predictor:
        return COLUMNS, evaluate_points(predictor, pictures, progress).rows


def _digits(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
