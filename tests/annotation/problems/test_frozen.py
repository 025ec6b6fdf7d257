from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.annotation.problems.frozen import predict_held_out


def features_of(ids: NDArray[np.int64], spread: float) -> NDArray[np.float32]:
    """Clouds (N, 20), one around each class."""
    centers = np.random.default_rng(0).normal(size=(int(ids.max()) + 1, 20))
    return np.asarray(centers[ids] + spread * np.random.default_rng(1).normal(size=(len(ids), 20)), np.float32)


def hashes_of(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_predict_held_out__finds_the_class_of_images_it_was_not_fitted_to() -> None:
    ids = np.arange(60) % 3
    found = predict_held_out(features_of(ids, 0.3), ids, 3, hashes_of(60), [""] * 60, 0)
    assert found.folds == 5
    assert (found.probabilities.argmax(axis=1) == ids).all()
    assert np.abs(found.probabilities.sum(axis=1) - 1).max() < 1e-5


def test_predict_held_out__equal_files_and_groups_stay_together() -> None:
    """Labels are random, so a head can only know those of images that it has seen a copy of."""
    ids = np.repeat(np.random.default_rng(2).integers(0, 2, 60), 2)
    features = np.repeat(np.random.default_rng(3).normal(size=(60, 200)), 2, axis=0).astype(np.float32)
    copies = [str(i // 2) for i in range(120)]

    def accuracy(hashes: list[str], groups: list[str]) -> float:
        found = predict_held_out(features, ids, 2, hashes, groups, 0)
        return float((found.probabilities.argmax(axis=1) == ids).mean())

    assert accuracy(hashes_of(120), [""] * 120) > 0.8
    assert accuracy(copies, [""] * 120) < 0.7
    assert accuracy(hashes_of(120), copies) < 0.7


def test_predict_held_out__a_class_with_too_few_images_is_left_out() -> None:
    ids = np.append(np.arange(60) % 2, [2, 2, 2])
    found = predict_held_out(features_of(ids, 0.3), ids, 4, hashes_of(63), [""] * 63, 0)
    assert found.folds == 5
    assert np.isnan(found.probabilities[60:]).all()
    assert (found.probabilities[:60, 2:] == 0).all()
    assert (found.probabilities[:60].argmax(axis=1) == ids[:60]).all()


def test_predict_held_out__fewer_folds_where_all_classes_are_small() -> None:
    ids = np.arange(9) % 3
    found = predict_held_out(features_of(ids, 0.1), ids, 3, hashes_of(9), [""] * 9, 0)
    assert found.folds == 3
    assert np.isfinite(found.probabilities).all()


def test_predict_held_out__impossible_with_one_image_a_class_or_one_class() -> None:
    for ids in (np.arange(4), np.zeros(20, np.int64)):
        found = predict_held_out(features_of(ids, 0.1), ids, 4, hashes_of(len(ids)), [""] * len(ids), 0)
        assert found.folds == 0
        assert np.isnan(found.probabilities).all()
