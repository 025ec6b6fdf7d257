from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from tests.annotation.features import make_clouds
from tl.annotation.learner import C, fit_head, stratified_folds
from tl.evaluation.metrics import expected_calibration_error
from tl.trainer.heads.solvers import feature_scale


@pytest.mark.parametrize(("classes", "count", "width"), [(2, 40, 32), (5, 60, 32), (3, 12, 200), (3, 300, 8)])
def test_fit_head__is_a_logistic_regression_of_balanced_classes(classes: int, count: int, width: int) -> None:
    features, ids = make_clouds(classes, count, width=width)
    ids[: count // 4] = 0  # one class is larger
    head = fit_head(features, ids, tuple("abcde"[:classes]))
    means = np.stack([features[ids == c].mean(axis=0, dtype=np.float64) for c in range(classes)])
    scale = feature_scale(features, "logistic")[1]
    scaled = (features - means.mean(axis=0)) / scale
    model = LogisticRegression(C=C, tol=1e-6, max_iter=1000, fit_intercept=False, class_weight="balanced")
    logits = model.fit(scaled, ids).decision_function(scaled)
    wanted = np.stack([np.zeros(count), logits], axis=1) if classes == 2 else logits
    # Both solvers stop within their tolerances, of which ours is 1e-3.
    np.testing.assert_allclose(head.head.logits(features), wanted, atol=0.05)
    probabilities = head.probabilities(features)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, softmax(head.head.logits(features) / head.temperature, axis=1), atol=1e-4)
    assert (head.class_names, head.c) == (tuple("abcde"[:classes]), C)


def test_fit_head__one_image_of_each_class() -> None:
    features = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32)
    head = fit_head(features, np.array([2, 0, 1]), ("a", "b", "c"))
    assert head.probabilities(features).argmax(axis=1).tolist() == [2, 0, 1]
    assert head.temperature == 1.0
    assert np.isfinite(head.head.weight).all()


def test_fit_head__a_class_with_one_image_among_larger_ones() -> None:
    features, ids = make_clouds(3, 40)
    kept = (ids != 2) | (np.arange(40) == 2)
    head = fit_head(features[kept], ids[kept], ("a", "b", "c"))
    assert head.probabilities(features[2:3]).argmax() == 2
    assert 0 < head.temperature < 1e3


def test_fit_head__equal_features() -> None:
    head = fit_head(np.ones((20, 4), np.float32), np.arange(20) % 2, ("a", "b"))
    np.testing.assert_allclose(head.probabilities(np.ones((1, 4), np.float32)), [[0.5, 0.5]], atol=1e-6)


def test_fit_head__learns_nothing_from_uneven_classes_alone() -> None:
    """Ten images of one class and two of the other, mirrored: in the middle between them, neither is more likely."""
    near = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32) * 1e-3 + 1
    features = np.concatenate([near, -near[:1], -near[:1]])
    features[:10] = near[:1]
    head = fit_head(features, np.array([0] * 10 + [1] * 2), ("a", "b"))
    np.testing.assert_allclose(head.probabilities(np.zeros((1, 6), np.float32)), [[0.5, 0.5]], atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_head__is_deterministic(seed: int) -> None:
    features, ids = make_clouds(4, 50)
    first, second = (fit_head(features, ids, tuple("abcd"), seed=seed) for _ in range(2))
    np.testing.assert_array_equal(first.probabilities(features), second.probabilities(features))


def test_fit_head__confidence_is_calibrated() -> None:
    features, ids = make_clouds(5, 2060, width=64, apart=0.35)
    head = fit_head(features[:60], ids[:60], tuple("abcde"))
    probabilities, truth = head.probabilities(features[60:]), ids[60:]
    plain = softmax(head.head.logits(features[60:]), axis=1)
    is_right = probabilities.argmax(axis=1) == truth
    assert is_right.mean() > 0.6
    error, plain_error = (
        expected_calibration_error(is_right, p.max(axis=1).astype(np.float32)) for p in (probabilities, plain)
    )
    assert error < 0.1
    assert error < plain_error


def test_fit_head__c_is_used() -> None:
    features, ids = make_clouds(3, 30)
    weak, strong = (fit_head(features, ids, tuple("abc"), c=c) for c in (1.0, 1e-4))
    assert (weak.c, strong.c) == (1.0, 1e-4)
    assert np.abs(weak.head.weight).sum() > 5 * np.abs(strong.head.weight).sum()


@pytest.mark.parametrize("ids", [[0, 0, 0], [0, 1, 0], [0, 1, 3]])
def test_fit_head__requires_each_class(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="two or more classes"):
        fit_head(np.eye(3, dtype=np.float32), np.array(ids), ("a", "b", "c") if max(ids) else ("a",))


@pytest.mark.alone
def test_fit_head__is_fast() -> None:
    features, ids = make_clouds(20, 2000, width=1280, apart=0.3)
    fit_head(features[:100], ids[:100], tuple(map(str, range(20))))  # imports scikit-learn
    began = time.perf_counter()
    fit_head(features, ids, tuple(map(str, range(20))))
    assert time.perf_counter() - began < 10  # 0.3 s on one core; a machine under load is slower


def test_stratified_folds__spread_each_class() -> None:
    ids = np.array([0] * 10 + [1] * 5 + [2] * 3)
    fold = stratified_folds(ids, 5, 0)
    counts = np.array([np.bincount(fold[ids == c], minlength=5) for c in range(3)])
    assert counts[0].tolist() == [2] * 5
    assert counts[1].tolist() == [1] * 5
    assert sorted(counts[2].tolist()) == [0, 0, 1, 1, 1]
    assert (stratified_folds(ids, 5, 1) != fold).any()
