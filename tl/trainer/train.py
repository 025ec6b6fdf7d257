"""Execute one training run from start to finish: config in, run folder out.

Contains the order of the steps, which is the same for every task; `classification` and `landmarks.work` contain the
rest. Does not print, plot or export, and imports torch only where a network is needed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tl.data.audit import Finding, summarize
from tl.errors import ConfigError, RunError, RunInterrupted
from tl.evaluation.metrics import Metrics
from tl.progress import Progress, Silent
from tl.runtime.output.claim import hold
from tl.trainer.classification import prepare_classification
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import own_choices, with_absolute_paths
from tl.trainer.options import resolve
from tl.trainer.run_folder.environment import describe_environment
from tl.trainer.run_folder.mlflow_log import MlflowLog
from tl.trainer.run_folder.run import Run, check_free, create_run
from tl.trainer.task import PreparedInputs

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks


class Trained(Protocol):
    """A trained network that has not been evaluated yet."""

    @property
    def train_seconds(self) -> float | None:
        """Time of all epochs, or None to use the run's wall time."""

    def evaluate(self, run: Run, seconds: float, progress: Progress) -> Metrics:
        """Evaluate, write the results, and return the metrics."""


class Work(Protocol):
    """The task-specific part of a run: classification or landmarks."""

    @property
    def task(self) -> PreparedInputs:
        """The prepared inputs."""

    @property
    def config(self) -> TrainConfig:
        """The resolved options of the run."""

    @property
    def title(self) -> str:
        """A description of the work, for display."""

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Compute what the training data still lacks and return the audit findings."""

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> Trained:
        """Train."""


@dataclass(frozen=True)
class TrainResult:
    """The folder and metrics of a finished run. `metrics` has one key per evaluated split."""

    run: Run
    metrics: Metrics
    findings: tuple[Finding, ...] = ()


def train(config: TrainConfig, progress: Progress, *, resume: Run | None = None) -> TrainResult:
    """Train as configured, or continue the run `resume`. Raises any `TlError` of the individual steps.

    Under torchrun, every process calls this with the same config. Only the first process writes files; use its result.
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
        run = create_run(work.config.out, numbered=not config.out)
    run = ranks.broadcast(run) if ranks else run
    if run is None:
        raise ValueError("the first process created no run")
    lock, holder = run.folder / ".lock", run.folder / ".holder.json"
    with hold(lock, holder, str(run.folder), leaves_lock=False) if is_first else nullcontext():
        return _train_in(run, work, findings, progress, started, is_first=is_first, is_resumed=resume is not None)


def _train_in(
    run: Run,
    work: Work,
    findings: list[Finding],
    progress: Progress,
    started: float,
    *,
    is_first: bool,
    is_resumed: bool,
) -> TrainResult:
    """Train in the run's folder, which no other process writes."""
    if is_first:
        _describe(work, run, findings, progress)
    log = _begin_log(work.config, run) if is_first else None
    try:
        trained = work.train(run, progress, is_resumed)
        metrics: Metrics = {}
        if is_first:
            # From reading the first image to the last step; for a resumed run, the time of all its epochs instead.
            passed = time.monotonic() - started
            seconds = trained.train_seconds if trained.train_seconds is not None else passed
            metrics = trained.evaluate(run, seconds, progress)
            run.save_metrics(metrics)  # written last, because it marks the run as finished
            if log:
                _finish_log(log, run, metrics, progress)
    except KeyboardInterrupt as stop:
        raise RunInterrupted(
            f"{run.folder}: interrupted; the last epoch is saved", run_folder=str(run.folder)
        ) from stop
    return TrainResult(run, metrics, tuple(findings))


def _prepare(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> Work:
    resolved = resolve(config)
    if ranks is not None and resolved.method == "features" and resolved.task != "landmarks":
        raise ConfigError(
            "method features runs in a single process because each feature is computed only once: train without "
            "torchrun"
        )
    if resolved.task == "landmarks":
        from tl.trainer.landmarks.work import prepare_landmarks

        return prepare_landmarks(config, ranks, progress)
    if resolved.task == "multilabel":
        from tl.trainer.multilabel.work import prepare_multilabel

        return prepare_multilabel(config, ranks, progress)
    if resolved.task == "regression":
        from tl.trainer.regression.work import prepare_regression

        return prepare_regression(config, ranks, progress)
    if resolved.method != "auto":
        return prepare_classification(config, ranks, progress)
    if ranks is not None:
        raise ConfigError(
            "method auto runs in a single process: train without torchrun, or fine-tune", options=["method=finetune"]
        )
    from tl.trainer.auto import prepare_auto

    return prepare_auto(resolved, progress)


def _describe(work: Work, run: Run, findings: Sequence[Finding], progress: Progress) -> None:
    """Write and report what is known before training."""
    task = work.task
    run.save_config(with_absolute_paths(dataclasses.replace(work.config, out=os.fspath(run.folder))))
    if not run.environment_path.exists():  # describes where the run began; a resumed run keeps it
        run.save_environment(describe_environment())
    run.save_manifest(task.store)
    if task.bad:
        run.save_skipped(task.bad)
    if task.config.audit:
        run.save_rows("findings.csv", Finding, findings)
    counts = ", ".join(f"{len(task.store.indices(split))} {split}" for split in ("train", "val", "test"))
    progress.say(f"{run.folder}: {work.title}, {counts}")


def _begin_log(config: TrainConfig, run: Run) -> MlflowLog | None:
    """Start the MLflow log before training, so that an unreachable server is detected right away."""
    if config.log is None:
        return None
    log = MlflowLog(run.folder)
    log.begin(own_choices(config))
    return log


def _finish_log(log: MlflowLog, run: Run, metrics: Metrics, progress: Progress) -> None:
    """Finish the MLflow log. A logging failure must not fail a run that has trained for hours."""
    try:
        log.finish(metrics, run.rows("history.csv"))
    except RunError as error:
        progress.say(f"the MLflow log is incomplete: {error}")
