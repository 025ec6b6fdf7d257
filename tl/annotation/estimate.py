"""Estimate the accuracy of the current head on other images of the same kind, from a random sample labeled blind.

The estimate is rather too low than too high: images that a rule has chosen were not chosen near the random ones, which
the head knew, and so leave a gap where a random image is held out. Images of the folder that remain unlabeled are
easier than other images once the rule has taken many of the hard ones. benchmarks/RESULTS.md, "Labeling", has figures.

Knows features and class ids, no images and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tl.annotation.learner import C, solve, stratified_folds
from tl.evaluation.metrics import wilson_interval

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
) -> Estimate | None:
    """Estimate the accuracy of the head that is fitted to all labeled images; features (n, D), class ids (n,).

    `is_random` (n,): which images were drawn at random and labeled without a suggestion. Each of them is predicted by
    a head that is fitted to all labeled images but a fifth of the random ones, its own among them. None with fewer than
    10 random images, or if they leave fewer than two classes. Deterministic for a seed.

    Source: Stone 1974 for cross-validation; only random images may be held out, because chosen ones are harder.
    """
    rows = np.flatnonzero(is_random)
    if len(rows) < MIN_RANDOM or len(class_names) < 2:
        return None
    fold = stratified_folds(ids[rows], FOLDS, seed)
    is_right = np.zeros(len(rows), bool)
    for k in range(FOLDS):
        held = rows[fold == k]
        rest = np.setdiff1d(np.arange(len(ids)), held)
        known, own = np.unique(ids[rest], return_inverse=True)
        if len(known) < 2:
            return None
        with threadpool_limits(1):  # as in `learner`
            decided = known[solve(features[rest], own, C).logits(features[held]).argmax(axis=1)]
        is_right[fold == k] = decided == ids[held]
    hits, count = int(is_right.sum()), len(rows)
    low, high = wilson_interval(hits, count)
    return Estimate(hits / count, low, high, count, more_to_halve(hits, count))


def more_to_halve(hits: int, count: int) -> int:
    """How many more images halve the width of the Wilson interval of `hits` of `count`, at the same share of hits."""
    low, high = wilson_interval(hits, count)
    wanted, total = (high - low) / 2, count
    while high - low > wanted:
        total += 1
        low, high = wilson_interval(hits / count * total, total)
    return total - count
