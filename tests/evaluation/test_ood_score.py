from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score

from tl.evaluation.ood import Known, OodFit, fit_ood, measure_ood
from tl.exporter.export_source import OodScore
from tl.runtime.model_file.contract import OodFacts


def make_clouds(count: int, seed: int, *, shift: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings (count, 12) of three classes, each elongated in one direction; `shift` moves them in another."""
    random = np.random.default_rng(seed)
    ids = np.arange(count) % 3
    points = random.normal(size=(count, 12)) * np.array([6, *[1] * 11]) + 10 * np.eye(12)[ids + 1] + 20 * np.eye(12)[11]
    return (points + shift * np.eye(12)[7]).astype(np.float32), ids


def known(count: int = 300) -> Known:
    return Known(*make_clouds(count, 0))


def measured(given: Known) -> tuple[OodFit, OodFacts]:
    found = measure_ood(given, 3, 0.05)
    assert not isinstance(found, str), found
    return found


def test_fit_ood__as_mahalanobis_distance_by_scipy() -> None:
    embeddings, ids = make_clouds(300, 0)

    def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    center = 0.75 * unit(embeddings.astype(np.float64)).mean(axis=0)
    places = unit(unit(embeddings.astype(np.float64)) - center)
    means = np.stack([places[ids == c].mean(axis=0) for c in range(3)])
    within = (places - means[ids]).T @ (places - means[ids]) / (300 - 3)
    target = np.trace(within) / 12  # all 12 directions are kept: this is the covariance shrunk by 0.95
    covariance = 0.05 * within + 0.95 * target * np.eye(12)
    new = make_clouds(20, 2, shift=5)[0]
    wanted = [
        min(mahalanobis(row, mean, np.linalg.inv(covariance)) for mean in means) * np.sqrt(0.95 * target)
        for row in unit(unit(new.astype(np.float64)) - center)
    ]
    np.testing.assert_allclose(fit_ood(embeddings, ids, 3).scores(new), wanted, rtol=1e-5)  # float32 against float64


@pytest.mark.parametrize("is_cross_fitted", [True, False])
def test_measure_ood__detects_other_images_at_the_given_false_alarm_rate(is_cross_fitted: bool) -> None:
    held_out = None if is_cross_fitted else make_clouds(200, 1)[0]
    score, facts = measured(Known(*make_clouds(300, 0), held_out=held_out))
    assert (facts.images, facts.dimensions) == (300, 12)
    assert facts.held_out == (300 if is_cross_fitted else 200)
    new, strange = make_clouds(1000, 3)[0], make_clouds(1000, 4, shift=9)[0]
    scores = score.scores(np.concatenate([new, strange]))
    assert roc_auc_score([0] * 1000 + [1] * 1000, scores) > 0.95
    assert facts.false_alarm <= 0.05
    # The target is 5%; 200 held-out and 1,000 new images estimate it to a few points.
    assert 0.01 < (scores[:1000] > facts.limit).mean() < 0.1


def test_measure_ood__few_images_in_many_dimensions() -> None:
    """Strangers differ in dimensions in which 40 training images do not: they must not look familiar."""
    random = np.random.default_rng(0)

    def draw(count: int, first: int) -> NDArray[np.float32]:
        images = np.abs(random.normal(size=(count, 400))) * 0.2
        images[:, first : first + 100] += np.abs(random.normal(size=(count, 100)))
        return images.astype(np.float32)

    ids = np.arange(40) % 2
    found = measure_ood(Known(draw(40, 0), ids), 2, 0.05)
    assert not isinstance(found, str), found
    score, facts = found
    new, strange = score.scores(draw(200, 0)), score.scores(draw(200, 200))
    assert roc_auc_score([0] * 200 + [1] * 200, np.concatenate([new, strange])) > 0.99
    assert (new > facts.limit).mean() < 0.1


def test_measure_ood__final_statistics_of_all_images() -> None:
    """The limit comes from statistics of the training images, the score from those of all images."""
    (train, ids), (held_out, held_out_ids) = make_clouds(60, 0), make_clouds(40, 1)
    alone, limit_alone = measured(Known(train, ids, held_out=held_out))
    score, facts = measured(Known(train, ids, held_out=held_out, held_out_ids=held_out_ids))
    assert (facts.limit, facts.images, facts.held_out) == (limit_alone.limit, 100, 40)
    every = fit_ood(np.concatenate([train, held_out]), np.concatenate([ids, held_out_ids]), 3)
    new = make_clouds(300, 2)[0]
    np.testing.assert_array_equal(score.scores(new), every.scores(new))
    assert np.median(score.scores(new)) < np.median(alone.scores(new))  # more images, better statistics


def test_fit_ood__length_does_not_count() -> None:
    score = fit_ood(*make_clouds(300, 0), 3)
    new = make_clouds(20, 5)[0]
    np.testing.assert_allclose(score.scores(new), score.scores(3 * new), rtol=1e-5)  # float32


def test_ood_score__the_module_computes_the_same() -> None:
    fit = fit_ood(*make_clouds(300, 0), 3)
    new = np.concatenate([make_clouds(20, 5)[0], np.zeros((1, 12), np.float32)])
    with torch.no_grad():
        found = OodScore(fit)(torch.from_numpy(new)).numpy()
    np.testing.assert_allclose(found, fit.scores(new), rtol=1e-5)  # float32


def test_measure_ood__equal_files_and_groups_are_held_out_together() -> None:
    embeddings, ids = make_clouds(30, 0)
    twice = np.concatenate([embeddings, embeddings])
    names = [str(i) for i in range(30)] * 2
    alone = Known(twice, np.tile(ids, 2))
    for tied in (Known(twice, np.tile(ids, 2), hashes=names), Known(twice, np.tile(ids, 2), groups=names)):
        assert measured(tied)[1].limit > measured(alone)[1].limit  # a copy in the other folds looks familiar


@pytest.mark.parametrize(
    ("given", "false_alarm", "reason"),
    [
        (Known(np.ones((4, 5), np.float32), np.array([0, 0, 1, 1])), 0.05, "requires at least 19 images .*, found 4"),
        (Known(*make_clouds(60, 0), held_out=make_clouds(18, 1)[0]), 0.05, "requires at least 19 images .*, found 18"),
        (Known(*make_clouds(60, 0), held_out=make_clouds(18, 1)[0]), 0.01, "requires at least 99 images"),
        (Known(np.zeros((60, 9000), np.float32), np.arange(60) % 3), 0.05, "more than 8192 values"),
        (Known(*make_clouds(5, 0)), 0.05, "fewer than two training images"),
        (
            Known((1 + 1e-7 * np.random.default_rng(0).normal(size=(60, 12))).astype(np.float32), np.arange(60) % 3),
            0.05,
            "nearly equal",
        ),
    ],
)
def test_measure_ood__says_why_there_is_no_score(given: Known, false_alarm: float, reason: str) -> None:
    found = measure_ood(given, 2 if len(given.class_ids) == 4 else 3, false_alarm)
    assert isinstance(found, str)
    assert re.search(reason, found), found
