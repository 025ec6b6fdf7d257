from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax as scipy_softmax

from tl.evaluation.calibration import conformal_of, fit_temperature, fit_useful_temperature, softmax
from tl.runtime.ensembles.selective import conformal_limit, prediction_sets
from tl.trainer.heads.solvers import cross_validate

# Golden-section search: the location of a minimum is accurate to about the square root of the accuracy of its value.
PLACE = 1e-3


def make_case(
    seed: int, count: int, classes: int, temperature: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits times `temperature`, and classes sampled from exactly the probabilities of the original logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(count, classes))
    drawn = (scipy_softmax(logits, axis=1).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return logits * temperature, np.minimum(drawn, classes - 1)


def grid_search(logits: NDArray[np.floating], true_ids: NDArray[np.int64]) -> float:
    """The temperature with minimal cross-entropy in torch: a grid over the whole range, then finer ones."""
    count, classes = logits.shape
    targets = torch.full((count, classes), 1 / (count + 2) / (classes - 1), dtype=torch.float64)
    for i, true_id in enumerate(true_ids.tolist()):
        targets[i, true_id] = (count + 1) / (count + 2)
    values = torch.from_numpy(logits.astype(np.float64))
    low, high = np.log(1e-3), np.log(1e3)
    for _ in range(4):
        grid = np.linspace(low, high, 40)
        losses = [float(torch.nn.functional.cross_entropy(values / t, targets)) for t in np.exp(grid)]
        best = int(np.argmin(losses))
        low, high = grid[max(0, best - 1)], grid[min(39, best + 1)]
    return float(np.exp((low + high) / 2))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("count", "classes"), [(1, 3), (4, 2), (40, 2), (60, 7)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_fit_temperature__equals_a_grid_search(seed: int, count: int, classes: int, scale: float) -> None:
    logits, true_ids = make_case(seed, count, classes, scale)
    found = fit_temperature(logits, true_ids)
    assert type(found) is float
    assert found == pytest.approx(grid_search(logits, true_ids), rel=PLACE)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_fit_temperature__recovers_a_known_one(temperature: float, classes: int) -> None:
    logits, true_ids = make_case(0, 20_000, classes, temperature)
    # The estimate's standard error is about 1 / sqrt(20000), under 1% for these logits; the tolerance is three of them.
    assert fit_temperature(logits, true_ids) == pytest.approx(temperature, rel=0.03)


def test_fit_temperature__calibrates_probabilities() -> None:
    logits, true_ids = make_case(1, 5000, 4, 6.0)
    probabilities = softmax(logits, fit_temperature(logits, true_ids))
    accuracy = (probabilities.argmax(axis=1) == true_ids).mean()
    # At the optimum, mean confidence equals accuracy; 5000 images leave a sampling error of about 0.7%.
    assert probabilities.max(axis=1).mean() == pytest.approx(accuracy, abs=0.02)
    assert softmax(logits).max(axis=1).mean() > accuracy + 0.1


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("margin", [0.05, 1.0, 40.0])
def test_fit_temperature__all_right_is_not_certain(count: int, classes: int, margin: float) -> None:
    # All images have the same margin, so the optimum is known: the target itself.
    true_ids = np.arange(count) % classes
    logits = margin * np.eye(classes)[true_ids]
    confidence = softmax(logits, fit_temperature(logits, true_ids)).max(axis=1)
    assert confidence == pytest.approx((count + 1) / (count + 2), rel=PLACE)


def test_fit_temperature__all_wrong_gives_uniform_probabilities() -> None:
    true_ids = np.arange(20) % 3
    logits = 8 * np.eye(3)[(true_ids + 1) % 3]
    probabilities = softmax(logits, fit_temperature(logits, true_ids))
    assert probabilities == pytest.approx(np.full((20, 3), 1 / 3), abs=0.01)  # the range ends at 1000: 8 / 1000 remains


def test_fit_temperature__uninformative_logits_give_a_finite_temperature() -> None:
    assert 1e-3 <= fit_temperature(np.zeros((5, 3)), np.array([0, 1, 2, 0, 1])) <= 1e3


def test_fit_temperature__offsets_of_a_row_and_the_order_of_rows_do_not_count() -> None:
    logits, true_ids = make_case(2, 80, 3)
    wanted = fit_temperature(logits, true_ids)
    offsets = np.random.default_rng(0).normal(scale=100, size=(80, 1))
    assert fit_temperature(logits + offsets, true_ids) == pytest.approx(wanted, rel=PLACE)
    assert fit_temperature(logits[::-1], true_ids[::-1]) == pytest.approx(wanted, rel=PLACE)
    assert fit_temperature(logits.astype(np.float32), true_ids) == pytest.approx(wanted, rel=PLACE)


def test_fit_temperature__leaves_its_arguments_as_they_are() -> None:
    logits, true_ids = make_case(0, 10, 3)
    before = logits.copy(), true_ids.copy()
    fit_temperature(logits, true_ids)
    softmax(logits, 2.0)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(true_ids, before[1])


@pytest.mark.parametrize("count", [20, 60, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_fit_useful_temperature__leaves_calibrated_logits(seed: int, count: int) -> None:
    assert fit_useful_temperature(*make_case(seed, count, 4)) == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.1, 5.0])
def test_fit_useful_temperature__is_the_fitted_one_where_it_helps(seed: int, temperature: float) -> None:
    logits, true_ids = make_case(seed, 60, 3, temperature)
    found = fit_useful_temperature(logits, true_ids)
    assert found == fit_temperature(logits, true_ids)
    assert (found > 1) == (temperature > 1)


@pytest.mark.parametrize(("count", "is_fitted"), [(19, False), (20, True)])
def test_fit_useful_temperature__needs_twenty_images(count: int, is_fitted: bool) -> None:
    # Certain of every image, and wrong about every fourth.
    true_ids = np.arange(count) % 3
    decided = np.where(np.arange(count) % 4 == 0, (true_ids + 1) % 3, true_ids)
    found = fit_useful_temperature(20.0 * np.eye(3)[decided], true_ids)
    assert (found > 1) == is_fitted
    assert is_fitted or found == 1.0


def test_fit_useful_temperature__a_gain_within_the_error_is_not_used() -> None:
    # One certain mistake in thirty: the gain is that of a single image, and so is not above its standard error.
    true_ids = np.arange(30) % 3
    decided = true_ids.copy()
    decided[0] = 1
    logits = 6.0 * np.eye(3)[decided]
    assert fit_temperature(logits, true_ids) > 1
    assert fit_useful_temperature(logits, true_ids) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_softmax__equals_scipy(dtype: type, temperature: float) -> None:
    logits = np.random.default_rng(0).normal(scale=5, size=(50, 6)).astype(dtype)
    found = softmax(logits, temperature)
    assert found.dtype == np.float32
    wanted = scipy_softmax(logits.astype(np.float64) / temperature, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-38)  # float32, in which the smallest values underflow


def test_softmax__large_numbers_do_not_overflow() -> None:
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [1e30, 1e30, 0]])
    wanted = [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]
    np.testing.assert_allclose(softmax(logits, 1e-3), wanted, rtol=1e-7)  # float32


@pytest.mark.parametrize("temperature", [1e-3, 0.2, 1.0, 30.0, 1e3])
def test_softmax__never_changes_the_argmax(temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = np.concatenate([rng.normal(scale=scale, size=(300, 5)) for scale in (0.1, 3.0, 100.0)])
    logits[::7, 3] = logits[::7, 1]  # ties, which the first class wins
    probabilities = softmax(logits, temperature)
    decided = logits.argmax(axis=1)
    # No other class is ever higher; an equal one only where float32 cannot distinguish them.
    assert (probabilities[np.arange(900), decided] == probabilities.max(axis=1)).all()
    ranked = np.sort(logits, axis=1)
    clear = (ranked[:, -1] - ranked[:, -2]) / temperature > 1e-6
    assert clear.mean() > 0.85
    assert (probabilities.argmax(axis=1) == decided)[clear].all()


def test_conformal_of__sets_of_a_refitted_head_have_about_the_coverage() -> None:
    """Out-of-fold scores set the limit, and the head is then fitted to all images. This is approximate: cross-conformal
    prediction guarantees 1 - 2 alpha for a vote of the folds' heads (Barber et al. 2021, CV+).
    """
    from sklearn.model_selection import StratifiedKFold

    held = []
    for seed in range(30):
        random = np.random.default_rng(seed)
        ids = np.arange(1060) % 3
        points = random.normal(size=(1060, 20)) + 1.2 * np.eye(20)[ids]
        train, test = slice(0, 60), slice(60, None)
        folds = list(StratifiedKFold(5, shuffle=True, random_state=seed).split(points[train], ids[train]))
        found = cross_validate("logistic", (points[train], ids[train]), folds, (0.01, 0.1, 1.0), seed)
        limit = conformal_limit(conformal_of(softmax(found.held_out), ids[train], "out of fold").scores, 0.9)
        sets = prediction_sets(softmax(found.head.logits(points[test])), limit)
        held.append(sets[np.arange(1000), ids[test]].mean())
    # The mean of 30 draws of 60 images; a single draw varies by 4 points (the quantile of 60 scores).
    assert 0.88 < np.mean(held) < 0.96
