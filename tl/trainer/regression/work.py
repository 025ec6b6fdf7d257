"""The regression part of a run: its audit, training and evaluation. The order of the steps is in `train`."""

from __future__ import annotations

from dataclasses import dataclass

from tl.data.audit import Finding
from tl.evaluation.metrics import Metrics
from tl.evaluation.regression import regression_metrics
from tl.progress import Progress
from tl.trainer.classification import audit_files, check_network, compute_features
from tl.trainer.config import TrainConfig
from tl.trainer.fit.distributed import Ranks
from tl.trainer.options import is_solved
from tl.trainer.regression.ridge import solve_numbers
from tl.trainer.regression.task import RegressionTask, prepare_regression_task
from tl.trainer.run_folder.run import Run
from tl.trainer.task import HeldOut, Outcome, Training


@dataclass(frozen=True)
class RegressionWork:
    """A regression run."""

    task: RegressionTask
    training: Training

    @property
    def config(self) -> TrainConfig:
        """The resolved options of the run."""
        return self.task.config

    @property
    def title(self) -> str:
        """A description of the work, for display."""
        return f"{self.config.method} of {self.config.backbone} for {', '.join(self.task.outputs)}"

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Compute missing features, and audit the data if requested."""
        compute_features(self.task, progress)
        return audit_files(self.task) if self.config.audit else []

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> TrainedRegressor:
        """Train."""
        return TrainedRegressor(self.task, self.training(run, progress, is_resumed))


@dataclass(frozen=True)
class TrainedRegressor:
    """A trained network that has not been evaluated yet."""

    task: RegressionTask
    outcome: Outcome

    @property
    def train_seconds(self) -> float | None:
        """Time of all epochs, or None to use the run's wall time."""
        return self.outcome.train_seconds

    def evaluate(self, run: Run, seconds: float, progress: Progress) -> Metrics:
        """Evaluate, and write the results."""
        task, outcome = self.task, self.outcome
        metrics: Metrics = {
            "method": task.config.method,
            "best_epoch": outcome.best_epoch,
            "train_seconds": seconds,
            "trained_parameters": outcome.trained_parameters,
        }
        for split in ("val", "test") if task.config.test else ("val",):
            progress.start(f"evaluating {split}", 1, "splits")
            found = outcome.scored(task.store, split)
            progress.advance()
            groups = [task.store.images[i].group for i in found.places]
            metrics[split] = regression_metrics(
                found.logits, task.numbers[found.places], task.outputs, baseline=task.mean, groups=groups
            )
            name = "held out" if split == "val" and outcome.held_out else split
            progress.say(f"{name}: {metrics_line(metrics[split])}")
            self._save(run, split, found)
        outcome.save(task.card)
        if outcome.held_out is not None:  # what the deployed network answers, which an export must reproduce
            self._save(run, "fitted", HeldOut(task.store.indices("val"), outcome.logits("val")))
        return metrics

    def _save(self, run: Run, name: str, found: HeldOut) -> None:
        images = [self.task.store.images[i] for i in found.places]
        run.save_numbers(name, images, found.logits, self.task.outputs)


def metrics_line(m: Metrics) -> str:
    """Scores of a split, for display."""
    error = f"mean absolute error {m['mae']:.4g} (95% {m['ci_low']:.4g} to {m['ci_high']:.4g})"
    return f"{error}, {m['baseline_mae']:.4g} for the mean of the training images; R2 {m['r2']:.3f}, {m['n']} images"


def prepare_regression(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> RegressionWork:
    """Read all inputs; build the network if training runs on images. Raises any `TlError` of the individual steps."""
    task = prepare_regression_task(config, progress, check_network)
    if task.uses_kept_features and is_solved(task.config):
        return RegressionWork(task, lambda run, progress, is_resumed: solve_numbers(task, run, progress, is_resumed))
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.target_training import prepare_target_training
    from tl.trainer.regression.training import build_target_training

    return RegressionWork(task, prepare_target_training(build_target_training(task), ranks or Ranks()))
