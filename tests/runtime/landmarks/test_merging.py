from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tl.runtime.landmarks.ensemble import merge_points

# One image, three members, two points.
MEMBERS = np.array([[[[0.0, 0.0], [10, 10]], [[3, 0], [10, 10]], [[30, 6], [10, 40]]]])


def test_merge_points__mean_and_spread_by_hand() -> None:
    found = merge_points(MEMBERS)
    np.testing.assert_allclose(found.keypoints_xy, [[[11, 2], [10, 20]]])
    # Squared distances to (11, 2): 125, 68 and 377; to (10, 20): 100, 100 and 400.
    np.testing.assert_allclose(found.spread_px, [[np.sqrt(570 / 3), np.sqrt(600 / 3)]])
    assert found.confidence is None


def test_merge_points__median_ignores_one_far_member() -> None:
    np.testing.assert_allclose(merge_points(MEMBERS, "median").keypoints_xy, [[[3, 0], [10, 10]]])


def test_merge_points__weights() -> None:
    found = merge_points(MEMBERS, weights=[2, 1, 1])
    np.testing.assert_allclose(found.keypoints_xy, [[[33 / 4, 6 / 4], [10, 70 / 4]]])


def test_merge_points__confidence_weighs_each_point() -> None:
    confidence = np.array([[[1, 0.0], [1, 0.0], [0, 0.0]]], np.float32)
    found = merge_points(MEMBERS, "confidence", None, confidence)
    np.testing.assert_allclose(found.keypoints_xy, [[[1.5, 0], [10, 20]]])  # no confidence in the second: plain mean
    np.testing.assert_allclose(found.confidence, [[2 / 3, 0]], rtol=1e-6)  # float32


def test_merge_points__one_member_is_untouched() -> None:
    found = merge_points(MEMBERS[:, :1])
    np.testing.assert_array_equal(found.keypoints_xy, MEMBERS[:, 0])
    np.testing.assert_array_equal(found.spread_px, [[0, 0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MEMBERS[0],), "must be"),
        ((MEMBERS, "mean", [1, 2]), "3 positive numbers"),
        ((MEMBERS, "mean", [1, 2, 0]), "3 positive numbers"),
        ((MEMBERS, "confidence"), "requires members that output a confidence"),
        ((MEMBERS, "best"), "unknown merging"),
    ],
)
def test_merge_points__faults(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_points(*arguments)
