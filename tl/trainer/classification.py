"""The classification part of a run: its task, features, audit, training and evaluation.

The order of the steps is in `train`. Imports torch only where a network is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tl.data.audit import Finding, find_class_faults, find_duplicates, find_imbalance, find_near_duplicates
from tl.data.class_folders import SPLITS
from tl.data.file_audit import find_file_faults
from tl.evaluation.calibration import fit_useful_temperature, softmax
from tl.evaluation.metrics import Metrics, classification_metrics, expected_calibration_error, wilson_interval
from tl.evaluation.ranks import rank_scores
from tl.evaluation.sequences import score_sequences, sequence_groups, sequences_of
from tl.evaluation.sites import SiteScore, score_sites, sites_of
from tl.progress import Progress
from tl.trainer.config import TrainConfig
from tl.trainer.heads.training import solve, train_by_steps
from tl.trainer.options import is_solved
from tl.trainer.outcome import HeldOut, Outcome, Training
from tl.trainer.run_folder.run import Run
from tl.trainer.run_folder.taxonomy import save_taxonomy
from tl.trainer.task import CLEAN, FeatureTask, Task, network_card, prepare_task

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.models.backbone_info import BackboneInfo
    from tl.trainer.models.weight_files import WeightsFile


@dataclass
class ClassificationWork:
    """A classification run."""

    task: Task
    training: Training

    @property
    def config(self) -> TrainConfig:
        """The resolved options of the run."""
        return self.task.config

    @property
    def title(self) -> str:
        """A description of the work, for display."""
        config = self.task.config
        return f"{config.method} of {config.backbone} for {len(self.task.class_names)} classes"

    def audit_data(self, progress: Progress) -> list[Finding]:
        """Compute missing features, and audit the data if requested."""
        compute_features(self.task, progress)
        return _audit(self.task) if self.task.config.audit else []

    def train(self, run: Run, progress: Progress, is_resumed: bool) -> TrainedClassifier:
        """Train."""
        return TrainedClassifier(self.task, self.training(run, progress, is_resumed))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier that has not been calibrated and evaluated yet."""

    task: Task
    outcome: Outcome

    @property
    def train_seconds(self) -> float | None:
        """Time of all epochs, or None to use the run's wall time."""
        return self.outcome.train_seconds

    def evaluate(self, run: Run, seconds: float, progress: Progress) -> Metrics:
        """Calibrate, evaluate, and write the results."""
        task, outcome = self.task, self.outcome
        splits = ("val", "test") if task.config.test else ("val",)
        scored = {}
        for split in splits:
            progress.start(f"evaluating {split}", 1, "splits")
            scored[split] = outcome.scored(task, split)
            progress.advance()
        if task.taxonomy is not None:
            save_taxonomy(run, task.taxonomy, task.class_names)
        val = scored["val"]
        temperature = fit_useful_temperature(val.logits, _true_ids(task, val))
        metrics: Metrics = {
            **outcome.describe(task.config, seconds),
            "temperature": temperature,
        }
        for split, found in scored.items():
            metrics[split] = _score(task, found, temperature)
            name = "held out" if split == "val" and outcome.held_out else split
            progress.say(_metrics_line(name, metrics[split]))
        outcome.save(network_card(task, temperature))
        for split, found in scored.items():
            _save_predictions(task, run, split, found, temperature)
        _save_sites(task, run, val, outcome.left_out, progress)
        if outcome.held_out is not None:
            # The deployed network's own answers, which an export must reproduce; they say nothing about accuracy.
            own = HeldOut(task.store.indices("val"), outcome.logits("val"))
            _save_predictions(task, run, "fitted", own, temperature)
        return metrics


def prepare_classification(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> ClassificationWork:
    """Read all inputs; build the network if training runs on images. Raises any `TlError` of the individual steps."""
    task = prepare_task(config, progress, check_network)
    return ClassificationWork(task, _prepare_training(task, ranks))


def check_network(config: TrainConfig, info: BackboneInfo, num_classes: int, weights: WeightsFile | None) -> None:
    """Build the network before images are read, to detect invalid options, weights and devices early.

    Skipped for runs on cached features; there, these errors show when features are computed.
    """
    if config.method == "features":
        return
    from tl.trainer.fit.machine import build_machine
    from tl.trainer.models.build import build_network
    from tl.trainer.models.weights import read_weights

    build_machine(config.device, config.precision, config.threads)
    build_network(config, info, num_classes, read_weights(weights, config.backbone) if weights else None)


def _prepare_training(task: Task, ranks: Ranks | None) -> Training:
    if task.uses_kept_features:
        return partial(solve if is_solved(task.config) else train_by_steps, task)
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.image_training import prepare_image_training

    return prepare_image_training(task, ranks or Ranks())


def compute_features(task: FeatureTask, progress: Progress, splits: Sequence[str] = SPLITS) -> None:
    """Compute the missing features that training and the audit need."""
    is_wanted = task.uses_kept_features or task.config.audit or task.config.head_init == "solved"
    if task.features is None or not is_wanted:
        return
    wanted = [i for i, image in enumerate(task.store.images) if image.split in splits]
    places = task.features.missing(task.store, wanted, (CLEAN,))
    if task.uses_kept_features and task.config.views:
        places += task.features.missing(task.store, task.store.indices("train"), task.train_views)
    if places or not task.features.has_network:
        from tl.trainer.features.extraction import extract_features

        extract_features(task, places, progress)
    if isinstance(task, Task) and task.unlabeled is not None:
        unlabeled = dataclasses.replace(task, store=task.unlabeled, unlabeled=None)
        compute_features(unlabeled, progress, ("",))


def audit_files(task: FeatureTask) -> list[Finding]:
    """What can be said of images without classes: equal files, and faults of single files."""
    store = task.store
    return [*find_duplicates(store.images, store.hashes), *find_file_faults(store.images, task.preprocessing)]


def _audit(task: Task) -> list[Finding]:
    store = task.store
    findings = [*find_duplicates(store.images, store.keys), *find_class_faults(store.images, task.class_names)]
    findings += find_file_faults(store.images, task.preprocessing)
    if task.config.class_weights == "none" and task.config.sampler == "shuffle":
        findings += find_imbalance(store.images, "class_weights balanced gives rare classes more weight in the loss")
    if task.features is not None:
        features = task.features.get(store, range(len(store.images)))
        embeddings = features.mean(axis=(2, 3)) if features.ndim == 4 else features
        findings += find_near_duplicates(store.images, store.hashes, embeddings)
    return findings


def _true_ids(task: Task, found: HeldOut) -> NDArray[np.int64]:
    return np.array([task.ids[i] for i in found.places], np.int64)


def _save_predictions(task: Task, run: Run, name: str, found: HeldOut, temperature: float) -> None:
    images = [task.store.images[i] for i in found.places]
    run.save_predictions(name, images, softmax(found.logits, temperature), task.class_names)


def _save_sites(task: Task, run: Run, found: HeldOut, left_out: HeldOut | None, progress: Progress) -> None:
    """Write `sites.csv`, the accuracy at each site, if the data names two or more."""
    unseen = np.full(len(task.store.images), np.nan)
    if left_out is not None:
        unseen[left_out.places] = left_out.logits.argmax(axis=1) == _true_ids(task, left_out)
    sites = sites_of([task.store.images[i] for i in found.places])
    is_right = found.logits.argmax(axis=1) == _true_ids(task, found)
    scores = score_sites(sites, is_right, None if left_out is None else unseen[found.places])
    if not scores:
        return
    run.save_rows("sites.csv", SiteScore, scores)
    lowest, nameless = scores[0], sites.count("")
    more = f"; {nameless} images have no site" if nameless else ""
    progress.say(f"lowest of {len(scores)} sites: '{lowest.site}', {_accuracy(lowest)}, {lowest.n} images{more}")
    if left_out is not None:
        right = unseen[left_out.places]
        low, high = wilson_interval(int(right.sum()), len(right))
        shown = f"top-1 accuracy {right.mean():.4f} (95% {low:.4f} to {high:.4f})"
        progress.say(f"sites left out of training: {shown}, {len(right)} images")


def _accuracy(score: SiteScore) -> str:
    return f"top-1 accuracy {score.top1_accuracy:.4f} (95% {score.ci_low:.4f} to {score.ci_high:.4f})"


def _score(task: Task, found: HeldOut, temperature: float) -> Metrics:
    true_ids, before = _true_ids(task, found), softmax(found.logits)
    probabilities = softmax(found.logits, temperature)
    images = [task.store.images[i] for i in found.places]
    groups = [image.group for image in images]
    ranks = {} if task.taxonomy is None else rank_scores(probabilities, true_ids, task.taxonomy)
    return {
        **classification_metrics(true_ids, probabilities, task.class_names, groups=groups),
        **ranks,
        **score_sequences(true_ids, probabilities, sequences_of(images), sequence_groups(images)),
        "ece_uncalibrated": expected_calibration_error(before.argmax(axis=1) == true_ids, before.max(axis=1)),
    }


def _metrics_line(split: str, m: Metrics) -> str:
    accuracy = f"{m['top1_accuracy']:.4f} (95% {m['ci_low']:.4f} to {m['ci_high']:.4f})"
    calibration = f"calibration error {m['ece_uncalibrated']:.4f} before and {m['ece']:.4f} after scaling"
    groups = f" in {m['groups']} groups" if "groups" in m else ""
    return f"{split}: top-1 accuracy {accuracy}, macro F1 {m['macro_f1']:.4f}, {calibration}, {m['n']} images{groups}"
