from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from tl.evaluation.regression import regression_metrics
from tl.runtime.ensembles.regression import interval_width, merge_values


def test_regression_metrics__as_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(40, 2)) * [1, 100]
    found = true + rng.normal(size=(40, 2)) * [0.1, 30]
    m = regression_metrics(found, true, ["a", "b"], baseline=np.array([0.0, 5.0]))
    assert m["n"] == 40
    assert m["mae"] == pytest.approx(mean_absolute_error(true, found))
    assert m["rmse"] == pytest.approx(root_mean_squared_error(true, found))
    assert m["r2"] == pytest.approx(r2_score(true, found))
    assert m["per_target"]["b"]["rmse"] == pytest.approx(root_mean_squared_error(true[:, 1], found[:, 1]))
    assert m["per_target"]["b"]["baseline_mae"] == pytest.approx(np.abs(true[:, 1] - 5).mean())
    assert m["ci_low"] < m["mae"] < m["ci_high"]
    grouped = regression_metrics(found, true, ["a", "b"], groups=["g"] * 20 + ["h"] * 20)
    assert grouped["mae"] == m["mae"]


def test_regression_metrics__missing_numbers_are_not_counted() -> None:
    true = np.array([[1.0, np.nan], [2.0, 5.0], [np.nan, np.nan]])
    m = regression_metrics(np.array([[2.0, 9.0], [2.0, 8.0], [0.0, 0.0]]), true, ["a", "b"])
    assert (m["n"], m["per_target"]["a"]["n"], m["per_target"]["b"]["n"]) == (2, 2, 1)
    assert m["mae"] == (0.5 + 3) / 2
    assert (m["per_target"]["b"]["r2"], m["r2"]) == (None, 1 - 1 / 0.5)
    assert regression_metrics(np.array([[2.0]]), np.array([[1.0]]), ["a"])["r2"] is None
    json.dumps(m, allow_nan=False)  # what is undefined is null
    with pytest.raises(ValueError, match="no true numbers"):
        regression_metrics(np.zeros((1, 1)), np.full((1, 1), np.nan), ["a"])


def test_interval_width__by_hand() -> None:
    scores = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert [interval_width(scores, coverage) for coverage in (0.5, 0.8, 0.9)] == [5.0, 8.0, 9.0]
    assert interval_width(scores, 0.91) == np.inf


def test_interval_width__covers_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    covered = [
        abs(rng.standard_t(3)) <= interval_width(sorted(np.abs(rng.standard_t(3, 30)).tolist()), 0.8)
        for _ in range(4000)
    ]
    # ceil(31 * 0.8) / 31 = 0.806; four standard errors of 4000 draws
    assert np.mean(covered) == pytest.approx(0.806, abs=0.025)


def test_merge_values__mean_and_median() -> None:
    members = np.array([[[1.0], [2.0], [9.0]]], np.float32)
    assert merge_values(members).tolist() == [[4.0]]
    assert merge_values(members, weights=[2, 1, 1]).tolist() == [[3.25]]
    assert merge_values(members, "median").tolist() == [[2.0]]
