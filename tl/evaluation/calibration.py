"""Calibrate confidence on held-out data: temperature and conformal scores.

Works on logits and labels, independently of models and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError
from tl.runtime.ensembles.selective import conformal_scores
from tl.runtime.model_file.contract import Conformal

_LOG_RANGE = (math.log(1e-3), math.log(1e3))


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Convert logits (N, C) to probabilities float32 (N, C)."""
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def fit_temperature(logits: NDArray[np.floating], true_ids: NDArray[np.int64]) -> float:
    """Find the temperature with minimal cross-entropy. `logits` (N, C), `true_ids` int64 (N,).

    Targets are (N + 1) / (N + 2) for the true class, with the rest spread over the others. Otherwise, a validation set
    without errors would drive the confidence to certainty.

    Source: Guo et al. 2017 for the temperature, Platt 1999 for the targets.
    """
    from scipy.optimize import minimize_scalar

    count, classes = logits.shape
    values = logits.astype(np.float64)
    targets = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), true_ids] = (count + 1) / (count + 2)

    def cross_entropy(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        log_shares = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return float(-(targets * log_shares).sum(axis=1).mean())

    return math.exp(minimize_scalar(cross_entropy, bounds=_LOG_RANGE, method="bounded").x)


# Folds that decide whether a temperature helps, and the images that are too few to decide.
_FOLDS, _TOO_FEW = 5, 20


def fit_useful_temperature(logits: NDArray[np.floating], true_ids: NDArray[np.int64]) -> float:
    """The temperature of `fit_temperature`, or 1 if it does not generalize. `logits` (N, C), `true_ids` int64 (N,).

    It must lower the log loss of images that it was not fitted to by more than one standard error. With few images, or
    with logits that are calibrated already, a fitted temperature more often harms than helps.
    """
    count = len(true_ids)
    if count < _TOO_FEW:
        return 1.0
    fold = np.random.default_rng(0).permutation(count) % _FOLDS
    gains = np.empty(count)
    rows = np.arange(count)
    for k in range(_FOLDS):
        held = fold == k
        scaled = softmax(logits[held], fit_temperature(logits[~held], true_ids[~held]))
        both = np.stack([scaled, softmax(logits[held])])[:, rows[: held.sum()], true_ids[held]]
        gains[held] = np.log(np.maximum(both[0], 1e-12)) - np.log(np.maximum(both[1], 1e-12))
    is_useful = gains.mean() > gains.std(ddof=1) / math.sqrt(count)
    return fit_temperature(logits, true_ids) if is_useful else 1.0


# More scores add no information and make the file larger.
MAX_SCORES = 1000


def conformal_of(probabilities: NDArray[np.float32], true_ids: NDArray[np.int64], source: str) -> Conformal:
    """Compute conformal scores from probabilities (N, C) of held-out images and their classes (N,)."""
    return Conformal(held_out_scores(conformal_scores(probabilities)[np.arange(len(true_ids)), true_ids]), source)


def held_out_scores(scores: NDArray[np.floating]) -> tuple[float, ...]:
    """Sorted scores of held-out images, without NaN; of a random sample if there are many."""
    known = scores[~np.isnan(scores)]
    if len(known) > MAX_SCORES:
        known = np.random.default_rng(0).permutation(known)[:MAX_SCORES]
    return tuple(sorted(float(score) for score in known))


def class_ids_of(labels: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Map labels to indices in `class_names`. Raises `DataError` for a label that is none of them."""
    order = {name: i for i, name in enumerate(class_names)}
    if foreign := [label for label in labels if label not in order]:
        raise DataError(f"label '{foreign[0]}' is not among the classes of the run: {', '.join(class_names)}")
    return np.array([order[label] for label in labels], np.int64)
