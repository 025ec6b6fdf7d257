"""One training run from top to bottom: config in, run folder out.

Knows the order of things; each part knows only those below it. Does not print, plot or export, and imports torch only
where a network is needed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError, RunInterrupted
from tl.trainer.audit import Finding, find_class_faults, find_duplicates, find_near_duplicates, summarise
from tl.trainer.augment import PRESETS
from tl.trainer.calibration import fit_temperature, softmax
from tl.trainer.config import TrainConfig
from tl.trainer.data import SPLITS
from tl.trainer.head_training import solve, train_by_steps
from tl.trainer.metrics import classification_metrics, expected_calibration_error
from tl.trainer.options import is_solved
from tl.trainer.outcome import Outcome, Training
from tl.trainer.progress import Progress, Silent
from tl.trainer.runs import Run, check_free, create_run
from tl.trainer.task import CLEAN, Task, prepare_task

if TYPE_CHECKING:
    from tl.trainer.backbone_info import BackboneInfo
    from tl.trainer.distributed import Ranks
    from tl.trainer.weight_files import WeightsFile


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and how it did. `metrics` has a key for each evaluated split."""

    run: Run
    metrics: dict[str, Any]
    findings: tuple[Finding, ...] = ()


def train(config: TrainConfig, progress: Progress, *, resume: Run | None = None) -> TrainResult:
    """Train as configured, or continue `resume`. Raises the `TlError`s of its parts.

    Under torchrun every process calls this with the same config; the first one writes, and its result counts.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _train_among_others(config, progress, resume)
    return _train(config, progress, resume, None)


def _train_among_others(config: TrainConfig, progress: Progress, resume: Run | None) -> TrainResult:
    from tl.trainer.distributed import join_ranks, leave_ranks

    if config.method == "features":
        raise ConfigError("method features runs in one process: each feature is computed once; leave out torchrun")
    ranks = join_ranks()
    try:
        return _train(config, progress if ranks.is_first else Silent(), resume, ranks)
    finally:
        leave_ranks()


def _train(config: TrainConfig, progress: Progress, resume: Run | None, ranks: Ranks | None) -> TrainResult:
    started = time.monotonic()
    is_first = ranks is None or ranks.is_first
    if config.out and not resume and is_first:
        check_free(config.out)
    task = prepare_task(config, progress, _check_network)
    training = _prepare_training(task, ranks)
    if task.features is not None and is_first:
        compute_features(task, progress)
    findings = _audit(task) if config.audit and is_first else []
    for line in summarise(findings, " in findings.csv"):
        progress.say(line)
    run = resume
    if run is None and is_first:
        run = create_run(task.config.out, numbered=not config.out)
    run = ranks.tell(run) if ranks else run
    if run is None:
        raise ValueError("the first process made no run")
    if is_first:
        _describe(task, run, findings, progress)
    try:
        outcome = training(run, progress, resume is not None)
        metrics = _judge(task, run, outcome, started, progress) if is_first else {}
    except KeyboardInterrupt as stop:
        raise RunInterrupted(
            f"interrupted; go on from the last saved epoch by: tl train --resume {run.folder}"
        ) from stop
    return TrainResult(run, metrics, tuple(findings))


def _check_network(config: TrainConfig, info: BackboneInfo, num_classes: int, weights: WeightsFile | None) -> None:
    """Build what training will build, so that faults of options, weights and device show before pictures are read.

    A run on kept features is not held up by it: faults of theirs show when features are computed.
    """
    if config.method == "features":
        return
    from tl.trainer.machine import build_machine
    from tl.trainer.networks import build_network
    from tl.trainer.weights import read_weights

    build_machine(config.device, config.precision, config.threads)
    build_network(config, info, num_classes, read_weights(weights, config.backbone) if weights else None)


def _prepare_training(task: Task, ranks: Ranks | None) -> Training:
    if task.uses_kept_features:
        return partial(solve if is_solved(task.config) else train_by_steps, task)
    from tl.trainer.distributed import Ranks
    from tl.trainer.picture_training import prepare_picture_training

    return prepare_picture_training(task, ranks or Ranks())


def compute_features(task: Task, progress: Progress, splits: Sequence[str] = SPLITS) -> None:
    """Whatever is lacking of what training and the audit will look at."""
    is_wanted = task.uses_kept_features or task.config.audit or task.config.head_start == "solved"
    if task.features is None or not is_wanted:
        return
    wanted = [i for i, picture in enumerate(task.store.pictures) if picture.split in splits]
    places = task.features.missing(task.store, wanted, (CLEAN,))
    if task.uses_kept_features and task.config.views:
        places += task.features.missing(task.store, task.store.indices("train"), task.train_views)
    if places or not task.features.has_network:
        from tl.trainer.extraction import extract_features

        extract_features(task, places, progress)


def _audit(task: Task) -> list[Finding]:
    store = task.store
    findings = [*find_duplicates(store.pictures, store.hashes), *find_class_faults(store.pictures, task.class_names)]
    if task.features is not None:
        features = task.features.get(store, range(len(store.pictures)))
        embeddings = features.mean(axis=(2, 3)) if features.ndim == 4 else features
        findings += find_near_duplicates(store.pictures, store.hashes, embeddings)
    return findings


def _describe(task: Task, run: Run, findings: Sequence[Finding], progress: Progress) -> None:
    """Write down what is known before training."""
    run.save_config(_with_absolute_paths(task.config, run))
    run.save_manifest(task.store)
    if task.bad:
        run.save_skipped(task.bad)
    if task.config.audit:
        run.save_rows("findings.csv", Finding, findings)
    counts = ", ".join(f"{len(task.store.indices(split))} {split}" for split in ("train", "val", "test"))
    what = f"{task.config.method} of {task.config.backbone} for {len(task.class_names)} classes"
    progress.say(f"{run.folder}: {what}, {counts}")


def _judge(task: Task, run: Run, outcome: Outcome, started: float, progress: Progress) -> dict[str, Any]:
    """Calibrate, evaluate, and write what came out; `metrics.json` last, so that it marks a finished run."""
    # From reading the first picture to the last step; of a resumed run, all its epochs instead.
    seconds = outcome.train_seconds if outcome.train_seconds is not None else time.monotonic() - started
    splits = ("val", "test") if task.config.test else ("val",)
    logits = {}
    for split in splits:
        progress.start(f"evaluating {split}", 1, "splits")
        logits[split] = outcome.logits(split)
        progress.advance()
    temperature = fit_temperature(logits["val"], task.true_ids("val"))
    metrics: dict[str, Any] = {
        "best_epoch": outcome.best_epoch,
        "train_seconds": seconds,
        "temperature": temperature,
    }
    for split in splits:
        metrics[split] = _score(logits[split], temperature, task.true_ids(split), task.class_names)
        progress.say(_metrics_line(split, metrics[split]))
    outcome.save(temperature)
    for split in splits:
        pictures = [task.store.pictures[i] for i in task.store.indices(split)]
        run.save_predictions(split, pictures, softmax(logits[split], temperature), task.class_names)
    run.save_metrics(metrics)
    return metrics


def _score(
    logits: NDArray[np.floating], temperature: float, true_ids: NDArray[np.int64], class_names: tuple[str, ...]
) -> dict[str, Any]:
    before = softmax(logits)
    hits = before.argmax(axis=1) == true_ids
    uncalibrated = expected_calibration_error(hits, before.max(axis=1))
    return {
        **classification_metrics(true_ids, softmax(logits, temperature), class_names),
        "ece_uncalibrated": uncalibrated,
    }


def _metrics_line(split: str, m: dict[str, Any]) -> str:
    accuracy = f"{m['top1_accuracy']:.4f} (95% {m['ci_low']:.4f} to {m['ci_high']:.4f})"
    calibration = f"ECE {m['ece_uncalibrated']:.4f} -> {m['ece']:.4f}"
    return f"{split}: top-1 accuracy {accuracy}, macro F1 {m['macro_f1']:.4f}, {calibration}, n {m['n']}"


def _with_absolute_paths(config: TrainConfig, run: Run) -> TrainConfig:
    """The config to keep: it can be resumed, repeated and exported from any folder."""
    words = {"none", "imagenet", *PRESETS}  # which a folder of the same name does not change
    paths = {name: getattr(config, name) for name in ("data", "weights", "augment")}
    absolute = {
        name: os.path.abspath(path) for name, path in paths.items() if path not in words and os.path.exists(path)
    }
    return dataclasses.replace(config, out=os.fspath(run.folder), **absolute)
