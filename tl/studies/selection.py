"""Evaluate a study's selected models once: exported, timed, and scored on the test split as deployed.

Does not select (`leaderboard`) or train.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tl.errors import TlError
from tl.progress import Progress
from tl.runtime.output.files import output_errors, write_text
from tl.runtime.sources.paths import hash_file
from tl.studies.leaderboard import LARGEST, METRIC, Estimate, Setting, estimate
from tl.studies.sweep import CellRun
from tl.trainer.run_folder.run import Run

# The file of saved results; the time for which each model's latency is measured.
_SELECTED = "selected.json"
_ROUNDS, LATENCY_SECONDS = 5, 2.0


@dataclass(frozen=True)
class Judgment:
    """One run's model file: test score with interval (None without a test split), size and time per image."""

    score: float | None
    low: float | None
    high: float | None
    n: int
    model_mb: float
    latency_ms: float


@dataclass(frozen=True)
class Judged:
    """A selected setting over its seeds. `test` is None for data without a test split."""

    setting: Setting
    runs: tuple[Judgment, ...]
    test: Estimate | None
    model_mb: float
    latency_ms: float


def judge_selected(
    settings: Sequence[Setting], task: str, out: Path, progress: Progress, *, test: bool
) -> tuple[list[Judged], list[str]]:
    """Export and evaluate each finished run of the selected settings, or load its saved result from `selected.json`, so
    that no network is scored on the test split twice. Also returns the errors of runs that cannot be evaluated.
    """
    path, kept = out / _SELECTED, read_selected(out)
    progress.start("exporting selected models", sum(len(setting.done) for setting in settings), "runs")
    judged, faults = [], []
    for setting in settings:
        judgments = []
        for run in setting.done:
            network = hash_file(Run(run.folder).best_path)  # a retrained run counts as a new one
            known = kept.get(run.cell.name, {})
            if known.get("network") != network or (test and known["score"] is None and _has_test(run)):
                started = time.monotonic()
                try:
                    judgment = asdict(_judge(run, task, out, test=test))
                    known = {"network": network, **judgment, "seconds": time.monotonic() - started}
                except TlError as error:
                    faults.append(f"{setting.name} seed {run.cell.seed}: {error}")
                    continue
                kept[run.cell.name] = known
                write_text(path, json.dumps(kept, indent=2) + "\n")
            judgments.append(Judgment(**{field.name: known[field.name] for field in fields(Judgment)}))
            progress.advance(note=setting.name)
        if judgments:
            judged.append(_over_seeds(setting, tuple(judgments), LARGEST[METRIC[task][0]]))
    return judged, faults


def read_selected(out: Path) -> dict[str, Any]:
    """The saved results of models that were evaluated before, by the name of their run."""
    path = out / _SELECTED
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _judge(run: CellRun, task: str, out: Path, *, test: bool) -> Judgment:
    from tl.exporter.export import export_run
    from tl.progress import Silent

    model = out / "models" / f"{run.cell.name}.onnx"
    with output_errors(model.parent):
        model.parent.mkdir(parents=True, exist_ok=True)
    export_run(Run(run.folder), model, Silent())
    latency = _latency_ms(model)
    size = model.stat().st_size / 1e6
    if not (test and _has_test(run)):
        return Judgment(None, None, None, 0, size, latency)
    metric, _ = METRIC[task]
    test_of = {
        **{"classification": _test_classes, "multilabel": _test_labels},
        **{"landmarks": _test_points, "regression": _test_numbers},
    }
    scores = test_of[task](run, model)
    return Judgment(scores[metric], scores["ci_low"], scores["ci_high"], scores["n"], size, latency)


def _test_classes(run: CellRun, model: Path) -> dict[str, Any]:
    from tl.data.manifests import read_images
    from tl.evaluation.evaluate import choose_split, evaluate
    from tl.progress import Silent
    from tl.runtime.predictor import load

    _, images = choose_split(read_images(str(run.folder / "manifest.csv")), "test")
    with load(model) as predictor:
        return evaluate(predictor, images, Silent()).rows[0]


def _test_points(run: CellRun, model: Path) -> dict[str, Any]:
    from tl.evaluation.landmarks import evaluate_points, read_split
    from tl.progress import Silent
    from tl.runtime.predictor import load_landmarks

    images = read_split(run.folder / "annotations.json", "test")
    boxes = images.boxes(run.cell.config.crop)
    with load_landmarks(model, boxes=boxes) as predictor:
        return evaluate_points(predictor, images, Silent()).rows[0]


def _test_numbers(run: CellRun, model: Path) -> dict[str, Any]:
    from tl.data.targets import read_numbers_of
    from tl.evaluation.evaluate import choose_split
    from tl.evaluation.regression import evaluate_numbers
    from tl.progress import Silent
    from tl.runtime.predictor import load_regression

    names = Run(run.folder).load_card().target_names
    _, images = choose_split(read_numbers_of(run.folder / "manifest.csv", names), "test")
    with load_regression(model) as predictor:
        return evaluate_numbers(predictor, images, Silent()).rows[0]


def _test_labels(run: CellRun, model: Path) -> dict[str, Any]:
    from tl.data.label_sets import read_label_sets_of
    from tl.evaluation.evaluate import choose_split
    from tl.evaluation.multilabel import evaluate_labels
    from tl.progress import Silent
    from tl.runtime.predictor import load_multilabel

    names = Run(run.folder).load_card().class_names
    _, images = choose_split(read_label_sets_of(run.folder / "manifest.csv", names), "test")
    with load_multilabel(model) as predictor:
        return evaluate_labels(predictor, images, Silent()).rows[0]


def _has_test(run: CellRun) -> bool:
    return bool(Run(run.folder).images("test"))


def _latency_ms(model: Path) -> float:
    """Latency of a single image on the CPU with all cores; without decoding."""
    from tl.runtime.bench.works import Work, time_works
    from tl.runtime.session import Session

    session = Session(model, device="cpu")
    if session.contract is None:
        raise ValueError("an exported file must contain a contract")
    images = np.random.default_rng(0).integers(0, 256, (4, *session.contract.preprocessing.input_shape), np.uint8)
    outputs = [session.contract.main_output]
    work = Work(lambda number: session.run(images[number % 4][None], outputs), images=1, callers=1, seconds=0.02)
    (timing,) = time_works([work], rounds=_ROUNDS, seconds=LATENCY_SECONDS)
    return timing.p50_ms


def _over_seeds(setting: Setting, runs: tuple[Judgment, ...], largest: float) -> Judged:
    scores = [run.score for run in runs if run.score is not None]
    own = (runs[0].low, runs[0].high)
    interval = None if own[0] is None or own[1] is None else (own[0], own[1])
    return Judged(
        setting=setting,
        runs=runs,
        test=estimate(scores, interval, largest) if scores else None,
        model_mb=float(np.mean([run.model_mb for run in runs])),
        latency_ms=float(np.mean([run.latency_ms for run in runs])),
    )
