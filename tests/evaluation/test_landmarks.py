from __future__ import annotations

import numpy as np
import pytest

from tl.evaluation.landmarks import landmark_metrics

NAN = float("nan")
TRUE = np.array([[[0.0, 0.0], [100, 0]], [[0, 0], [NAN, NAN]]])
FOUND = np.array([[[3.0, 4.0], [100, 1]], [[0, 12], [7, 7]]])


def test_landmark_metrics__by_hand() -> None:
    # Errors of 5, 1 and 12 photo pixels; inputs at half and a quarter of the photos' scale.
    scale = np.array([[0.5, 0.5], [0.25, 0.25]])
    found = landmark_metrics(FOUND, TRUE, ("a", "b"), scale, np.array([0.1, NAN]))
    assert (found["n"], found["points"]) == (2, 3)
    assert found["error_px"] == pytest.approx(6)
    assert found["rmse_px"] == pytest.approx(np.sqrt(170 / 3))
    assert found["median_px"] == 5
    assert found["error_input_px"] == pytest.approx((2.5 + 0.5 + 3) / 3)
    assert found["mse_input_px"] == pytest.approx((1.5**2 + 2**2 + 0 + 0.5**2 + 0 + 3**2) / 6)
    assert found["per_keypoint"]["a"] == {
        "error_px": pytest.approx(8.5),
        "rmse_px": pytest.approx(np.sqrt((25 + 144) / 2)),
        "n": 2,
    }
    # Centroid size of the first image's points: two points, each 50 px from their mean.
    assert found["normalized_error"] == pytest.approx(3 / np.sqrt(5000))
    assert found["extent_error"] == pytest.approx((0.05 + 0.01) / 2)  # of 100 px; the other image has one point
    assert found["pck"] == {"0.01": 0.0, "0.02": 0.5, "0.05": 0.5, "0.1": 1.0}  # of 100 px: 5 and 1
    assert found["error_mm"] == pytest.approx(0.3)
    assert found["ci_low"] <= 6 <= found["ci_high"]


def test_landmark_metrics__perfect() -> None:
    found = landmark_metrics(np.nan_to_num(TRUE), TRUE, ("a", "b"), np.ones((2, 2)))
    assert (found["error_px"], found["rmse_px"], found["centroid_size_error"]) == (0, 0, 0)
    assert "error_mm" not in found


def test_landmark_metrics__a_point_nobody_has() -> None:
    true = np.array([[[0.0, 0.0], [NAN, NAN]]])
    found = landmark_metrics(np.zeros((1, 2, 2)), true, ("a", "b"), np.ones((1, 2)))
    assert found["per_keypoint"]["b"] == {"error_px": None, "rmse_px": None, "n": 0}
    with pytest.raises(ValueError, match="no annotated point"):
        landmark_metrics(np.zeros((1, 2, 2)), np.full((1, 2, 2), NAN), ("a", "b"), np.ones((1, 2)))
