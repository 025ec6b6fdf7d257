"""Logistic regression of each label by itself on frozen features, C by cross-validation. Unknown labels are left out.

Depends on scikit-learn, never on torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tl.data.splits import Fold
from tl.runtime.devices import usable_cores
from tl.trainer.heads.solvers import CrossValidated, LinearHead, feature_scale, select_nested

# Features (N, D), and labels (N, C): 1, 0 or NaN where unknown.
LabelSets = tuple[NDArray[np.floating], NDArray[np.float64]]


@dataclass(frozen=True)
class LabelTrial:
    """Result for one value of C out of fold. `val_log_loss`: mean over the known labels of each image."""

    c: float
    val_log_loss: float


def cross_validate_labels(
    data: LabelSets, folds: Sequence[Fold], c_values: Sequence[float], *, is_balanced: bool = False
) -> CrossValidated:
    """Choose one C for all labels by cross-validation, and fit the head to all of `data`.

    The best C has the smallest mean log loss on held-out rows. `held_out` (N, C) of a fold comes from the C that is
    best on the other folds. `is_balanced`: give the rarer of presence and absence more weight.
    """
    features, labels = data
    tried = sorted(c_values)
    logits = np.zeros((len(tried), *labels.shape))
    for own, held in folds:
        heads = solve_labels((features[own], labels[own]), tried, is_balanced=is_balanced)
        logits[:, held] = [head.logits(features[held]) for head in heads]
    losses = np.array([label_losses(each, labels) for each in logits])
    chosen, held_out = select_nested(logits, losses, folds)
    trials = [LabelTrial(c, float(loss)) for c, loss in zip(tried, losses.mean(axis=1), strict=True)]
    (head,) = solve_labels(data, [tried[chosen]], is_balanced=is_balanced)
    return CrossValidated(head, held_out, trials)


def label_losses(logits: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mean log loss (N,) of each image's known labels, from logits (N, C) and labels (N, C)."""
    signed = np.where(labels == 1, -logits, logits)
    return np.asarray(np.nanmean(np.where(np.isnan(labels), np.nan, np.logaddexp(0, signed)), axis=1))


def solve_labels(data: LabelSets, c_values: Sequence[float], *, is_balanced: bool = False) -> list[LinearHead]:
    """A head for each C: one logistic regression per label, on the images of which the label is known."""
    from sklearn.exceptions import ConvergenceWarning

    features, labels = data
    mean, scale = feature_scale(features, "logistic")
    scaled = ((features - mean) / scale).astype(np.float32)
    fits = [partial(_fit, scaled, column, c, is_balanced) for c in c_values for column in labels.T]
    with warnings.catch_warnings():
        # A large C on many images converges slowly and generalizes no better; held-out images decide.
        warnings.simplefilter("ignore", ConvergenceWarning)
        with threadpool_limits(1), ThreadPoolExecutor(usable_cores()) as pool:
            fitted = list(pool.map(lambda fit: fit(), fits))
    heads = []
    for i, c in enumerate(c_values):
        own = fitted[i * labels.shape[1] : (i + 1) * labels.shape[1]]
        weight = np.stack([row for row, _ in own]) / scale
        heads.append(LinearHead(weight, np.array([bias for _, bias in own]) - weight @ mean, c))
    return heads


def _fit(
    features: NDArray[np.float32], column: NDArray[np.float64], c: float, is_balanced: bool
) -> tuple[NDArray[np.float64], float]:
    """Weight (D,) and bias of one label; its frequency alone if these rows all have it, or all lack it."""
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(column)
    present, absent = int((column == 1).sum()), int((column == 0).sum())
    if not present or not absent:
        return np.zeros(features.shape[1]), float(np.log((present + 0.5) / (absent + 0.5)))
    model = LogisticRegression(C=c, max_iter=1000, class_weight="balanced" if is_balanced else None)
    model.fit(features[known], column[known].astype(np.int64))
    return np.asarray(model.coef_[0], np.float64), float(model.intercept_[0])
