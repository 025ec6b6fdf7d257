"""The landmark part of a run: its task, audit, training and evaluation.

The order of the steps is in `train`. Imports torch only to train.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tl.data.audit import Finding
from tl.evaluation.landmarks import landmark_metrics
from tl.evaluation.metrics import Metrics
from tl.progress import Progress
from tl.runtime.landmarks.sets import LandmarkSet, image_landmarks
from tl.trainer.config import TrainConfig
from tl.trainer.landmarks.task import LandmarkTask, audit_landmarks, prepare_landmark_task
from tl.trainer.run_folder.run import Run

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.landmarks.training import FoundPoints, LandmarkOutcome, LandmarkTraining
    from tl.trainer.models.backbone_info import BackboneInfo
    from tl.trainer.models.weight_files import WeightsFile


@dataclass
class LandmarkWork:
    """A landmark run."""

    task: LandmarkTask
    training: LandmarkTraining

    @property
    def config(self) -> TrainConfig:
        """The resolved options of the run."""
        return self.task.config

    @property
    def title(self) -> str:
        """A description of the work, for display."""
        config = self.task.config
        return (
            f"{config.method} of {config.backbone} with head {config.head} for {len(self.task.keypoint_names)} points"
        )

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Audit the annotations if requested."""
        return audit_landmarks(self.task) if self.task.config.audit else []

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> TrainedLandmarks:
        """Train."""
        return TrainedLandmarks(self.task, self.training(run, progress, is_resumed))


@dataclass(frozen=True)
class TrainedLandmarks:
    """A trained landmark network that has not been evaluated yet."""

    task: LandmarkTask
    outcome: LandmarkOutcome

    @property
    def train_seconds(self) -> float | None:
        """Time of all epochs, or None to use the run's wall time."""
        return self.outcome.train_seconds

    def evaluate(self, run: Run, seconds: float, progress: Progress) -> Metrics:
        """Evaluate, and write the results."""
        task, outcome = self.task, self.outcome
        metrics: Metrics = {
            "best_epoch": outcome.best_epoch,
            "train_seconds": seconds,
            "trained_parameters": outcome.trained_parameters,
        }
        for split in ("val", "test") if task.config.test else ("val",):
            progress.start(f"evaluating {split}", 1, "splits")
            found = outcome.find(split)
            progress.advance()
            metrics[split] = _score(task, split, found)
            progress.say(_metrics_line(split, metrics[split]))
            run.save_points(split, _as_landmarks(task, split, found))
        outcome.save()
        _save_annotations(task, run)
        return metrics


def prepare_landmarks(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> LandmarkWork:
    """Read all inputs and build the network. Raises any `TlError` of the individual steps."""
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.landmarks.training import prepare_landmark_training

    task = prepare_landmark_task(config, progress, _check_network)
    return LandmarkWork(task, prepare_landmark_training(task, ranks or Ranks()))


def _check_network(config: TrainConfig, info: BackboneInfo, num_keypoints: int, weights: WeightsFile | None) -> None:
    """Build the network before images are read, to detect invalid options, weights and devices early."""
    from tl.trainer.fit.machine import build_machine
    from tl.trainer.landmarks.network import build_landmark_network
    from tl.trainer.models.weights import read_weights

    build_machine(config.device, config.precision, config.threads)
    build_landmark_network(config, info, num_keypoints, read_weights(weights, config.backbone) if weights else None)


def _score(task: LandmarkTask, split: str, found: FoundPoints) -> Metrics:
    indices = task.store.indices(split)
    return landmark_metrics(
        task.photo_points(indices, found.points_xy),
        np.stack([task.points[i] for i in indices]),
        task.keypoint_names,
        task.scales(indices),
        task.mm_per_px(indices),
    )


def _save_annotations(task: LandmarkTask, run: Run) -> None:
    """Save the annotations used for training and evaluation, with each image's split."""
    by_name = {image.name: image for image in task.landmarks.images}
    names = [run.relative(image.path) for image in task.store.images]
    images = tuple(
        dataclasses.replace(by_name[image.name], name=name, split=image.split)
        for image, name in zip(task.store.images, names, strict=True)
    )
    sizes = dict(zip(names, task.sizes_hw, strict=True))
    run.save_annotations(dataclasses.replace(task.landmarks, images=images, remarks=()), sizes.__getitem__)


def _as_landmarks(task: LandmarkTask, split: str, found: FoundPoints) -> LandmarkSet:
    """The predicted points as a landmark set, for saving to a landmark file."""
    indices = task.store.indices(split)
    points = task.photo_points(indices, found.points_xy)
    images = tuple(
        image_landmarks(
            task.store.images[i].name,
            points[row],
            confidence=None if found.confidence is None else found.confidence[row].astype(np.float64),
        )
        for row, i in enumerate(indices)
    )
    return dataclasses.replace(task.landmarks, images=images, remarks=())


def _metrics_line(split: str, m: Metrics) -> str:
    error = f"{m['error_px']:.2f} px (95% {m['ci_low']:.2f} to {m['ci_high']:.2f}) of the photos"
    inner = f"{m['error_input_px']:.2f} px of the input"
    share = ", ".join(f"{value:.0%} within {name}" for name, value in m["pck"].items())
    if m["extent_error"] is not None:
        inner += f", {m['extent_error']:.1%} of the points' extent"
    return f"{split}: mean error {error}, {inner}; {share}; {m['points']} points in {m['n']} images"
