from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tl.runtime.ensembles.voting import VOTINGS, Voting, agreement, entropy, margin, mutual_information, vote

# Sums and quotients of a few float32 values in [0, 1] have errors of a few units of 6e-8.
ATOL = 1e-6


def members(*rows: list[float]) -> NDArray[np.float32]:
    """One image, with one row per member. float32 (1, M, C)."""
    return np.array([rows], np.float32)


@st.composite
def batches(draw: st.DrawFn, min_members: int = 1) -> NDArray[np.float32]:
    """Probabilities in twentieths, so that ties are common. float32 (N, M, C)."""
    n, m, c = draw(st.integers(1, 4)), draw(st.integers(min_members, 5)), draw(st.integers(1, 5))
    counts = draw(st.lists(st.lists(st.integers(0, 4), min_size=c, max_size=c), min_size=n * m, max_size=n * m))
    array = np.array(counts, np.float32).reshape(n, m, c)
    array[array.sum(axis=2) == 0] = 1
    return array / array.sum(axis=2, keepdims=True)


def vote_by_hand(one: NDArray[np.float32], voting: Voting, weights: list[float]) -> tuple[list[np.float32], int]:
    """The rule in plain loops over one image (M, C), in float32 and in member order."""
    num_members, num_classes = one.shape
    w = [np.float32(value) for value in weights]
    sums, shares = [np.float32(0)] * num_classes, [np.float32(0)] * num_classes
    peaks = [max(w[m] * one[m, c] for m in range(num_members)) for c in range(num_classes)]
    for m in range(num_members):
        shares[max(range(num_classes), key=lambda c, m=m: (one[m, c], -c))] += w[m]
        for c in range(num_classes):
            sums[c] += w[m] * one[m, c]
    scores = {"soft": sums, "hard": shares, "max": peaks}[voting]
    label = max(range(num_classes), key=lambda c: (scores[c], sums[c], -c))
    return [score / sum(scores) for score in scores], label


# --- numbers by hand


def test_vote__soft_is_the_weighted_mean() -> None:
    decided = vote(members([0.7, 0.2, 0.1], [0.2, 0.6, 0.2]), "soft", [3, 1])
    np.testing.assert_allclose(decided.probabilities, [[0.575, 0.3, 0.125]], atol=ATOL)
    assert decided.label_ids.tolist() == [0]
    assert decided.probabilities.dtype == np.float32
    assert decided.label_ids.dtype == np.int64


def test_vote__hard_is_the_weighted_share() -> None:
    three = members([0.9, 0.1, 0], [0.4, 0.6, 0], [0.4, 0.6, 0])
    decided = vote(three, "hard")
    np.testing.assert_allclose(decided.probabilities, [[1 / 3, 2 / 3, 0]], atol=ATOL)
    assert decided.label_ids.tolist() == [1]
    assert vote(three, "hard", [3, 1, 1]).label_ids.tolist() == [0]


def test_vote__max_is_the_single_highest_probability() -> None:
    three = members([0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.8, 0])
    decided = vote(three, "max")
    np.testing.assert_allclose(decided.probabilities, [[0.9 / 1.7, 0.8 / 1.7, 0]], atol=ATOL)
    assert decided.label_ids.tolist() == [0]
    assert vote(three, "max", [1, 1, 2]).label_ids.tolist() == [1]


def test_vote__hard_tie_goes_to_the_larger_sum() -> None:
    assert vote(members([0.6, 0.4], [0.1, 0.9]), "hard").label_ids.tolist() == [1]


def test_vote__hard_tie_of_the_most_voted_classes_alone() -> None:
    # Class 2 has the largest sum (0.45 + 0.45 + 0.45 + 0.4) but no vote.
    four = members([0.55, 0, 0.45], [0, 0.55, 0.45], [0.55, 0, 0.45], [0, 0.6, 0.4])
    assert vote(four, "hard").label_ids.tolist() == [1]


def test_vote__hard_tie_of_weights_in_float32() -> None:
    # In float32, 0.1 + 0.2 equals 0.3; in float64 it is larger. The rule uses float32.
    three = members([1, 0], [1, 0], [0, 1])
    decided = vote(three, "hard", [0.1, 0.2, 0.3])
    assert decided.probabilities[0, 0] == decided.probabilities[0, 1]
    assert decided.label_ids.tolist() == [0]


def test_vote__max_tie_goes_to_the_larger_sum() -> None:
    assert vote(members([0.75, 0.25], [0.25, 0.75], [0.375, 0.625]), "max").label_ids.tolist() == [1]


@pytest.mark.parametrize("voting", VOTINGS)
def test_vote__full_tie_goes_to_the_first_class(voting: Voting) -> None:
    assert vote(members([0.0, 0.75, 0.25], [0.0, 0.25, 0.75]), voting).label_ids.tolist() == [1]


def test_vote__soft_by_default() -> None:
    two = members([0.9, 0.1], [0.2, 0.8])
    np.testing.assert_array_equal(vote(two).probabilities, vote(two, "soft", [1, 1]).probabilities)


# --- properties


@pytest.mark.parametrize("voting", VOTINGS)
@given(data=st.data(), batch=batches())
def test_vote__equals_the_rule_by_hand(voting: Voting, data: st.DataObject, batch: NDArray[np.float32]) -> None:
    size = batch.shape[1]
    assume(size > 1)  # a single member decides by its own probabilities
    weights = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.3, 1.0, 2.0]), min_size=size, max_size=size))
    decided = vote(batch, voting, weights)
    for n, one in enumerate(batch):
        probabilities, label = vote_by_hand(one, voting, weights)
        np.testing.assert_allclose(decided.probabilities[n], probabilities, atol=ATOL)
        assert decided.label_ids[n] == label


@pytest.mark.parametrize("voting", VOTINGS)
@given(batch=batches())
def test_vote__rows_sum_to_one(voting: Voting, batch: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(vote(batch, voting).probabilities.sum(axis=1), 1, atol=ATOL)


@pytest.mark.parametrize("voting", VOTINGS)
@given(batch=batches())
def test_vote__one_member_decides_alone(voting: Voting, batch: NDArray[np.float32]) -> None:
    alone = batch[:, :1]
    decided = vote(alone, voting)
    np.testing.assert_array_equal(decided.label_ids, alone[:, 0].argmax(axis=1))
    np.testing.assert_array_equal(decided.probabilities, alone[:, 0])


@pytest.mark.parametrize("voting", ["soft", "hard"])  # repeating a member changes no maximum
@given(batch=batches(min_members=2))
def test_vote__whole_weights_equal_repeated_members(voting: Voting, batch: NDArray[np.float32]) -> None:
    repeated = np.concatenate([batch[:, :1], batch], axis=1)
    weighted = vote(batch, voting, [2.0, *[1.0] * (batch.shape[1] - 1)])
    np.testing.assert_allclose(weighted.probabilities, vote(repeated, voting).probabilities, atol=ATOL)


@pytest.mark.parametrize("voting", VOTINGS)
@given(batch=batches(), factor=st.sampled_from([0.25, 2.0, 64.0]))
def test_vote__only_the_ratio_of_weights_counts(voting: Voting, batch: NDArray[np.float32], factor: float) -> None:
    weights = [1.0 + m for m in range(batch.shape[1])]
    first, second = vote(batch, voting, weights), vote(batch, voting, [factor * w for w in weights])
    np.testing.assert_array_equal(first.label_ids, second.label_ids)  # powers of two scale floats exactly
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


@pytest.mark.parametrize("voting", VOTINGS)
@given(batch=batches())
def test_vote__batch_equals_single_images(voting: Voting, batch: NDArray[np.float32]) -> None:
    whole = vote(batch, voting)
    for n in range(len(batch)):
        one = vote(batch[n : n + 1], voting)
        np.testing.assert_allclose(one.probabilities[0], whole.probabilities[n], atol=ATOL)
        assert one.label_ids[0] == whole.label_ids[n]


# --- wrong arguments


@pytest.mark.parametrize(
    "array", [np.ones((2, 3), np.float32), np.ones((1, 2, 3)), np.ones((1, 0, 3), np.float32)], ids=str
)
def test_vote__wrong_members(array: Any) -> None:
    with pytest.raises(ValueError, match=r"float32 \(N, M, C\)"):
        vote(array)


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [1, 0], [1, -1], [1, math.nan], [1, math.inf], [[1], [1]]])
def test_vote__wrong_weights(weights: Any) -> None:
    with pytest.raises(ValueError, match="2 positive numbers"):
        vote(members([1, 0], [0, 1]), "soft", weights)


def test_vote__unknown_rule() -> None:
    with pytest.raises(ValueError, match="expected one of soft, hard, max"):
        vote(members([1, 0]), "mean")  # type: ignore[arg-type]


def test_vote__empty_batch() -> None:
    decided = vote(np.zeros((0, 2, 3), np.float32))
    assert decided.probabilities.shape == (0, 3)
    assert decided.label_ids.shape == (0,)


# --- agreement and entropy


def test_agreement__share_of_members() -> None:
    shares = agreement(np.array([[0, 0, 1], [2, 2, 2]]), np.array([0, 1]))
    np.testing.assert_array_equal(shares, np.array([2 / 3, 0], np.float32))


def test_entropy__in_nats() -> None:
    rows = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], np.float32)
    expected = np.array([0, math.log(4), math.log(2)], np.float32)  # powers of two: exact up to the last rounding
    np.testing.assert_array_equal(entropy(rows), expected)


def test_mutual_information__by_hand() -> None:
    same = np.array([[[0.5, 0.5], [0.5, 0.5]]], np.float32)
    apart = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    assert mutual_information(same).tolist() == [0.0]  # uncertain, but in agreement
    np.testing.assert_allclose(mutual_information(apart), np.log(2), rtol=1e-6)
    weighted = mutual_information(apart, [3, 1])
    np.testing.assert_allclose(weighted, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), rtol=1e-6)


def test_margin__of_the_first_two() -> None:
    assert margin(np.array([[0.5, 0.125, 0.375], [0.0, 1.0, 0.0]], np.float32)).tolist() == [0.125, 1.0]
    assert margin(np.ones((2, 1), np.float32)).tolist() == [1.0, 1.0]
