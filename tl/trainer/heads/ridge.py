"""Ridge regression on frozen features: one linear layer that outputs standardized numbers, C by cross-validation.

Depends on scikit-learn, never on torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.splits import Fold
from tl.trainer.heads.solvers import CrossValidated, LinearHead, feature_scale, select_nested

# Features (N, D), and standardized targets (N, T) with NaN for missing numbers.
Numbered = tuple[NDArray[np.floating], NDArray[np.float64]]


@dataclass(frozen=True)
class RidgeTrial:
    """Result for one value of C out of fold. `val_rmse`: in standard deviations of the targets."""

    c: float
    val_rmse: float


def cross_validate_ridge(data: Numbered, folds: Sequence[Fold], c_values: Sequence[float]) -> CrossValidated:
    """Choose C by cross-validation and fit the head to all of `data`.

    The best C has the smallest squared error on held-out rows. `held_out` (N, T) of a fold comes from the C that is
    best on the other folds. Each target is fitted to the rows in which it is known.
    """
    features, targets = data
    tried = sorted(c_values)
    outputs = np.zeros((len(tried), *targets.shape))
    for own, held in folds:
        heads = solve_ridge((features[own], targets[own]), tried)
        outputs[:, held] = [head.logits(features[held]) for head in heads]
    losses = np.nanmean((outputs - targets) ** 2, axis=2)
    chosen, held_out = select_nested(outputs, losses, folds)
    trials = [RidgeTrial(c, float(np.sqrt(loss))) for c, loss in zip(tried, losses.mean(axis=1), strict=True)]
    return CrossValidated(solve_ridge(data, [tried[chosen]])[0], held_out, trials)


def solve_ridge(data: Numbered, c_values: Sequence[float]) -> list[LinearHead]:
    """A head for each C, the inverse of scikit-learn's alpha."""
    features, targets = data
    mean, scale = feature_scale(features, "ridge")
    scaled = (features - mean) / scale
    heads = []
    for c in c_values:
        weights, biases = zip(*(_fit(scaled, column, c) for column in targets.T), strict=True)
        weight = np.stack(weights) / scale
        heads.append(LinearHead(weight, np.array(biases) - weight @ mean, c))
    return heads


def _fit(features: NDArray[np.float64], column: NDArray[np.float64], c: float) -> tuple[NDArray[np.float64], float]:
    """Weight (D,) and bias of one target; the mean of all images, 0, if these rows have no number."""
    from sklearn.linear_model import Ridge

    has = ~np.isnan(column)
    if not has.any():
        return np.zeros(features.shape[1]), 0.0
    model = Ridge(1 / c).fit(features[has], column[has])
    return model.coef_, float(model.intercept_)
