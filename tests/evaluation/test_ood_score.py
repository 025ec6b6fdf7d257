from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tl.evaluation.calibration import Known, fit_unknown
from tl.exporter.export_source import UnknownScore


def make_clouds(count: int, seed: int, *, shift: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings (count, 12) of three classes, each elongated in one direction; `shift` moves them in another."""
    random = np.random.default_rng(seed)
    ids = np.arange(count) % 3
    points = random.normal(size=(count, 12)) * np.array([6, *[1] * 11]) + 10 * np.eye(12)[ids + 1] + 20 * np.eye(12)[11]
    return (points + shift * np.eye(12)[7]).astype(np.float32), ids


def fitted(count: int = 300) -> Known:
    embeddings, ids = make_clouds(count, 0)
    return Known(embeddings, ids, make_clouds(200, 1)[0])


def test_fit_unknown__as_mahalanobis_distance_by_scipy() -> None:
    known = fitted()
    found = fit_unknown(known, 3, 0.05)
    assert found is not None
    score, facts = found
    assert (facts.images, facts.dimensions, facts.held_out) == (300, 12, 200)
    from scipy.spatial.distance import mahalanobis
    from sklearn.covariance import LedoitWolf

    unit = known.embeddings / np.linalg.norm(known.embeddings, axis=1, keepdims=True)
    means = np.stack([unit[known.class_ids == c].mean(axis=0) for c in range(3)])
    # All 12 directions are kept. Neither rotation nor shrinkage toward a sphere depends on the axes.
    covariance = LedoitWolf(assume_centered=True).fit(unit - means[known.class_ids]).covariance_
    precision = np.linalg.inv(covariance + 3e-5 * np.eye(12))
    new = make_clouds(20, 2, shift=5)[0]
    wanted = [
        min(mahalanobis(row, mean, precision) for mean in means) / np.sqrt(12)
        for row in new / np.linalg.norm(new, axis=1, keepdims=True)
    ]
    np.testing.assert_allclose(score.scores(new), wanted, rtol=2e-4)  # float32 against float64


def test_fit_unknown__detects_other_images_at_the_given_false_alarm_rate() -> None:
    score, facts = fit_unknown(fitted(), 3, 0.05) or pytest.fail("not fitted")
    new, strange = make_clouds(1000, 3)[0], make_clouds(1000, 4, shift=9)[0]
    scores = score.scores(np.concatenate([new, strange]))
    assert roc_auc_score([0] * 1000 + [1] * 1000, scores) > 0.95
    assert facts.false_alarm <= 0.05
    # The target is 5%; 200 held-out and 1,000 new images estimate it to a few points.
    assert 0.01 < (scores[:1000] > facts.limit).mean() < 0.1


def test_fit_unknown__embeddings_that_hardly_differ_are_not_measured_by_their_rounding() -> None:
    random = np.random.default_rng(0)
    embeddings = (np.ones((60, 12)) + 1e-7 * random.normal(size=(60, 12))).astype(np.float32)
    score, _ = fit_unknown(Known(embeddings, np.arange(60) % 3, embeddings), 3, 0.05) or pytest.fail("not fitted")
    assert score.scores(embeddings).max() < 1e-4


def test_fit_unknown__length_does_not_count() -> None:
    score, _ = fit_unknown(fitted(), 3, 0.05) or pytest.fail("not fitted")
    new = make_clouds(20, 5)[0]
    np.testing.assert_allclose(score.scores(new), score.scores(3 * new), rtol=1e-5)  # float32


def test_ood_score__the_module_computes_the_same() -> None:
    fit, _ = fit_unknown(fitted(), 3, 0.05) or pytest.fail("not fitted")
    new = np.concatenate([make_clouds(20, 5)[0], np.zeros((1, 12), np.float32)])
    with torch.no_grad():
        found = UnknownScore(fit)(torch.from_numpy(new)).numpy()
    np.testing.assert_allclose(found, fit.scores(new), rtol=1e-5)  # float32


def test_fit_unknown__returns_none_without_enough_data() -> None:
    known = fitted()
    assert fit_unknown(known, 4, 0.05) is None  # a class without images
    assert fit_unknown(Known(known.embeddings, known.class_ids, known.held_out[:0]), 3, 0.05) is None
    wide = np.zeros((6, 9000), np.float32)
    assert fit_unknown(Known(wide, np.arange(6) % 3, wide), 3, 0.05) is None


def test_fit_unknown__few_held_out_images_give_no_false_alarms() -> None:
    known = fitted()
    few = Known(known.embeddings, known.class_ids, known.held_out[:5])
    _, facts = fit_unknown(few, 3, 0.05) or pytest.fail("not fitted")
    assert facts.false_alarm == 0
