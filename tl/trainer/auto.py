"""Method auto: solve a head on frozen features, fine-tune if that may pay off, and keep what held-out images prefer.

Neither candidate is compared on images that it was fitted to. What is shipped has seen all images. Contains the
decision; `heads.training` and `fit.image_training` contain the candidates.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tl.data.audit import Finding
from tl.evaluation.calibration import fit_temperature
from tl.evaluation.metrics import accuracy_interval, variance_of_mean
from tl.progress import Progress
from tl.runtime.sources.durations import parse_seconds
from tl.trainer.classification import ClassificationWork, TrainedClassifier, check_network
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import with_absolute_paths
from tl.trainer.heads.solvers import log_losses
from tl.trainer.heads.training import solve
from tl.trainer.options import candidates, settled
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.run_folder.run import Run
from tl.trainer.task import Task, prepare_task

if TYPE_CHECKING:
    from tl.trainer.fit.image_training import ImageTraining

# With fewer held-out images, the comparison would be a coin toss.
MIN_HELD_OUT = 12
# Above this accuracy of frozen features, fine-tuning has nothing to gain that users would notice.
NEARLY_PERFECT = 0.99
# A training step takes about as long as this many predictions.
_STEPS_PER_PREDICTION = 3
# Part of the remaining budget that is planned for; saving and reporting need the rest.
_SAFE = 0.85
# The number of epochs of an unfinished run.
_PLAN = "plan.csv"


@dataclass(frozen=True)
class MethodRow:
    """One candidate on the held-out images: a row of `methods.csv`.

    `log_loss`: mean over the images, after scaling by a temperature. `gain`: by how much it is below that of features,
    with its `standard_error`. `seconds`: time to train and score the candidate.
    """

    method: str
    n: int
    top1_accuracy: float
    log_loss: float
    gain: float
    standard_error: float
    seconds: float
    is_chosen: bool


@dataclass
class AutoWork:
    """A run that chooses between its methods. `config`: resolved, of method auto. `started`: by the monotonic clock."""

    config: TrainConfig
    features: ClassificationWork
    started: float

    @property
    def task(self) -> Task:
        """The prepared inputs, as those of method features."""
        return self.features.task

    @property
    def title(self) -> str:
        """A description of the work, for display."""
        return f"{self.config.backbone} for {len(self.task.class_names)} classes"

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Compute missing features, and audit the data if requested."""
        return self.features.audit_data(progress)

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> TrainedClassifier:
        """Train both methods as far as needed to choose one; finish that one."""
        outcome = self.features.training(run, progress, is_resumed)
        held_out = outcome.held_out or HeldOut(self.task.store.indices("val"), outcome.logits("val"))
        hits = held_out.logits.argmax(axis=1) == self._true_ids(held_out)
        seconds = time.monotonic() - self.started
        low, high = accuracy_interval(hits, self._groups(held_out))
        progress.say(
            f"frozen features: top-1 accuracy {hits.mean():.3f} (95% {low:.3f} to {high:.3f}) on {len(hits)} held-out "
            f"images, after {seconds:.0f} s"
        )
        reason = self._reason_to_stop(float(hits.mean()))
        if reason:
            return self._finish(run, outcome, reason, progress)
        return self._compare(run, outcome, held_out, progress, is_resumed)

    def _reason_to_stop(self, accuracy: float) -> str:
        """Why fine-tuning is not tried; '' to try it."""
        count = len(self.task.store.indices("val"))
        if self.config.quality == "fast":
            return "quality fast"
        if accuracy >= NEARLY_PERFECT:
            return f"their accuracy is at least {NEARLY_PERFECT}, so fine-tuning is not tried"
        if count < MIN_HELD_OUT:
            return f"{count} validation images are too few to tell whether fine-tuning is better"
        return ""

    def _true_ids(self, held_out: HeldOut) -> NDArray[np.int64]:
        return np.array([self.task.ids[i] for i in held_out.places], np.int64)

    def _groups(self, held_out: HeldOut) -> list[str]:
        return [self.task.store.images[i].group for i in held_out.places]

    def _compare(
        self, run: Run, outcome: Outcome, held_out: HeldOut, progress: Progress, is_resumed: bool
    ) -> TrainedClassifier:
        from tl.trainer.fit.distributed import Ranks
        from tl.trainer.fit.image_training import prepare_image_training, stage_of

        started = time.monotonic()
        _, config = candidates(dataclasses.replace(self.config, refit=self.task.config.refit))
        task = prepare_task(config, progress, check_network)
        training = prepare_image_training(task, Ranks())
        planned = run.rows(_PLAN) if is_resumed else []
        epochs = int(planned[0]["epochs"]) if planned else self._epochs(task, training, run, progress)
        if epochs == 0:
            reason = f"the budget of {self.config.budget} is too short for fine-tuning"
            return self._finish(run, outcome, reason, progress)
        config = dataclasses.replace(task.config, epochs=epochs, drop_epochs=max(1, epochs // 3))
        training = dataclasses.replace(training, task=dataclasses.replace(task, config=config))
        run.save_table(_PLAN, [{"epochs": epochs}])  # a resumed run must not measure its speed again
        run.rename("c_search.csv", "c_search_features.csv")  # fine-tuning solves a head too
        tuned_outcome = training(run, progress, is_resumed)
        times = (started - self.started, time.monotonic() - started)
        own = settled(tuned_outcome.held_out)
        rows = compare_methods(held_out, own, self._true_ids(own), self._groups(own), times)
        run.save_rows("methods.csv", MethodRow, rows)
        run.discard(_PLAN)
        _, tuned = rows
        progress.say(
            f"{tuned.n} held-out images: top-1 accuracy {rows[0].top1_accuracy:.3f} with frozen features, "
            f"{tuned.top1_accuracy:.3f} fine-tuned; log loss {rows[0].log_loss:.3f} and {tuned.log_loss:.3f} "
            f"(gain {tuned.gain:.3f}, standard error {tuned.standard_error:.3f})"
        )
        if not tuned.is_chosen:
            run.rename("c_search_features.csv", "c_search.csv")
            run.rename("history.csv", "history_finetune.csv")
            for number in range(1, len(training.folds) + 1):
                run.discard(f"last{stage_of(number)}.pt")
            for number in range(2, len(training.folds) + 1):
                run.discard(f"history{stage_of(number)}.csv")
                run.discard(f"c_search{stage_of(number)}.csv")
            return self._finish(run, outcome, "fine-tuning is not better by more than the standard error", progress)
        self._keep(run, training.task, "fine-tuning (lower log loss by more than the standard error)", progress)
        return TrainedClassifier(training.task, tuned_outcome)

    def _epochs(self, task: Task, training: ImageTraining, run: Run, progress: Progress) -> int:
        """Epochs of fine-tuning: the default, or as many as fit into the budget; 0 if none does."""
        epochs = settled(task.config.epochs)
        if self.config.budget is None:
            return epochs
        left = settled(parse_seconds(self.config.budget)) - (time.monotonic() - self.started)
        images = sum(len(places) + len(scored) / _STEPS_PER_PREDICTION for places, scored in training.folds)
        if left <= 0:
            return 0
        return min(epochs, int(_SAFE * left / (images * training.seconds_per_image(run, progress))))

    def _keep(self, run: Run, task: Task, chosen: str, progress: Progress) -> None:
        """Record the choice, so that the run can be resumed and repeated as a run of the chosen method."""
        progress.say(f"chosen: {chosen}")
        run.save_config(with_absolute_paths(dataclasses.replace(task.config, out=str(run.folder))))

    def _finish(self, run: Run, outcome: Outcome, reason: str, progress: Progress) -> TrainedClassifier:
        self._keep(run, self.task, f"frozen features ({reason})", progress)
        return TrainedClassifier(self.task, outcome)


def compare_methods(
    features: HeldOut,
    tuned: HeldOut,
    true_ids: NDArray[np.int64],
    groups: Sequence[str],
    seconds: tuple[float, float],
) -> tuple[MethodRow, MethodRow]:
    """Compare two candidates on the images of `tuned`, which `features` contains too.

    `true_ids` int64 (N,) and `groups` (N,), '' for none, are of these images.

    Fine-tuning wins if its log loss is lower by more than the standard error of the paired difference: a tie goes to
    the method that trains in seconds.
    """
    at = {place: i for i, place in enumerate(features.places)}
    logits = [features.logits[[at[place] for place in tuned.places]], tuned.logits]
    losses = [log_losses(each / fit_temperature(each, true_ids), true_ids) for each in logits]
    gains = losses[0] - losses[1]
    gain, error = float(gains.mean()), math.sqrt(variance_of_mean(gains, groups))
    is_tuned = gain > error  # False for an error of NaN, of a single group
    rows = [
        MethodRow(
            method=name,
            n=len(true_ids),
            top1_accuracy=float((each.argmax(axis=1) == true_ids).mean()),
            log_loss=float(loss.mean()),
            gain=own_gain,
            standard_error=own_error,
            seconds=round(spent, 1),
            is_chosen=is_tuned == (name == "finetune"),
        )
        for name, each, loss, own_gain, own_error, spent in zip(
            ("features", "finetune"), logits, losses, (0.0, gain), (0.0, error), seconds, strict=True
        )
    ]
    return rows[0], rows[1]


def prepare_auto(config: TrainConfig, progress: Progress) -> AutoWork:
    """Read the inputs of the first candidate. `config`: resolved, of method auto. Raises any `TlError` of the steps."""
    started = time.monotonic()
    features, _ = candidates(config)
    task = prepare_task(features, progress)
    return AutoWork(config, ClassificationWork(task, partial(solve, task)), started)
