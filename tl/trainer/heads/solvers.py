"""Linear heads on frozen features, fitted by a solver instead of step by step: logistic regression and linear SVM.

C is chosen on a validation set (`solve_head`) or by cross-validation (`cross_validate`). Depends on scikit-learn, never
on torch. Feature scaling is folded into one linear layer on the raw features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tl.data.splits import Fold
from tl.runtime.devices import usable_cores

Solver = Literal["logistic", "svm"]
_Float = TypeVar("_Float", bound=np.floating[Any])


@dataclass(frozen=True)
class LinearHead:
    """Logits = features @ weight.T + bias; `weight` float64 (C, D), `bias` float64 (C,). `c`: the value of C used."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    c: float

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Features (N, D) -> logits (N, C)."""
        return features.astype(np.float64) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Trial:
    """Result for one value of C on validation images, or out of fold. `val_log_loss` is NaN for an SVM's margins."""

    c: float
    train_top1_accuracy: float
    val_top1_accuracy: float
    val_log_loss: float


@dataclass(frozen=True)
class CrossValidated:
    """A head fitted to all rows with the C that cross-validation has chosen.

    `held_out`: float64 (N, C) logits of each row, from a head that was fitted without the row's fold and whose C was
    chosen without it. `trials`: a result for each C.
    """

    head: LinearHead
    held_out: NDArray[np.float64]
    trials: Sequence[Any]


Labeled = tuple[NDArray[np.floating], NDArray[np.int64]]


def solve_head(
    solver: Solver, train: Labeled, val: Labeled, c_values: Sequence[float], seed: int, *, is_balanced: bool = False
) -> tuple[LinearHead, list[Trial]]:
    """Fit a head for each C and return the best on `val`; ties go to the smallest C. Features (N, D), ids (N,).

    `is_balanced`: give rare classes more weight.
    """
    heads, trials = _solve_each(solver, train, val, sorted(c_values), seed, is_balanced)
    return heads[_best(trials)], trials


def cross_validate(
    solver: Solver,
    data: Labeled,
    folds: Sequence[Fold],
    c_values: Sequence[float],
    seed: int,
    *,
    is_balanced: bool = False,
) -> CrossValidated:
    """Choose C by cross-validation and fit the head to all of `data`. Features (N, D), ids (N,) with each of 0..C-1.

    The best C has the smallest loss on held-out rows: log loss, or the error rate for an SVM; ties go to the smallest.
    The held-out logits of a fold come from the C that is best on the other folds (`select_nested`), so that no row
    takes part in choosing the C that it is scored with.
    """
    features, ids = data
    tried = sorted(c_values)
    logits = np.zeros((len(tried), len(ids), int(ids.max()) + 1))
    train_accuracies = []
    for i, (own, held) in enumerate(folds):
        part, rest = (features[own], ids[own]), (features[held], ids[held])
        heads, trials = _solve_each(solver, part, rest, tried, seed + i, is_balanced)
        logits[:, held] = [head.logits(features[held]) for head in heads]
        train_accuracies.append([trial.train_top1_accuracy for trial in trials])
    losses = np.array([_losses(solver, each, ids) for each in logits])
    chosen, held_out = select_nested(logits, losses, folds)
    best = tried[chosen]
    head = solve_with(solver, data, best, seed, is_balanced=is_balanced)
    trained = np.average(train_accuracies, axis=0, weights=[len(own) for own, _ in folds])
    trials = [
        Trial(c, float(accuracy), float((each.argmax(axis=1) == ids).mean()), _log_loss(solver, each, ids))
        for c, accuracy, each in zip(tried, trained, logits, strict=True)
    ]
    return CrossValidated(head, held_out, trials)


def solve_with(solver: Solver, data: Labeled, c: float, seed: int, *, is_balanced: bool = False) -> LinearHead:
    """Fit a head with a given C. Features (N, D), ids (N,) with each of 0..C-1."""
    (head,), _ = _solve_each(solver, data, data, [c], seed, is_balanced)
    return head


def lowest_mean(losses: NDArray[np.floating], rows: NDArray[np.intp]) -> int:
    """The candidate with the lowest mean of losses (K, N), the first of equals."""
    return int(losses.mean(axis=1).argmin())


def select_nested(
    logits: NDArray[_Float],
    losses: NDArray[np.floating],
    folds: Sequence[Fold],
    choose: Callable[[NDArray[np.floating], NDArray[np.intp]], int] = lowest_mean,
) -> tuple[int, NDArray[_Float]]:
    """Choose one of K candidates by their losses, and score the choice without its optimism.

    `logits` (K, N, C) and `losses` (K, N) of rows that none of the candidates was fitted to. `choose`: losses (K, M) of
    some rows, and their numbers (M,) -> index of a candidate. Returns that of all rows, and logits (N, C) in which each
    fold's rows come from the candidate that was chosen on the other folds.

    Source: Varma & Simon 2006, "Bias in error estimation when using cross-validation for model selection".
    """
    every = np.arange(losses.shape[1])
    chosen = choose(losses, every)
    held_out = logits[chosen].copy()
    for _, held in folds:
        others = np.setdiff1d(every, held)
        held_out[held] = logits[choose(losses[:, others], others), held]
    return chosen, held_out


def log_losses(logits: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-probability (N,) of the true classes `ids` int64 (N,), from logits (N, C)."""
    from scipy.special import logsumexp

    values = logits.astype(np.float64)
    return np.asarray(logsumexp(values, axis=1) - values[np.arange(len(ids)), ids])


def _losses(solver: Solver, logits: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The loss of each row: its log loss, or 1 for an error of an SVM, whose margins are no log-probabilities."""
    return np.asarray(logits.argmax(axis=1) != ids, np.float64) if solver == "svm" else log_losses(logits, ids)


def _log_loss(solver: Solver, logits: NDArray[np.float64], ids: NDArray[np.int64]) -> float:
    return float("nan") if solver == "svm" else float(_losses(solver, logits, ids).mean())


def solve_bag(
    solver: Solver,
    train: Labeled,
    folds: Sequence[Fold],
    c_values: Sequence[float],
    seed: int,
    *,
    is_balanced: bool = False,
) -> tuple[LinearHead, list[Trial]]:
    """Fit a head on each (training, held-out) fold of `train`, all with the C that is best on the held-out images.

    The average of their logits is a single linear head, which is returned. Accuracies of a trial are means over the
    folds, weighted by fold size.

    Source: Breiman 1996, "Bagging Predictors"; folds instead of bootstrap samples follow Parmanto et al. 1996.
    """
    features, ids = train
    each = [
        _solve_each(
            solver, (features[own], ids[own]), (features[held], ids[held]), sorted(c_values), seed + i, is_balanced
        )
        for i, (own, held) in enumerate(folds)
    ]
    own_sizes, held_sizes = ([len(part) for part in parts] for parts in zip(*folds, strict=True))
    trials = [
        Trial(
            tried[0].c,
            float(np.average([trial.train_top1_accuracy for trial in tried], weights=own_sizes)),
            float(np.average([trial.val_top1_accuracy for trial in tried], weights=held_sizes)),
            float(np.average([trial.val_log_loss for trial in tried], weights=held_sizes)),
        )
        for tried in zip(*(trials for _, trials in each), strict=True)
    ]
    heads = [heads[_best(trials)] for heads, _ in each]
    weight, bias = (np.mean([getattr(head, part) for head in heads], axis=0) for part in ("weight", "bias"))
    return LinearHead(weight, bias, heads[0].c), trials


def _best(trials: Sequence[Trial]) -> int:
    return max(range(len(trials)), key=lambda i: (trials[i].val_top1_accuracy, -i))


def feature_scale(features: NDArray[np.floating], solver: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and scale (D,) to divide features (N, D) by before a head is solved."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.maximum(std, max(0.1 * float(std.mean()), 1e-6))  # nearly constant features are not amplified
    return mean, std if solver == "svm" else np.sqrt(std * std.mean())  # halfway between raw and standardized features


def _solve_each(
    solver: Solver, train: Labeled, val: Labeled, c_values: Sequence[float], seed: int, is_balanced: bool
) -> tuple[list[LinearHead], list[Trial]]:
    """A head and its trial for each C, ascending."""
    from sklearn.exceptions import ConvergenceWarning

    mean, std = feature_scale(train[0], solver)
    shift, scale = mean.astype(np.float32), std.astype(np.float32)
    scaled_train, scaled_val = ((x.astype(np.float32, copy=False) - shift) / scale for x, _ in (train, val))
    # The largest C takes the longest, so it starts first.
    fits = [partial(_build_model(solver, c, seed, is_balanced).fit, scaled_train, train[1]) for c in reversed(c_values)]
    with warnings.catch_warnings():
        # A large C on many images converges slowly and generalizes no better; validation data decides.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One C per core is several times as fast as all cores on one C. But where scikit-learn chooses liblinear's dual
        # solver, the fits share one random generator and must run sequentially to be reproducible.
        is_random = solver == "svm" and len(scaled_train) < scaled_train.shape[1]
        with threadpool_limits(1), ThreadPoolExecutor(1 if is_random else usable_cores()) as pool:
            models = list(pool.map(lambda fit: fit(), fits))[::-1]
    heads = [_unscale(m.coef_, m.intercept_, mean, std, c) for m, c in zip(models, c_values, strict=True)]
    trials = [
        Trial(
            head.c,
            model.score(scaled_train, train[1]),
            model.score(scaled_val, val[1]),
            _log_loss(solver, head.logits(val[0]), val[1]),
        )
        for head, model in zip(heads, models, strict=True)
    ]
    return heads, trials


def _build_model(solver: Solver, c: float, seed: int, is_balanced: bool) -> Any:
    class_weight = "balanced" if is_balanced else None
    if solver == "svm":
        from sklearn.svm import LinearSVC

        return LinearSVC(C=c, tol=1e-3, random_state=seed, class_weight=class_weight)
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=1000, class_weight=class_weight)


def _unscale(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    c: float,
) -> LinearHead:
    """Convert a head on scaled features to one on raw features."""
    weight = weight / std
    bias = bias - weight @ mean
    if len(weight) == 1:  # two classes: one margin d becomes the logits [0, d]
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    return LinearHead(weight, bias, c)
