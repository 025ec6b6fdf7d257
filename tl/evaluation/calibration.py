"""Calibrate confidence on held-out data: temperature, conformal scores, the out-of-distribution score.

Works on logits, labels and embeddings, independently of models and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.features import unit_length
from tl.errors import DataError
from tl.runtime.ensembles.selective import conformal_limit, conformal_scores
from tl.runtime.model_file.contract import Conformal, OodFacts

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
    scores = conformal_scores(probabilities)[np.arange(len(true_ids)), true_ids]
    if len(scores) > MAX_SCORES:
        scores = np.random.default_rng(0).permutation(scores)[:MAX_SCORES]
    return Conformal(tuple(sorted(float(score) for score in scores)), source)


MAX_DIMENSIONS = 256
# Training images and held-out images, each: more add no information and make fitting slower.
MAX_KNOWN = 2000
# The projection of a larger embedding, such as a flattened map, would be larger than the backbone.
MAX_EMBEDDING = 8192
# Variance of a unit-length embedding in any direction; for MobileNetV2 it is 0.0003 or more. With less, rounding errors
# would dominate the distance.
_LEAST_VARIANCE = 3e-5
# Rounding differences between machines, relative to the largest value, and the score change accepted for them.
_ROUNDING, _STEADY = 1e-6, 5e-5


@dataclass(frozen=True)
class Known:
    """Embeddings of training images (n, D), their classes (n,), and embeddings of validation images."""

    embeddings: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    held_out: NDArray[np.float32]


@dataclass(frozen=True)
class OodFit:
    """Parameters of the score, float32: `mean` (D,), `whitening` (D, K), `class_means` (C, K).

    Embeddings are scaled to unit length and projected to K principal components in which classes have variance 1. The
    score is the distance to the nearest class mean. Source: Lee et al. 2018 (Mahalanobis distance with a covariance
    shared by the classes); Mueller & Hein 2025 (unit length).
    """

    mean: NDArray[np.float32]
    whitening: NDArray[np.float32]
    class_means: NDArray[np.float32]

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map embeddings (N, D) to distances (N,), about 1 for training images; in float32, like the graph."""
        places = (unit_length(embeddings) - self.mean) @ self.whitening
        # One image at a time: with many classes, computing all distances at once would need too much memory.
        squares = [np.square(place - self.class_means).mean(axis=1).min() for place in places]
        return np.sqrt(np.array(squares, np.float32))


def fit_unknown(known: Known, num_classes: int, false_alarm: float) -> tuple[OodFit, OodFacts] | None:
    """Fit the class statistics, and set the limit on held-out images.

    Returns None if this is not possible: too few images, an embedding that is too large, or one whose differences are
    little more than rounding.
    """
    counts = np.bincount(known.class_ids, minlength=num_classes)
    wide = known.embeddings.shape[1]
    if counts.min() < 2 or wide > MAX_EMBEDDING or not len(known.held_out):
        return None
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    unit = unit_length(known.embeddings.astype(np.float64))
    # Half the degrees of freedom within classes: with more components, the covariance is poorly estimated.
    size = int(min(MAX_DIMENSIONS, wide, max(1, (len(unit) - num_classes) // 2)))
    projection = PCA(size, random_state=0).fit(unit)
    places = projection.transform(unit)
    means = np.stack([places[known.class_ids == c].mean(axis=0) for c in range(num_classes)])
    covariance = LedoitWolf(assume_centered=True).fit(places - means[known.class_ids]).covariance_
    factor = np.linalg.cholesky(np.linalg.inv(covariance + _LEAST_VARIANCE * np.eye(size)))
    fit = OodFit(
        *(
            np.ascontiguousarray(values, np.float32)
            for values in (projection.mean_, projection.components_.T @ factor, means @ factor)
        )
    )
    scores = fit.scores(known.held_out).astype(np.float64)
    shaken = fit.scores(_shake(known.held_out)).astype(np.float64)
    if not np.abs(shaken - scores).max() < _STEADY:
        return None
    limit = unknown_limit(scores.tolist(), false_alarm)
    facts = OodFacts(len(unit), size, limit, float((scores > limit).mean()), len(scores))
    return fit, facts


def unknown_limit(scores: Sequence[float], false_alarm: float) -> float:
    """The limit that a `false_alarm` fraction of `scores` exceeds; the largest score if there are too few."""
    limit = conformal_limit(scores, 1 - false_alarm)
    return max(scores) if limit == np.inf else limit


def _shake(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Perturb the embeddings as rounding on another machine might."""
    noise = np.random.default_rng(0).choice((-_ROUNDING, _ROUNDING), embeddings.shape)
    return np.asarray(embeddings + noise * np.abs(embeddings).max(axis=1, keepdims=True), np.float32)


def class_ids_of(labels: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Map labels to indices in `class_names`. Raises `DataError` for a label that is none of them."""
    order = {name: i for i, name in enumerate(class_names)}
    if foreign := [label for label in labels if label not in order]:
        raise DataError(f"label '{foreign[0]}' is not among the classes of the run: {', '.join(class_names)}")
    return np.array([order[label] for label in labels], np.int64)
