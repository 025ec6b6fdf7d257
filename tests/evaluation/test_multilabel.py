from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    hamming_loss,
    precision_recall_curve,
    precision_recall_fscore_support,
)

from tl.evaluation.label_decisions import build_risk_curve, fit_temperatures, fit_thresholds, held_out_decisions
from tl.evaluation.multilabel import average_precision, missed_share, multilabel_metrics, precision_recall, sigmoid
from tl.runtime.model_file.label_facts import RiskCurve, set_threshold

NAMES = ("a", "b", "c")
ORDER = 1e-12  # float64 sums in another order


def random_case(seed: int, count: int = 80) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    true = (rng.random((count, 3)) < [0.5, 0.3, 0.15]).astype(float)
    found = expit(rng.normal(size=(count, 3)) + 2 * true - 1).round(1).astype(np.float32)  # rounded: has ties
    return found, true


@pytest.mark.parametrize("seed", range(4))
def test_multilabel_metrics__as_scikit_learn(seed: int) -> None:
    found, true = random_case(seed)
    decided = found >= 0.5
    scores = multilabel_metrics(found, true, decided, NAMES)
    assert scores["map"] == pytest.approx(average_precision_score(true, found, average="macro"), abs=ORDER)
    assert scores["macro_f1"] == pytest.approx(f1_score(true, decided, average="macro"), abs=ORDER)
    assert scores["micro_f1"] == pytest.approx(f1_score(true, decided, average="micro"), abs=ORDER)
    assert scores["subset_accuracy"] == accuracy_score(true, decided)
    assert scores["hamming_loss"] == pytest.approx(hamming_loss(true, decided), abs=ORDER)
    precision, recall, f1, count = precision_recall_fscore_support(true, decided, zero_division=0)
    for c, name in enumerate(NAMES):
        own = scores["per_class"][name]
        assert (own["precision"], own["recall"], own["f1"]) == pytest.approx(
            (precision[c], recall[c], f1[c]), abs=ORDER
        )
        assert own["n"] == count[c]
    assert scores["ci_low"] < scores["map"] < scores["ci_high"]


def test_multilabel_metrics__unknown_labels_do_not_count() -> None:
    found, true = random_case(0)
    some = np.vstack([true, [[np.nan, np.nan, 1]] * 5])
    more = np.vstack([found, [[0.9, 0.1, 0.7]] * 5])
    scores, plain = (multilabel_metrics(p, t, p >= 0.5, NAMES) for p, t in ((more, some), (found, true)))
    for name in ("a", "b"):
        assert scores["per_class"][name] == plain["per_class"][name]
    assert scores["per_class"]["c"]["n"] == plain["per_class"]["c"]["n"] + 5
    with pytest.raises(ValueError, match="no known labels"):
        multilabel_metrics(found, np.full_like(true, np.nan), found >= 0.5, NAMES)


def test_multilabel_metrics__groups_widen_the_interval() -> None:
    found, true = random_case(1, 20)
    copies = (np.repeat(found, 8, axis=0), np.repeat(true, 8, axis=0))
    alone, grouped = (
        multilabel_metrics(*copies, copies[0] >= 0.5, NAMES, groups)
        for groups in ((), [f"g{i // 8}" for i in range(160)])
    )
    assert alone["map"] == grouped["map"]
    width, wider = alone["ci_high"] - alone["ci_low"], grouped["ci_high"] - grouped["ci_low"]
    assert wider > 1.8 * width  # sqrt(8) for independent groups


def test_average_precision__counts_images_several_times() -> None:
    found, true = random_case(2)
    times = np.random.default_rng(0).integers(0, 3, (4, len(found)))
    scores = average_precision(found[:, 0], true[:, 0] == 1, times.astype(float))
    for each, row in zip(scores, times, strict=True):
        repeated = average_precision_score(np.repeat(true[:, 0], row), np.repeat(found[:, 0], row))
        assert each == pytest.approx(repeated, abs=ORDER)
    assert np.isnan(average_precision(found[:, 0], np.zeros(len(found), bool))).all()


def test_precision_recall__as_scikit_learn() -> None:
    found, true = random_case(3)
    precision, recall = precision_recall(found[:, 0], true[:, 0] == 1)
    wanted_precision, wanted_recall, _ = precision_recall_curve(true[:, 0], found[:, 0])
    np.testing.assert_allclose(precision[::-1], wanted_precision[:-1], atol=ORDER)
    np.testing.assert_allclose(recall[::-1], wanted_recall[:-1], atol=ORDER)


def test_sigmoid__far_logits_and_temperatures() -> None:
    found = sigmoid(np.array([[-1000.0, 2.0], [1000.0, 4.0]]), (1.0, 2.0))
    np.testing.assert_allclose(found, [[0, expit(1)], [1, expit(2)]], rtol=1e-6)


def test_fit_thresholds__highest_f1_by_trying_all() -> None:
    found, true = random_case(5)
    thresholds = fit_thresholds(found, true)
    for c, threshold in enumerate(thresholds):
        best = max(f1_score(true[:, c], found[:, c] >= t, zero_division=0) for t in np.unique(found[:, c]))
        assert f1_score(true[:, c], found[:, c] >= threshold) == pytest.approx(best, abs=ORDER)


def test_fit_thresholds__lowest_that_reaches_a_precision() -> None:
    found = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    true = np.array([[1], [0], [1], [1], [0]], float)
    assert fit_thresholds(found, true, 0.75) == (pytest.approx(0.55),)  # 3 of 4
    assert fit_thresholds(found, true, 0.8) == (pytest.approx(0.85),)  # 1 of 1, but not 3 of 4
    never = fit_thresholds(found, 1 - true, 0.9)  # at most 1 of 2
    assert never == (pytest.approx(0.75),)
    assert fit_thresholds(found, np.full((5, 1), np.nan)) == (0.5,)


def test_held_out_decisions__are_not_fitted_to_their_own_image() -> None:
    rng = np.random.default_rng(0)
    found, true = rng.random((60, 1)), (rng.random((60, 1)) < 0.2).astype(float)
    own = found >= np.array(fit_thresholds(found, true))
    fair = held_out_decisions(found, true)
    assert f1_score(true[:, 0], fair[:, 0]) < f1_score(true[:, 0], own[:, 0])


def test_fit_temperatures__per_label_where_there_are_enough_images() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 2)) * 3
    true = (rng.random((2000, 2)) < expit(logits)).astype(float)
    found = fit_temperatures(logits * [4, 1], true)
    assert found[0] == pytest.approx(4, rel=0.15)  # sampling error
    assert found[1] == pytest.approx(1, rel=0.15)
    true[10:, 1] = np.nan  # few images: shares a temperature that is fitted to all
    shared = fit_temperatures(logits * 4, true)
    assert shared[0] == pytest.approx(shared[1], rel=0.05)


def test_build_risk_curve__by_hand() -> None:
    found = np.array([[0.9, 0.2], [0.6, 0.8], [0.1, 0.1], [0.3, 0.9]])
    true = np.array([[1, 0], [1, 1], [0, 0], [np.nan, 1]])
    curve = build_risk_curve(found, true, "test")
    assert curve is not None
    assert (curve.thresholds, curve.images, curve.source) == ((0.6, 0.8, 0.9), 3, "test")
    assert curve.risks == pytest.approx((0, 1 / 6, 2 / 6))
    assert build_risk_curve(found, np.zeros((4, 2)), "test") is None
    for threshold, risk in zip(curve.thresholds, curve.risks, strict=True):
        assert missed_share(found >= threshold, true) == pytest.approx(risk)


def test_set_threshold__promises_what_the_images_allow() -> None:
    curve = RiskCurve(tuple((np.arange(20) / 20).tolist()), tuple((np.arange(20) / 20).tolist()), 19, "")
    assert set_threshold(curve, 0.9) == pytest.approx(0.05)  # (19 r + 1) / 20 <= 0.1
    assert set_threshold(curve, 0.95) == 0
    assert set_threshold(curve, 0.96) is None


def test_set_threshold__misses_no_more_than_allowed_on_average() -> None:
    missed = []
    for seed in range(60):
        found, true = random_case(seed, 160)
        held, new = slice(0, 60), slice(60, None)
        curve = build_risk_curve(found[held], true[held], "")
        assert curve is not None
        threshold = set_threshold(curve, 0.8)
        assert threshold is not None
        missed.append(missed_share(found[new] >= threshold, true[new]))
    assert np.mean(missed) < 0.2 + 2 * np.std(missed) / np.sqrt(60)
