"""The part of a run that regression and several labels share: its audit and training; `finish` evaluates it.

The order of the steps is in `train`. Imports torch only where a network is trained by steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tl.data.audit import Finding
from tl.evaluation.metrics import Metrics
from tl.progress import Progress
from tl.trainer.classification import audit_files, compute_features
from tl.trainer.config import TrainConfig
from tl.trainer.options import is_solved
from tl.trainer.outcome import Outcome, Training
from tl.trainer.run_folder.run import Run
from tl.trainer.task import FeatureTask

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.target_training import TargetTraining

_Task = TypeVar("_Task", bound=FeatureTask)
# (task, outcome, run, seconds, progress) -> metrics: calibrates, evaluates, and writes the results.
Finish = Callable[[_Task, Outcome, Run, float, Progress], Metrics]


@dataclass(frozen=True)
class TargetWork(Generic[_Task]):
    """A run whose network learns one row of targets for each image. `predicts`: its targets, for display."""

    task: _Task
    training: Training
    predicts: str
    finish: Finish[_Task]

    @property
    def config(self) -> TrainConfig:
        """The resolved options of the run."""
        return self.task.config

    @property
    def title(self) -> str:
        """A description of the work, for display."""
        return f"{self.config.method} of {self.config.backbone} for {self.predicts}"

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Compute missing features, and audit the data if requested."""
        compute_features(self.task, progress)
        return audit_files(self.task) if self.config.audit else []

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> TrainedTargets[_Task]:
        """Train."""
        return TrainedTargets(self.task, self.training(run, progress, is_resumed), self.finish)


@dataclass(frozen=True)
class TrainedTargets(Generic[_Task]):
    """A trained network that has not been evaluated yet."""

    task: _Task
    outcome: Outcome
    finish: Finish[_Task]

    @property
    def train_seconds(self) -> float | None:
        """Time of all epochs, or None to use the run's wall time."""
        return self.outcome.train_seconds

    def evaluate(self, run: Run, seconds: float, progress: Progress) -> Metrics:
        """Evaluate, write the results, and return the metrics."""
        return self.finish(self.task, self.outcome, run, seconds, progress)


def choose_training(
    task: FeatureTask, solve: Training, build: Callable[[], TargetTraining], ranks: Ranks | None
) -> Training:
    """How a run is trained: `solve` computes the head, `build` is called for training by steps, which needs torch."""
    if task.uses_kept_features and is_solved(task.config):
        return solve
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.target_training import prepare_target_training

    return prepare_target_training(build(), ranks or Ranks())
