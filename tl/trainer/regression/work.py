"""The regression part of a run: its training and evaluation. The order of the steps is in `train`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tl.evaluation.metrics import Metrics
from tl.evaluation.regression import regression_metrics
from tl.progress import Progress
from tl.trainer.classification import check_network
from tl.trainer.config import TrainConfig
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.regression.ridge import solve_numbers
from tl.trainer.regression.task import RegressionTask, prepare_regression_task
from tl.trainer.run_folder.run import Run
from tl.trainer.target_work import TargetWork, choose_training

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.target_training import TargetTraining


def _evaluate(task: RegressionTask, outcome: Outcome, run: Run, seconds: float, progress: Progress) -> Metrics:
    metrics = outcome.describe(task.config, seconds)
    for split in ("val", "test") if task.config.test else ("val",):
        progress.start(f"evaluating {split}", 1, "splits")
        found = outcome.scored(task, split)
        progress.advance()
        groups = [task.store.images[i].group for i in found.places]
        metrics[split] = regression_metrics(
            found.logits, task.numbers[found.places], task.outputs, baseline=task.mean, groups=groups
        )
        name = "held out" if split == "val" and outcome.held_out else split
        progress.say(f"{name}: {metrics_line(metrics[split])}")
        _save(task, run, split, found)
    outcome.save(task.card)
    if outcome.held_out is not None:  # what the deployed network answers, which an export must reproduce
        _save(task, run, "fitted", HeldOut(task.store.indices("val"), outcome.logits("val")))
    return metrics


def _save(task: RegressionTask, run: Run, name: str, found: HeldOut) -> None:
    images = [task.store.images[i] for i in found.places]
    run.save_numbers(name, images, found.logits, task.outputs)


def metrics_line(m: Metrics) -> str:
    """Scores of a split, for display."""
    error = f"mean absolute error {m['mae']:.4g} (95% {m['ci_low']:.4g} to {m['ci_high']:.4g})"
    explained = "" if m["r2"] is None else f"; R2 {m['r2']:.3f}"
    return f"{error}, {m['baseline_mae']:.4g} for the mean of the training images{explained}, {m['n']} images"


def prepare_regression(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> TargetWork[RegressionTask]:
    """Read all inputs; build the network if training runs on images. Raises any `TlError` of the individual steps."""
    task = prepare_regression_task(config, progress, check_network)
    training = choose_training(task, partial(solve_numbers, task), lambda: _by_steps(task), ranks)
    return TargetWork(task, training, ", ".join(task.outputs), _evaluate)


def _by_steps(task: RegressionTask) -> TargetTraining:
    from tl.trainer.regression.training import build_target_training

    return build_target_training(task)
