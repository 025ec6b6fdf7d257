"""Train heads on cached features: solved by scikit-learn, or trained by steps. Also solves the initial head of
fine-tuning.

Does not open images. A solved head needs no torch, not even for saving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.data.splits import Fold, cut_folds
from tl.evaluation.sites import site_folds
from tl.progress import Progress
from tl.trainer.heads.self_training import self_train_folds
from tl.trainer.heads.solvers import CrossValidated, LinearHead, Solver, Trial, cross_validate, solve_bag, solve_head
from tl.trainer.options import settled
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run
from tl.trainer.task import FeatureTask, Task


def solve(task: Task, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
    """Solve a linear head for each value of C; writes `c_search.csv`. Has no state to resume."""
    held_out = None
    if task.config.refit:
        places = sorted([*task.store.indices("train"), *task.store.indices("val")])
        found = _cross_validate(task, places, settled(task.folds(places)), run, progress)
        head, held_out = found.head, HeldOut(places, found.held_out)
    else:
        head = solve_linear(task, task.store.indices("train"), run, progress)
    return Outcome(
        logits=lambda split: head.logits(task.split_features(split)),
        save=lambda card: save_linear(task, run, head, card),
        trained_parameters=head.weight.size + head.bias.size,
        held_out=held_out,
        left_out=_leave_sites_out(task, progress),
    )


def _leave_sites_out(task: Task, progress: Progress) -> HeldOut | None:
    """Logits of the training and validation images at each site, by a head that was fitted to the other sites, with a C
    chosen there and without self-training; None without sites.
    """
    places = sorted([*task.store.indices("train"), *task.store.indices("val")])
    sites, ids = [task.store.images[i].site for i in places], np.array([task.ids[i] for i in places])
    folds = site_folds(sites, ids)
    if len(folds) < 2:
        return None
    config = task.config
    progress.start("leaving sites out", len(folds), "sites")
    data = task.features_at(places), ids
    solver: Solver = "svm" if config.head == "svm" else "logistic"
    is_balanced = config.class_weights == "balanced"
    found = cross_validate(solver, data, folds, settled(config.c_values), config.seed, is_balanced=is_balanced)
    progress.advance(len(folds))
    kept = np.concatenate([held for _, held in folds])
    return HeldOut([places[i] for i in kept], found.held_out[kept])


def solve_linear(task: Task, places: Sequence[int], run: Run, progress: Progress, stage: str = "") -> LinearHead:
    """Solve a linear head on features of the images at `places`; writes `c_search.csv`, `stage` added to the name.

    Cross-validation on these images chooses C, so that the validation images are seen by no part of the head; where a
    class or its groups are too few for two folds, the head is fitted to the training images and the validation images
    choose it.
    """
    config = task.config
    if not config.bag and config.views is None:
        folds = task.folds(places)
        if folds is not None:
            return _cross_validate(task, places, folds, run, progress, stage).head
    if task.unlabeled is not None:
        progress.say("no self-training: it requires two images of each class, in two groups if there are groups")
    solver: Solver = "svm" if config.head == "svm" else "logistic"
    progress.start("solving the head", 1, "heads")
    train = _train_data(task)
    c_values, is_balanced = settled(config.c_values), config.class_weights == "balanced"
    if config.bag:
        head, trials = solve_bag(solver, train, _bag_folds(task), c_values, config.seed, is_balanced=is_balanced)
        what = f"mean of {config.folds} {solver} heads"
    else:
        val = (task.split_features("val"), task.true_ids("val"))
        head, trials = solve_head(solver, train, val, c_values, config.seed, is_balanced=is_balanced)
        what = f"{solver} head"
    run.save_rows("c_search.csv", Trial, trials)
    progress.say(f"{what} with C {head.c:g}, selected from {', '.join(f'{trial.c:g}' for trial in trials)}")
    progress.advance()
    return head


def train_by_steps(task: Task, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
    """Train a head by steps on standardized features."""
    from tl.trainer.fit.loop import best_epoch
    from tl.trainer.fit.machine import build_machine
    from tl.trainer.fit.trainables import class_objective, settle_lr
    from tl.trainer.heads.stepped_head import build_stepped_head, fit_stepped_head
    from tl.trainer.run_folder.checkpoints import RunCheckpoints

    config = task.config
    machine = build_machine(config.device, config.precision, config.threads)
    train = _train_data(task)
    objective = class_objective(config, task.class_names, train[1], machine)
    stepped = build_stepped_head(config, train, len(task.class_names), objective, machine)
    config = settle_lr(config, run, stepped.trainable, stepped.batches, machine, progress)
    val = (task.split_features("val"), task.true_ids("val"))
    history = fit_stepped_head(stepped, config, val, RunCheckpoints(run, config.log), progress)
    return Outcome(
        logits=lambda split: stepped.logits(task.split_features(split)),
        save=lambda card: save_head(task, run, stepped.tensors(), card),
        trained_parameters=sum(t.size for name, t in stepped.tensors().items() if name.startswith("head.")),
        best_epoch=best_epoch(history, settled(config.monitor)),
        train_seconds=sum(row.seconds for row in history) if is_resumed else None,
    )


def _cross_validate(
    task: Task, places: Sequence[int], folds: Sequence[Fold], run: Run, progress: Progress, stage: str = ""
) -> CrossValidated:
    """Solve a linear head on the images at `places`, C chosen on `folds` of them; writes `c_search.csv`."""
    config = task.config
    solver: Solver = "svm" if config.head == "svm" else "logistic"
    progress.start("solving the head", 1, "heads")
    data = task.features_at(places), np.array([task.ids[i] for i in places])
    is_balanced = config.class_weights == "balanced"
    found = cross_validate(solver, data, folds, settled(config.c_values), config.seed, is_balanced=is_balanced)
    if task.unlabeled is not None and task.features is not None:
        unlabeled = task.features.get(task.unlabeled, range(len(task.unlabeled.images)))
        progress.say(f"self-training on {len(unlabeled)} images without labels")
        found = self_train_folds(solver, found, data, folds, unlabeled, config.seed, is_balanced=is_balanced)
    run.save_rows(f"c_search{stage}.csv", Trial, found.trials)
    tried = ", ".join(f"{trial.c:g}" for trial in found.trials)
    progress.say(f"{solver} head with C {found.head.c:g}, selected from {tried} by {len(folds)}-fold cross-validation")
    progress.advance()
    return found


def _train_data(task: Task) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    views = task.train_views
    return task.split_features("train", views), np.tile(task.true_ids("train"), len(views))


def _bag_folds(task: Task) -> list[Fold]:
    """Folds of the training images; all views of an image are in the same part."""
    config, store, places = task.config, task.store, task.store.indices("train")
    hashes, groups = [store.hashes[i] for i in places], [store.images[i].group for i in places]
    folds = cut_folds(task.true_ids("train"), hashes, groups, settled(config.folds), config.seed)
    starts = len(places) * np.arange(len(task.train_views))[:, None]
    return [((starts + own).ravel(), (starts + held_out).ravel()) for own, held_out in folds]


def save_linear(task: FeatureTask, run: Run, head: LinearHead, card: NetworkCard) -> None:
    """Save the head. It applies to raw features, so the standardization is the identity."""
    features = head.weight.shape[1]
    own = {
        "head.weight": head.weight.astype(np.float32),
        "head.bias": head.bias.astype(np.float32),
        "standardize.mean": np.zeros(features, np.float32),
        "standardize.std": np.ones(features, np.float32),
    }
    save_head(task, run, own, card)


def save_head(task: FeatureTask, run: Run, own: dict[str, NDArray[Any]], card: NetworkCard) -> None:
    """Save the tensors of a head with those of the frozen trunk."""
    if task.features is None:
        raise ValueError("this task caches no features")
    run.save_best({**task.features.network, **own}, card)
