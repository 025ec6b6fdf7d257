from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from tl.evaluation.vote_weights import FOLDS, LEAST_WEIGHT, fit_weights, held_out_votes, log_loss, select_members


def make_members(sharpness: tuple[float, ...], count: int = 400, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Members (N, M, 3) that are more accurate the larger their `sharpness`, with independent errors."""
    random = np.random.default_rng(seed)
    truth = random.integers(3, size=count)
    logits = random.normal(size=(count, len(sharpness), 3))
    logits += np.eye(3)[truth][:, None] * np.array(sharpness)[:, None]
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(axis=2, keepdims=True)).astype(np.float32), truth


def test_fit_weights__as_scipy_finds_them() -> None:
    members, truth = make_members((2.0, 1.0, 0.5))
    own = np.take_along_axis(members, truth[:, None, None], axis=2)[:, :, 0].astype(float)

    def loss(raw: NDArray) -> float:
        weights = np.exp(raw) / np.exp(raw).sum()
        return float(-np.log(own @ weights).mean())

    best = minimize(loss, np.zeros(3), method="BFGS").x
    wanted = np.exp(best) / np.exp(best).sum()
    # The optimum is flat; both stop within their own tolerance of it.
    np.testing.assert_allclose(fit_weights(members, truth), wanted, atol=2e-3)


def test_fit_weights__uninformative_member_gets_little_weight() -> None:
    members, truth = make_members((4.0, -3.0))
    weights = fit_weights(members, truth)
    assert weights.sum() == pytest.approx(1)
    assert weights[1] == pytest.approx(LEAST_WEIGHT, rel=0.01)


def test_select_members__leaves_out_a_harmful_member() -> None:
    members, truth = make_members((3.0, 2.5, -3.0))
    weights = select_members(members, truth)
    assert weights[2] == 0
    assert weights[0] > 0
    assert weights.sum() == pytest.approx(1)
    alone = log_loss(members[:, 0], truth)
    assert log_loss(np.einsum("nmc,m->nc", members, weights), truth) <= alone


def test_select_members__one_member_is_that_member() -> None:
    members, truth = make_members((1.0,))
    assert select_members(members, truth).tolist() == [1.0]


def test_held_out_votes__images_are_scored_with_weights_fitted_without_them() -> None:
    members, truth = make_members((2.0, 1.0), count=53)
    seen: list[set[bytes]] = []

    def fit(part: NDArray, ids: NDArray) -> NDArray[np.float64]:
        seen.append({row.tobytes() for row in part})
        return np.array([0.5, 0.5])

    votes = held_out_votes(members, truth, fit)
    np.testing.assert_allclose(votes, members.mean(axis=1), atol=1e-7)
    assert len(seen) == FOLDS
    for row in members:
        assert sum(row.tobytes() in part for part in seen) == FOLDS - 1


def test_held_out_votes__many_random_members_gain_nothing() -> None:
    # Thirty uninformative members: those selected on 60 images score better on these images than on others.
    members, truth = make_members((0.0,) * 30, count=60)
    chosen = np.einsum("nmc,m->nc", members, select_members(members, truth))
    assert log_loss(chosen, truth) < log_loss(held_out_votes(members, truth, select_members), truth)
