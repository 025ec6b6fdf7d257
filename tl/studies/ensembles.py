"""Evaluate a study's selected models as an ensemble: each member and every voting or merging rule, on one split.

Does not choose members.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.errors import EnsembleError
from tl.progress import Progress
from tl.runtime.output.files import write_text
from tl.runtime.sources.paths import hash_file
from tl.studies.selection import Judged
from tl.studies.sweep import CellRun
from tl.trainer.run_folder.run import Run, write_csv

Row = dict[str, Any]


@dataclass(frozen=True)
class EnsembleScores:
    """`rows`: one per member, then one per rule, with `columns` among their keys. `seed`: of the members."""

    split: str
    seed: int
    columns: tuple[str, ...]
    rows: list[Row]


def judge_ensemble(judged: Sequence[Judged], task: str, out: Path, progress: Progress, *, test: bool) -> EnsembleScores:
    """Score one model of each variant, all with the same seed, alone and together, and write ensemble.csv.

    Uses the test split if there is one, else validation images. Scores are computed once and kept in ensemble.json.
    Raises `EnsembleError` for models that cannot be evaluated together.
    """
    runs = _of_one_seed(judged)
    models = [out / "models" / f"{run.cell.name}.onnx" for run in runs]
    first = Run(runs[0].folder)
    split = "test" if test and first.images("test") else "val"
    _check_unseen(runs, split)
    key = {"models": [hash_file(model) for model in models], "split": split, "data": first.data_hash()}
    kept = out / "ensemble.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if found.get("key") != key:
        kinds = {"classification": _classes, "multilabel": _labels, "landmarks": _points, "regression": _numbers}
        judge = kinds[task]
        columns, rows = judge(first, models, split, progress)
        found = {"key": key, "columns": columns, "rows": rows}
        write_text(kept, json.dumps(found) + "\n")
        write_csv(out / "ensemble.csv", columns, [[_digits(row[name]) for name in columns] for row in rows])
    return EnsembleScores(split, runs[0].cell.seed, tuple(found["columns"]), found["rows"])


def _of_one_seed(judged: Sequence[Judged]) -> list[CellRun]:
    by_seed = [{run.cell.seed: run for run in each.setting.done} for each in judged]
    shared = sorted(set.intersection(*map(set, by_seed)))
    if not shared:
        raise EnsembleError("no ensemble: there is no seed for which the runs of all selected settings have finished")
    runs = [runs[shared[0]] for runs in by_seed]
    if len({run.cell.config.crop for run in runs}) > 1:
        raise EnsembleError("no ensemble: the selected models use different regions of a photo (crop)")
    return runs


def _check_unseen(runs: Sequence[CellRun], split: str) -> None:
    """Raise `EnsembleError` if a member was trained on an image of the first member's evaluation split."""
    judged_by = set(_contents(runs[0], split))
    for run in runs[1:]:
        if judged_by & set(_contents(run, "train")):
            raise EnsembleError(
                f"no ensemble: {run.cell.setting} was trained on {split} images of "
                f"{runs[0].cell.setting}; use the same split of the data for all"
            )


def _contents(run: CellRun, split: str) -> list[str]:
    return Run(run.folder).digests(split)


def _classes(run: Run, models: Sequence[Path], split: str, progress: Progress) -> tuple[tuple[str, ...], list[Row]]:
    from tl.data.manifests import read_images
    from tl.evaluation.evaluate import choose_split, evaluate
    from tl.runtime.predictor import load

    _, images = choose_split(read_images(str(run.folder / "manifest.csv")), split)
    with load(models) as predictor:
        result = evaluate(predictor, images, progress)
    return result.columns, result.rows


def _points(run: Run, models: Sequence[Path], split: str, progress: Progress) -> tuple[tuple[str, ...], list[Row]]:
    from tl.evaluation.landmarks import COLUMNS, evaluate_points, read_split
    from tl.runtime.predictor import load_landmarks

    images = read_split(run.folder / "annotations.json", split)
    with load_landmarks(models, boxes=images.boxes(run.load_config().crop)) as predictor:
        return COLUMNS, evaluate_points(predictor, images, progress).rows


def _numbers(run: Run, models: Sequence[Path], split: str, progress: Progress) -> tuple[tuple[str, ...], list[Row]]:
    from tl.data.targets import read_numbers_of
    from tl.evaluation.evaluate import choose_split
    from tl.evaluation.regression import evaluate_numbers
    from tl.runtime.predictor import load_regression

    found = read_numbers_of(run.folder / "manifest.csv", run.load_card().target_names)
    _, images = choose_split(found, split)
    with load_regression(models) as predictor:
        result = evaluate_numbers(predictor, images, progress)
    return result.columns, result.rows


def _labels(run: Run, models: Sequence[Path], split: str, progress: Progress) -> tuple[tuple[str, ...], list[Row]]:
    from tl.data.label_sets import read_label_sets_of
    from tl.evaluation.evaluate import choose_split
    from tl.evaluation.multilabel import evaluate_labels
    from tl.runtime.predictor import load_multilabel

    found = read_label_sets_of(run.folder / "manifest.csv", run.load_card().class_names)
    _, images = choose_split(found, split)
    with load_multilabel(models) as predictor:
        result = evaluate_labels(predictor, images, progress)
    return result.columns, result.rows


def _digits(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
