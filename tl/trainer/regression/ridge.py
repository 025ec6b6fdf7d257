"""Solve a run's ridge regression on cached features. Needs no torch, not even for saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tl.errors import DataError
from tl.progress import Progress
from tl.trainer.heads.ridge import RidgeTrial, cross_validate_ridge
from tl.trainer.heads.solvers import CrossValidated
from tl.trainer.heads.training import save_linear
from tl.trainer.options import settled
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.regression.task import RegressionTask
from tl.trainer.run_folder.run import Run


def solve_for_run(task: RegressionTask, places: Sequence[int], run: Run, progress: Progress) -> CrossValidated:
    """Ridge regression of standardized numbers on the images at `places`; writes `c_search.csv`. Raises `DataError`."""
    folds = task.folds(places)
    if folds is None:
        raise DataError("ridge regression requires at least four images in two groups to choose C by cross-validation")
    progress.start("solving the head", 1, "heads")
    found = cross_validate_ridge(
        (task.features_at(places), task.standardized[list(places)]), folds, settled(task.config.c_values)
    )
    run.save_rows("c_search.csv", RidgeTrial, found.trials)
    tried = ", ".join(f"{trial.c:g}" for trial in found.trials)
    progress.say(f"ridge head with C {found.head.c:g}, selected from {tried} by {len(folds)}-fold cross-validation")
    progress.advance()
    return found


def solve_numbers(task: RegressionTask, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
    """Solve the head on the training images, or with `refit` on all; has no state to resume."""
    splits = ("train", "val") if task.config.refit else ("train",)
    places = sorted(i for split in splits for i in task.store.indices(split))
    found = solve_for_run(task, places, run, progress)
    head = dataclasses.replace(
        found.head, weight=found.head.weight * task.std[:, None], bias=found.head.bias * task.std + task.mean
    )
    held_out = HeldOut(places, found.held_out * task.std + task.mean) if task.config.refit else None
    return Outcome(
        logits=lambda split: head.logits(task.split_features(split)),
        save=lambda card: save_linear(task, run, head, card),
        trained_parameters=int(np.size(head.weight) + np.size(head.bias)),
        held_out=held_out,
    )
