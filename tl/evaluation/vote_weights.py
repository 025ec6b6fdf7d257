"""Fit the weights of a soft vote to labeled images, or select its members.

Works on arrays of the members' probabilities, independently of models and files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
# Weight of a member that was given none: votes need positive weights.
LEAST_WEIGHT = 1e-4
_MOST_STEPS, _CHANGE = 1000, 1e-7
_SMALLEST = 1e-12

Fit = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float64]]


def fit_weights(members: NDArray[np.float32], true_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fit weights (M,) of a soft vote, summing to 1, that maximize the likelihood of the true classes.

    `members` (N, M, C), `true_ids` (N,). The problem is convex and is solved by expectation maximization. Source:
    stacked density estimation, Smyth & Wolpert 1999.
    """
    said = _of_truth(members, true_ids)
    weights = np.full(said.shape[1], 1 / said.shape[1])
    for _ in range(_MOST_STEPS):
        shares = said * weights
        updated = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        is_settled = np.abs(updated - weights).max() < _CHANGE
        weights = updated
        if is_settled:
            break
    weights = np.maximum(weights, LEAST_WEIGHT)
    return np.asarray(weights / weights.sum())


def select_members(members: NDArray[np.float32], true_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Select members greedily. Returns weights (M,) summing to 1, proportional to how often each was added; 0 if never.

    Repeatedly adds the member that most increases the likelihood of the true classes together with those added before,
    and returns the best ensemble found. Source: ensemble selection, Caruana et al. 2004.
    """
    said = _of_truth(members, true_ids)
    counts = np.zeros(said.shape[1])
    best, best_loss = counts, np.inf
    for _ in range(3 * said.shape[1]):
        total = said @ counts
        losses = -np.log((total[:, None] + said) / (counts.sum() + 1)).mean(axis=0)
        counts[losses.argmin()] += 1
        if losses.min() < best_loss - _CHANGE:
            best, best_loss = counts.copy(), losses.min()
    return np.asarray(best / best.sum())


def held_out_votes(
    members: NDArray[np.float32], true_ids: NDArray[np.int64], fit: Fit, seed: int = 0
) -> NDArray[np.float32]:
    """Compute soft votes (N, C), each with weights fitted without the image's own fold."""
    folds = _folds(true_ids, seed)
    voted = np.empty((len(true_ids), members.shape[2]), np.float32)
    for fold in range(FOLDS):
        inside = folds == fold
        if inside.any():
            weights = fit(members[~inside], true_ids[~inside])
            voted[inside] = np.einsum("nmc,m->nc", members[inside], weights)
    return voted


def log_loss(probabilities: NDArray[np.float32], true_ids: NDArray[np.int64]) -> float:
    """Mean negative log-probability of the true class, for (N, C) and (N,)."""
    own = np.take_along_axis(probabilities, true_ids[:, None], axis=1).astype(np.float64)
    return float(-np.log(np.maximum(own, _SMALLEST)).mean())


def _of_truth(members: NDArray[np.float32], true_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each member's probability of the true class, (N, M)."""
    own = np.take_along_axis(members, true_ids[:, None, None], axis=2)[:, :, 0]
    return np.maximum(own.astype(np.float64), _SMALLEST)


def _folds(true_ids: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Assign a fold to each image, stratified by class."""
    random = np.random.default_rng(seed)
    folds = np.empty(len(true_ids), np.int64)
    dealt = 0
    for class_id in np.unique(true_ids):
        places = random.permutation(np.flatnonzero(true_ids == class_id))
        folds[places] = (dealt + np.arange(len(places))) % FOLDS
        dealt += len(places)
    return folds
