"""One training run from top to bottom: config in, run folder out.

Knows the order of things, the same for every task; `classification` and `landmarks.work` know the rest. Does not print,
plot or export, and imports torch only where a network is needed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tl.data.audit import Finding, summarize
from tl.data.images import ImageStore
from tl.data.manifests import LabeledImage
from tl.errors import RunError, RunInterrupted
from tl.progress import Progress, Silent
from tl.trainer.classification import prepare_classification
from tl.trainer.config import TrainConfig
from tl.trainer.fit.augment import PRESETS
from tl.trainer.options import find_task, own_choices
from tl.trainer.run_folder.mlflow_log import MlflowLog
from tl.trainer.run_folder.run import Run, check_free, create_run, describe_environment

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks


class WorkTask(Protocol):
    """What every task's preparation holds."""

    @property
    def config(self) -> TrainConfig:
        """The resolved options."""

    @property
    def store(self) -> ImageStore:
        """The readable images."""

    @property
    def bad(self) -> list[tuple[LabeledImage, str]]:
        """Unreadable images and why."""


class Work(Protocol):
    """One task's part in a run: classification's or landmarks'."""

    @property
    def task(self) -> WorkTask:
        """What was prepared."""

    @property
    def title(self) -> str:
        """What is done, in words."""

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Whatever has to be computed of the data before training, and what is odd about them."""

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> Any:
        """Train. What comes out has `train_seconds`: of all epochs, None to time the run."""

    def judge(self, run: Run, outcome: Any, seconds: float, progress: Progress) -> dict[str, Any]:
        """Evaluate, write what came out, and return the metrics."""


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
    from tl.trainer.fit.distributed import join_ranks, leave_ranks

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
    work = _prepare(config, ranks, progress)
    findings = work.audit_data(progress) if is_first else []
    for line in summarize(findings, " in findings.csv"):
        progress.say(line)
    run = resume
    if run is None and is_first:
        run = create_run(work.task.config.out, numbered=not config.out)
    run = ranks.broadcast(run) if ranks else run
    if run is None:
        raise ValueError("the first process made no run")
    if is_first:
        _describe(work, run, findings, progress)
    log = _begin_log(work.task.config, run) if is_first else None
    try:
        outcome = work.train(run, progress, resume is not None)
        metrics: dict[str, Any] = {}
        if is_first:
            # From reading the first image to the last step; of a resumed run, all its epochs instead.
            passed = time.monotonic() - started
            seconds = outcome.train_seconds if outcome.train_seconds is not None else passed
            metrics = work.judge(run, outcome, seconds, progress)
            run.save_metrics(metrics)  # last, so that it marks a finished run
            if log:
                _finish_log(log, run, metrics, progress)
    except KeyboardInterrupt as stop:
        raise RunInterrupted(
            f"interrupted; go on from the last saved epoch by: tl train --resume {run.folder}"
        ) from stop
    return TrainResult(run, metrics, tuple(findings))


def _prepare(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> Work:
    if (config.task or find_task(config.data)) == "landmarks":
        from tl.trainer.landmarks.work import prepare_landmarks

        return prepare_landmarks(config, ranks, progress)
    return prepare_classification(config, ranks, progress)


def _describe(work: Work, run: Run, findings: Sequence[Finding], progress: Progress) -> None:
    """Write down what is known before training."""
    task = work.task
    run.save_config(_with_absolute_paths(task.config, run))
    if not run.environment_path.exists():  # where it began; a resumed run keeps that
        run.save_environment(describe_environment())
    run.save_manifest(task.store)
    if task.bad:
        run.save_skipped(task.bad)
    if task.config.audit:
        run.save_rows("findings.csv", Finding, findings)
    counts = ", ".join(f"{len(task.store.indices(split))} {split}" for split in ("train", "val", "test"))
    progress.say(f"{run.folder}: {work.title}, {counts}")


def _begin_log(config: TrainConfig, run: Run) -> MlflowLog | None:
    """At the start, so that a server that does not answer is known before hours have passed."""
    if config.log is None:
        return None
    log = MlflowLog(run.folder)
    log.begin(own_choices(config))
    return log


def _finish_log(log: MlflowLog, run: Run, metrics: dict[str, Any], progress: Progress) -> None:
    """A run that has trained for hours does not fail for it."""
    try:
        log.finish(metrics, run.rows("history.csv"))
    except RunError as error:
        progress.say(f"not all is logged: {error}")


def _with_absolute_paths(config: TrainConfig, run: Run) -> TrainConfig:
    """The config to keep: it can be resumed, repeated and exported from any folder."""
    words = {"none", "imagenet", *PRESETS}  # which a folder of the same name does not change
    paths = {name: getattr(config, name) for name in ("data", "images", "weights", "augment")}
    absolute = {
        name: os.path.abspath(path)
        for name, path in paths.items()
        if path is not None and path not in words and os.path.exists(path)
    }
    return dataclasses.replace(config, out=os.fspath(run.folder), **absolute)
