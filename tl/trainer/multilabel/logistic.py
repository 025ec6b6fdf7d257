"""Solve a run's logistic regression of each label on cached features. Needs no torch, not even for saving."""

from __future__ import annotations

from collections.abc import Sequence

from tl.errors import DataError
from tl.progress import Progress
from tl.trainer.heads.one_vs_rest import LabelTrial, cross_validate_labels
from tl.trainer.heads.solvers import CrossValidated
from tl.trainer.heads.training import save_linear
from tl.trainer.multilabel.task import MultilabelTask
from tl.trainer.options import settled
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.run_folder.run import Run


def solve_for_run(task: MultilabelTask, places: Sequence[int], run: Run, progress: Progress) -> CrossValidated:
    """One logistic regression per label on the images at `places`; writes `c_search.csv`. Raises `DataError`."""
    folds = task.folds(places)
    if folds is None:
        raise DataError("logistic regression requires at least two images in two groups to choose C")
    progress.start("solving the head", 1, "heads")
    data = task.features_at(places), task.labels[list(places)]
    is_balanced = task.config.class_weights == "balanced"
    found = cross_validate_labels(data, folds, settled(task.config.c_values), is_balanced=is_balanced)
    run.save_rows("c_search.csv", LabelTrial, found.trials)
    tried = ", ".join(f"{trial.c:g}" for trial in found.trials)
    progress.say(f"logistic head with C {found.head.c:g}, selected from {tried} by {len(folds)}-fold cross-validation")
    progress.advance()
    return found


def solve_labels_for_run(task: MultilabelTask, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
    """Solve the head on the training images, or with `refit` on all; has no state to resume."""
    splits = ("train", "val") if task.config.refit else ("train",)
    places = sorted(i for split in splits for i in task.store.indices(split))
    found = solve_for_run(task, places, run, progress)
    return Outcome(
        logits=lambda split: found.head.logits(task.split_features(split)),
        save=lambda card: save_linear(task, run, found.head, card),
        trained_parameters=found.head.weight.size + found.head.bias.size,
        held_out=HeldOut(places, found.held_out) if task.config.refit else None,
    )
