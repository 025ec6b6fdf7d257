"""Fit a linear head to the features of the images labeled so far, again after every few labels.

Knows features and class ids, no images and no files. Depends on scikit-learn, never on torch. All of it computes on one
thread: next to a network that uses every core, several threads that wait for each other are many times as slow.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tl.evaluation.calibration import fit_temperature, softmax
from tl.trainer.heads.solvers import LinearHead, feature_scale

# The best of 0.01 to 30, or close to it, for 20 to 1,600 labels of 2 to 40 classes (benchmarks/RESULTS.md).
C = 0.03
_TOLERANCE, _MAX_ITERATIONS = 1e-3, 100
# Folds that the temperature is fitted on, fewer images than say anything about it, and from how many images on a single
# fold is enough.
_FOLDS, _TOO_FEW, _PLENTY = 5, 8, 500


@dataclass(frozen=True)
class FittedHead:
    """A linear head on frozen features, and the temperature that its logits are divided by.

    `class_names`: index = class id. `c`: inverse strength of the L2 penalty, for features scaled by `feature_scale`.
    """

    head: LinearHead
    temperature: float
    class_names: tuple[str, ...]
    c: float

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features (N, D) -> probabilities float32 (N, C)."""
        with threadpool_limits(1):
            return softmax(features @ self._weight.T + self.head.bias, self.temperature)

    @property
    def _weight(self) -> NDArray[np.float32]:
        return self.head.weight.astype(np.float32)


def fit_head(
    features: NDArray[np.float32],
    ids: NDArray[np.int64],
    class_names: tuple[str, ...],
    *,
    seed: int = 0,
    c: float | None = None,
) -> FittedHead:
    """Fit a head to features (n, D) and class ids (n,) with at least one image of each of two or more classes.

    `c`: None for `C`. The temperature is fitted to out-of-fold logits of these images, which are harder than others
    where a rule has chosen them, so confidence is rather too low than too high. Deterministic for a seed.
    """
    if len(class_names) < 2 or set(ids.tolist()) != set(range(len(class_names))):
        raise ValueError("a head requires two or more classes, each with a labeled image")
    used = C if c is None else c
    with threadpool_limits(1):
        temperature = _find_temperature(features, ids, used, seed)
        return FittedHead(solve(features, ids, used), temperature, tuple(class_names), used)


def stratified_folds(ids: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """A fold (n,) from 0 to `count` - 1 for each image, so that the images of a class are spread evenly.

    Deterministic for a seed.
    """
    order = np.random.default_rng(seed).permutation(len(ids))
    order = order[np.argsort(ids[order], kind="stable")]
    fold = np.empty(len(ids), np.int64)
    fold[order] = np.arange(len(ids)) % count
    return fold


def _find_temperature(features: NDArray[np.float32], ids: NDArray[np.int64], c: float, seed: int) -> float:
    fold = stratified_folds(ids, _FOLDS, seed)
    fold[np.bincount(ids)[ids] == 1] = -1  # the only image of a class always trains
    logits, true_ids = [], []
    for k in range(_FOLDS if len(ids) < _PLENTY else 1):
        held = fold == k
        if held.any():
            logits.append(solve(features[~held], ids[~held], c).logits(features[held]))
            true_ids.append(ids[held])
    if sum(map(len, true_ids)) < _TOO_FEW:
        return 1.0
    return fit_temperature(np.concatenate(logits), np.concatenate(true_ids))


def solve(features: NDArray[np.float32], ids: NDArray[np.int64], c: float) -> LinearHead:
    """Multinomial logistic regression on scaled features, as a head on raw features.

    The few labels at the start are of uneven classes by chance. An intercept would learn that, so there is none: the
    features are centered on the mean of the class means, and the classes have equal weight.
    """
    from sklearn.linear_model import LogisticRegression

    mean = _class_means(features, ids).mean(axis=0)
    _, std = feature_scale(features, "logistic")
    scaled = (features - mean.astype(np.float32)) / std.astype(np.float32)
    # The solution is a combination of the images, so few images need only as many coordinates as there are images.
    basis = None
    if 4 * len(scaled) < scaled.shape[1]:
        basis, coordinates = np.linalg.qr(scaled.T)
        scaled = np.ascontiguousarray(coordinates.T)
    model = LogisticRegression(
        C=c, tol=_TOLERANCE, max_iter=_MAX_ITERATIONS, fit_intercept=False, class_weight="balanced"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a head that has not fully converged generalizes no worse
        model.fit(scaled, ids)
    weight = model.coef_ if basis is None else model.coef_ @ basis.T
    weight = weight.astype(np.float64) / std
    if len(weight) == 1:  # two classes: one margin d becomes the logits [0, d]
        weight = np.vstack([np.zeros_like(weight), weight])
    return LinearHead(weight, -weight @ mean, c)


def _class_means(features: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean features (C, D) of each class."""
    counts = np.bincount(ids)
    members = np.zeros((len(counts), len(ids)), np.float32)
    members[ids, np.arange(len(ids))] = 1
    return (members @ features).astype(np.float64) / counts[:, None]
