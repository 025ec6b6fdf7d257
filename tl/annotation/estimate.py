"""Estimate the accuracy of the current head on other images of the same kind, from a random sample labeled blind.

Held-out random images alone give too low an accuracy: the head knew them, so the rule chose no images near them, and a
gap is left where one is held out. There is no such gap around random images without a label, so the difference of the
confidence in both corrects the accuracy. Images that the rule could have chosen do not count: once it has taken many of
the hard ones, the others are easier. benchmarks/RESULTS.md, "Labeling", has figures.

Knows features and class ids, no images and no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tl.annotation.learner import C, solve, stratified_folds
from tl.evaluation.calibration import softmax
from tl.evaluation.metrics import cluster_ids, effective_size, wilson_interval

# With fewer, the interval says next to nothing.
MIN_RANDOM = 10
FOLDS = 5


@dataclass(frozen=True)
class Estimate:
    """Accuracy on images like those of the folder, with its 95% interval (Wilson), from `n` random labeled images.

    `more_labels_to_halve`: how many more random images to label until the interval is half as wide.
    """

    accuracy: float
    low: float
    high: float
    n: int
    more_labels_to_halve: int


def estimate_accuracy(
    features: NDArray[np.float32],
    ids: NDArray[np.int64],
    is_random: NDArray[np.bool_],
    class_names: Sequence[str],
    seed: int = 0,
    groups: Sequence[str] = (),
    unlabeled: NDArray[np.float32] | None = None,
) -> Estimate | None:
    """Estimate the accuracy of the head that is fitted to all labeled images; features (n, D), class ids (n,).

    `is_random` (n,): which images were drawn at random and labeled without a suggestion. Each of them is predicted by
    a head that is fitted to all labeled images but a fifth of the random ones, its own among them. None with fewer than
    10 random images, or if they leave fewer than two classes. Deterministic for a seed. `groups` (n,), '' for none:
    images of one group are held out together and count for less, as in `accuracy_interval`.

    `unlabeled` (m, D): features of the other images of the random sample, those without a label. Images that nobody can
    label make the estimate lower if they are among these, since their confidence is low.

    Source: Stone 1974 for cross-validation; only random images may be held out, because chosen ones are harder. Zrnic &
    Candes 2024, cross-prediction-powered inference, for the use of `unlabeled`.
    """
    rows = np.flatnonzero(is_random)
    if len(rows) < MIN_RANDOM or len(class_names) < 2:
        return None
    own_groups = [groups[i] for i in rows.tolist()] if groups else []
    fold = _cut_folds(ids[rows], own_groups, seed)
    predicted = _predict_held_out(features, ids, [rows[fold == k] for k in range(FOLDS)], unlabeled)
    if predicted is None:
        return None
    is_right, confidence, unlabeled_confidence = predicted
    share, count = corrected_share(is_right[rows], confidence[rows], unlabeled_confidence), len(rows)
    independent = effective_size(is_right[rows], own_groups)
    low, high = wilson_interval(share * independent, independent)
    more = math.ceil(count / independent * more_to_halve(share * independent, independent))
    return Estimate(share, low, high, count, more)


def _predict_held_out(
    features: NDArray[np.float32],
    ids: NDArray[np.int64],
    folds: Sequence[NDArray[np.intp]],
    unlabeled: NDArray[np.float32] | None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]] | None:
    """Predict images that are held out in turn, by `folds`, with a head that is fitted to all others.

    Returns for images (n,) whether they are named correctly, and the confidence; for `unlabeled` (m, D) the mean
    confidence (m,) of these heads. None if fewer than two classes are left.
    """
    others = features[:0] if unlabeled is None else unlabeled
    is_right, confidence, theirs = np.zeros(len(ids), bool), np.zeros(len(ids)), np.zeros(len(others))
    for held in folds:
        rest = np.setdiff1d(np.arange(len(ids)), held)
        known, own = np.unique(ids[rest], return_inverse=True)
        if len(known) < 2:
            return None
        with threadpool_limits(1):  # as in `learner`
            head = solve(features[rest], own, C)
            probabilities, other_probabilities = (softmax(head.logits(x)) for x in (features[held], others))
        is_right[held] = known[probabilities.argmax(axis=1)] == ids[held]
        confidence[held] = probabilities.max(axis=1)
        theirs += other_probabilities.max(axis=1) * len(held) / sum(map(len, folds))
    return is_right, confidence, theirs


def corrected_share(
    is_right: NDArray[np.bool_], confidence: NDArray[np.float64], unlabeled_confidence: NDArray[np.float64]
) -> float:
    """Share of images (n,) that are named correctly, corrected by how confident the heads are for unlabeled ones (m,).

    Source: Angelopoulos, Duchi & Zrnic 2023, PPI++: the weight of the correction is that of the least variance, as in
    the regression estimator of Cochran 1977, and between 0 and 1.
    """
    share, variance = float(is_right.mean()), np.concatenate([confidence, unlabeled_confidence]).var()
    if len(unlabeled_confidence) == 0 or variance == 0:
        return share
    covariance, ratio = np.cov(is_right, confidence)[0, 1], len(confidence) / len(unlabeled_confidence)
    weight = np.clip(covariance / variance / (1 + ratio), 0, 1)
    return float(np.clip(share + weight * (unlabeled_confidence.mean() - confidence.mean()), 0, 1))


def _cut_folds(ids: NDArray[np.int64], groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A fold (n,) for each image; images of one group are in the same."""
    clusters = cluster_ids(groups, len(ids))
    count = int(clusters.max()) + 1
    if count == len(ids):
        return stratified_folds(ids, FOLDS, seed)
    folds: NDArray[np.int64] = np.random.default_rng(seed).permutation(count)[clusters] % FOLDS
    return folds


def more_to_halve(hits: float, count: float) -> int:
    """How many more images halve the width of the Wilson interval of `hits` of `count`, at the same share of hits."""
    low, high = wilson_interval(hits, count)
    wanted, more = (high - low) / 2, 0
    while high - low > wanted:
        more += 1
        low, high = wilson_interval(hits / count * (count + more), count + more)
    return more
