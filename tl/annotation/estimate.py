"""Estimate the accuracy of the current head on images that nobody has labeled, from a random sample labeled blind.

Knows features and class ids, no images and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.annotation.learner import fit_head
from tl.evaluation.metrics import wilson_interval

MIN_RANDOM = 10
FOLDS = 5


@dataclass(frozen=True)
class Estimate:
    """Accuracy on images that are not labeled, with its 95% interval, from `n` random labeled images.

    `more_labels_to_halve`: how many more random images to label so that the interval is half as wide.
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
) -> Estimate | None:
    """Estimate from features (n, D) and class ids (n,) of the labeled images. None if there are too few random ones.

    `is_random` (n,): which of the images were drawn at random and labeled without a suggestion.
    """
    rows = np.flatnonzero(is_random)
    if len(rows) < MIN_RANDOM or len(class_names) < 2:
        return None
    fold = np.random.default_rng(seed).permutation(len(rows)) % FOLDS
    correct = np.zeros(len(rows), bool)
    for k in range(FOLDS):
        held = rows[fold == k]
        rest = np.setdiff1d(np.arange(len(ids)), held)
        known, own = np.unique(ids[rest], return_inverse=True)
        if len(known) < 2:
            return None
        head = fit_head(features[rest], own, tuple(class_names[i] for i in known), seed=seed)
        correct[fold == k] = known[head.probabilities(features[held]).argmax(axis=1)] == ids[held]
    low, high = wilson_interval(correct.sum(), len(rows))
    return Estimate(float(correct.mean()), low, high, len(rows), _more_to_halve(int(correct.sum()), len(rows)))


def _more_to_halve(hits: int, count: int) -> int:
    low, high = wilson_interval(hits, count)
    share, total = hits / count, count
    while True:
        total += 1
        new_low, new_high = wilson_interval(share * total, total)
        if new_high - new_low <= (high - low) / 2:
            return total - count
