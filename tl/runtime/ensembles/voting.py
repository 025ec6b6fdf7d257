"""Combine the probabilities of several members into one decision. Pure numpy; same arithmetic as merged graphs.

Sums run in float32 in member order, so that all implementations break ties alike. docs/reference/glossary.md defines
the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Voting = Literal["soft", "hard", "max"]
VOTINGS: tuple[Voting, ...] = ("soft", "hard", "max")


@dataclass(frozen=True)
class Vote:
    """Decisions for a batch: `probabilities` float32 (N, C), rows sum to 1; `label_ids` int64 (N,), the labels."""

    probabilities: NDArray[np.float32]
    label_ids: NDArray[np.int64]


def vote(
    member_probabilities: NDArray[np.float32], voting: Voting = "soft", weights: Sequence[float] | None = None
) -> Vote:
    """Combine the members' probabilities.

    `member_probabilities`: float32 (N, M, C) in [0, 1]. `weights`: M positive numbers, None for equal weights.
    soft: weighted mean. hard: weighted share of the members' labels. max: elementwise maximum of weight x probability,
    renormalized. The label is, among the classes with the highest score, the one with the largest weighted sum of
    probabilities, then the first in class order. With a single member, its probabilities are returned unchanged.
    Raises ValueError for invalid shapes or weights.
    """
    members = _check_members(member_probabilities)
    member_weights = _check_weights(weights, members.shape[1])
    if voting not in VOTINGS:
        raise ValueError(f"unknown voting {voting!r}: expected one of {', '.join(VOTINGS)}")
    if members.shape[1] == 1:
        alone = members[:, 0]
        return Vote(alone, alone.argmax(axis=1).astype(np.int64, copy=False))
    weighted_sum = _sum_members([w * members[:, m] for m, w in enumerate(member_weights)])
    if voting == "soft":
        scores = weighted_sum
    elif voting == "hard":
        scores = _sum_members([w * _one_hot(members[:, m]) for m, w in enumerate(member_weights)])
    else:
        scores = np.max(members * member_weights[None, :, None], axis=1)
    probabilities = scores / scores.sum(axis=1, keepdims=True, dtype=np.float32)
    winners = scores == scores.max(axis=1, keepdims=True)
    label_ids = np.where(winners, weighted_sum, np.float32(-1)).argmax(axis=1)
    return Vote(probabilities.astype(np.float32, copy=False), label_ids.astype(np.int64, copy=False))


def restrict(decided: Vote, is_possible: NDArray[np.bool_]) -> Vote:
    """Leave only the classes that can occur, bool (C,): renormalize, and keep the label or take the most probable one.

    Where none of them has any probability, all are 0.
    """
    kept = decided.probabilities * is_possible
    total = kept.sum(axis=1, keepdims=True, dtype=np.float32)
    probabilities = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
    best = np.where(is_possible, probabilities, np.float32(-1)).argmax(axis=1)
    return Vote(probabilities, np.where(is_possible[decided.label_ids], decided.label_ids, best))


def soften(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Raise probabilities (N, C) to the power 1 / temperature and renormalize: softmax(log(p) / temperature)."""
    if temperature == 1:
        return probabilities
    softened = probabilities ** np.float32(1 / temperature)
    return np.asarray(softened / softened.sum(axis=1, keepdims=True, dtype=np.float32), np.float32)


def agreement(member_label_ids: NDArray[np.int64], label_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the share of members that voted for the decided label. (N, M), (N,) -> float32 (N,) in [0, 1]."""
    return np.asarray((member_label_ids == label_ids[:, None]).mean(axis=1), np.float32)


def entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Shannon entropy of each row in nats. (N, C) -> float32 (N,) in [0, log C]."""
    p = probabilities.astype(np.float64)
    return np.asarray(0.0 - (p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1), np.float32)  # never -0.0


def mutual_information(
    member_probabilities: NDArray[np.float32], weights: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Return the members' disagreement in nats, (N,): entropy of their weighted mean minus their mean entropy.

    0 if all members agree, however uncertain they are. Source: Depeweg et al. 2018; Smith & Gal 2018.
    """
    members = _check_members(member_probabilities)
    shares = _check_weights(weights, members.shape[1]).astype(np.float64)
    shares /= shares.sum()
    mean = np.einsum("nmc,m->nc", members.astype(np.float64), shares)
    each = np.stack([entropy(members[:, m]) for m in range(members.shape[1])], axis=1)
    found = entropy(mean.astype(np.float32)) - each @ shares
    return np.asarray(np.maximum(found, 0.0), np.float32)  # rounding can make it negative


def margin(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference between the two highest probabilities, (N, C) -> (N,); 1 if there is only one class."""
    if probabilities.shape[1] == 1:
        return np.ones(len(probabilities), np.float32)
    ordered = np.sort(probabilities, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2], np.float32)


def _sum_members(terms: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    total: NDArray[np.float32] = terms[0].astype(np.float32)
    for term in terms[1:]:
        total = total + term
    return total


def _one_hot(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    identity: NDArray[np.float32] = np.eye(probabilities.shape[1], dtype=np.float32)
    labels: NDArray[np.float32] = identity[probabilities.argmax(axis=1)]
    return labels


def _check_members(member_probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    members = np.asarray(member_probabilities)
    if members.ndim != 3 or members.dtype != np.float32 or 0 in members.shape[1:]:
        raise ValueError(f"member_probabilities must be float32 (N, M, C), got {members.dtype} {members.shape}")
    return members


def _check_weights(weights: Sequence[float] | None, num_members: int) -> NDArray[np.float32]:
    array = np.ones(num_members, np.float32) if weights is None else np.asarray(weights, np.float32)
    if array.shape != (num_members,) or not np.isfinite(array).all() or not (array > 0).all():
        raise ValueError(f"weights must be {num_members} positive numbers, got {weights}")
    return array
