"""Estimate the accuracy of the current head on other images of the same kind, from a random sample labeled blind.

The estimate is rather too low than too high: images that a rule has chosen were not chosen near the random ones, which
the head knew, and so leave a gap where a random image is held out. Images of the folder that remain unlabeled are
easier than other images once the rule has taken many of the hard ones. benchmarks/RESULTS.md, "Labeling", has figures.

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
from tl.evaluation.metrics import accuracy_interval, cluster_ids, effective_size, wilson_interval

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
) -> Estimate | None:
    """Estimate the accuracy of the head that is fitted to all labeled images; features (n, D), class ids (n,).

    `is_random` (n,): which images were drawn at random and labeled without a suggestion. Each of them is predicted by
    a head that is fitted to all labeled images but a fifth of the random ones, its own among them. None with fewer than
    10 random images, or if they leave fewer than two classes. Deterministic for a seed. `groups` (n,), '' for none:
    images of one group are held out together and count for less, as in `accuracy_interval`.

    Source: Stone 1974 for cross-validation; only random images may be held out, because chosen ones are harder.
    """
    rows = np.flatnonzero(is_random)
    if len(rows) < MIN_RANDOM or len(class_names) < 2:
        return None
    own_groups = [groups[i] for i in rows.tolist()] if groups else []
    fold = _cut_folds(ids[rows], own_groups, seed)
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
    share, count = float(is_right.mean()), len(rows)
    low, high = accuracy_interval(is_right, own_groups)
    independent = effective_size(is_right, own_groups)
    more = math.ceil(count / independent * more_to_halve(share * independent, independent))
    return Estimate(share, low, high, count, more)


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
