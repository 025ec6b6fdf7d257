from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from tl.evaluation import metrics
from tl.evaluation.metrics import (
    classification_metrics,
    expected_calibration_error,
    macro_f1,
    mcnemar_p,
    top_k_accuracy,
    variance_of_mean,
    wilson_interval,
)

NAMES = ("a", "b", "c", "d")
# float64 sums of at most a few hundred terms in a different order.
FLOAT64_ORDER = 1e-12


def random_case(seed: int, count: int = 60) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(len(NAMES)), count).astype(np.float32)
    return rng.integers(0, len(NAMES), count), probabilities


@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics__accuracy_and_macro_f1_as_scikit_learn(seed: int) -> None:
    truth, probabilities = random_case(seed)
    scores = classification_metrics(truth, probabilities, NAMES)
    decided = probabilities.argmax(axis=1)
    assert scores["n"] == 60
    assert scores["top1_accuracy"] == accuracy_score(truth, decided)
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, decided, average="macro"), abs=FLOAT64_ORDER)


@pytest.mark.parametrize("seed", range(3))
def test_classification_metrics__per_class_as_scikit_learn(seed: int) -> None:
    truth, probabilities = random_case(seed)
    per_class = classification_metrics(truth, probabilities, NAMES)["per_class"]
    wanted = precision_recall_fscore_support(truth, probabilities.argmax(axis=1), zero_division=0)
    for class_id, name in enumerate(NAMES):
        found = [per_class[name][key] for key in ("precision", "recall", "f1", "n")]
        assert found == pytest.approx([column[class_id] for column in wanted], abs=FLOAT64_ORDER)


def test_classification_metrics__macro_f1_is_over_classes_that_are_present() -> None:
    # Class 1 never occurs but is decided once; it lowers class 0's recall and is excluded from the mean.
    truth = np.array([0, 0, 2])
    probabilities = np.eye(4, dtype=np.float32)[[0, 1, 2]]
    scores = classification_metrics(truth, probabilities, NAMES)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2, abs=FLOAT64_ORDER)
    wanted = f1_score(truth, [0, 1, 2], average="macro", labels=[0, 2])
    assert scores["macro_f1"] == pytest.approx(wanted, abs=FLOAT64_ORDER)
    assert scores["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}


def test_classification_metrics__given_labels_decide() -> None:
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4]], np.float32)
    truth = np.array([1, 1])
    assert classification_metrics(truth, probabilities, ("a", "b"))["top1_accuracy"] == 0.0
    scores = classification_metrics(truth, probabilities, ("a", "b"), np.array([1, 0]))
    assert scores["top1_accuracy"] == 0.5
    # Confidences of the decided labels: 0.4 right, 0.6 wrong, each in its own bin.
    assert scores["ece"] == pytest.approx(0.5 * 0.6 + 0.5 * 0.6, abs=1e-7)  # 0.4 and 0.6 as float32


def test_classification_metrics__keys_are_those_of_metrics_json() -> None:
    scores = classification_metrics(*random_case(0), NAMES)
    numbers = ["n", "top1_accuracy", "ci_low", "ci_high", "macro_f1", "ece", "boot_low", "boot_high"]
    numbers += ["macro_f1_boot_low", "macro_f1_boot_high"]
    assert list(scores) == [*numbers, "per_class", "confusion"]
    assert all(type(scores[key]) in (int, float) for key in numbers)
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("seed", range(3))
def test_classification_metrics__confusion_as_scikit_learn(seed: int) -> None:
    truth, probabilities = random_case(seed, 20)
    truth[truth == 2] = 1  # a class that is decided but never true
    wanted = confusion_matrix(truth, probabilities.argmax(axis=1), labels=range(4))
    assert classification_metrics(truth, probabilities, NAMES)["confusion"] == wanted.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1__as_scikit_learn_over_classes_with_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, decided = rng.integers(0, 5, 12), rng.integers(0, 7, 12)  # classes 5 and 6 are never true
    wanted = f1_score(truth, decided, average="macro", labels=np.unique(truth), zero_division=0)
    assert macro_f1(truth, decided, 7) == pytest.approx(wanted, abs=FLOAT64_ORDER)


@pytest.mark.parametrize("seed", range(3))
def test_classification_metrics__bootstrap_as_a_loop_over_scikit_learn(seed: int) -> None:
    # The same draws, scored by scikit-learn; 1000 of them would take seconds.
    truth, probabilities = random_case(seed, 25)
    decided = probabilities.argmax(axis=1)
    found = metrics._bootstrap(truth, decided, 4, np.arange(25), draws=60)
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(60):
        drawn = rng.integers(25, size=25)
        f1 = f1_score(truth[drawn], decided[drawn], average="macro", labels=np.unique(truth[drawn]), zero_division=0)
        scores.append((accuracy_score(truth[drawn], decided[drawn]), f1))
    low, high = np.percentile(scores, [2.5, 97.5], axis=0)
    keys = ("boot_low", "macro_f1_boot_low", "boot_high", "macro_f1_boot_high")
    assert [found[key] for key in keys] == pytest.approx([*low, *high], abs=FLOAT64_ORDER)


def test_classification_metrics__groups_widen_the_interval() -> None:
    # 10 specimens with 10 images each, 7 of them all right: the accuracy of drawn groups is binomial(10, 0.7) / 10.
    truth = np.zeros(100, np.int64)
    probabilities = np.eye(2, dtype=np.float32)[[0] * 70 + [1] * 30]
    groups = [f"specimen {i // 10}" for i in range(100)]
    scores = classification_metrics(truth, probabilities, ("a", "b"), groups=groups)
    assert scores["groups"] == 10
    assert scores["top1_accuracy"] == 0.7
    assert scipy.stats.binom.ppf([0.025, 0.975], 10, 0.7).tolist() == [4, 10]
    # With 1000 draws, a quantile is at most one group off. The variance is divided by 9 instead of 10, but each group
    # counts at least once.
    assert (scores["boot_low"], scores["boot_high"]) == pytest.approx((0.4, 1.0), abs=0.101)
    assert (scores["ci_low"], scores["ci_high"]) == pytest.approx(wilson_interval(7, 10), abs=0.03)


def test_variance_of_mean__by_hand() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])  # deviations of 0.5
    assert variance_of_mean(values) == pytest.approx(4 * 0.25 / 16 * 4 / 3)
    assert variance_of_mean(values) == pytest.approx(values.var(ddof=1) / 4)
    assert variance_of_mean(values, ["a", "a", "b", "b"]) == pytest.approx((1 + 1) / 16 * 2)
    assert variance_of_mean(values, ["a", "b", "a", "b"]) == 0
    assert math.isnan(variance_of_mean(values, ["a"] * 4))


def test_classification_metrics__groups_all_right_count_one_each() -> None:
    # Whatever is drawn is right, so the bootstrap shows no variance: the interval is that of 4 images.
    truth = np.zeros(40, np.int64)
    probabilities = np.eye(2, dtype=np.float32)[[0] * 40]
    scores = classification_metrics(truth, probabilities, ("a", "b"), groups=[str(i // 10) for i in range(40)])
    assert (scores["ci_low"], scores["ci_high"]) == pytest.approx(wilson_interval(4, 4))


def test_classification_metrics__images_without_groups_are_counted_alone() -> None:
    truth = np.array([0, 0, 1, 1])
    probabilities = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    plain = classification_metrics(truth, probabilities, ("a", "b"))
    assert classification_metrics(truth, probabilities, ("a", "b"), groups=["", "", "", ""]) == plain
    assert classification_metrics(truth, probabilities, ("a", "b"), groups=["x", "x", "", ""])["groups"] == 3


def test_classification_metrics__bootstrap_of_accuracy_is_binomial() -> None:
    # 70 of 100 right: resampled accuracy is binomial(100, 0.7) / 100, with 2.5% and 97.5% quantiles of 0.61 and 0.79.
    truth = np.zeros(100, np.int64)
    probabilities = np.eye(2, dtype=np.float32)[[0] * 70 + [1] * 30]
    scores = classification_metrics(truth, probabilities, ("a", "b"))
    assert scipy.stats.binom.ppf([0.025, 0.975], 100, 0.7).tolist() == [61, 79]
    # With 1000 draws, the error of the quantiles is about one image.
    assert (scores["boot_low"], scores["boot_high"]) == pytest.approx((0.61, 0.79), abs=0.011)


def test_classification_metrics__bootstrap_is_the_same_every_time_and_holds_the_score() -> None:
    first, second = (classification_metrics(*random_case(4), NAMES) for _ in range(2))
    assert first == second
    assert first["boot_low"] < first["top1_accuracy"] < first["boot_high"]
    assert first["macro_f1_boot_low"] < first["macro_f1"] < first["macro_f1_boot_high"]


@pytest.mark.parametrize("right", [True, False])
def test_classification_metrics__one_image(right: bool) -> None:
    scores = classification_metrics(np.array([0 if right else 1]), np.array([[0.75, 0.25]], np.float32), ("a", "b"))
    names = ("top1_accuracy", "macro_f1", "boot_low", "boot_high", "macro_f1_boot_low", "macro_f1_boot_high")
    assert [scores[name] for name in names] == [float(right)] * 6
    assert scores["ece"] == (0.25 if right else 0.75)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy__as_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(k)
    truth, probabilities = rng.integers(0, 8, 50), rng.dirichlet(np.ones(8), 50).astype(np.float32)
    wanted = top_k_accuracy_score(truth, probabilities, k=k, labels=range(8))
    assert top_k_accuracy(truth, probabilities, k) == wanted


def test_top_k_accuracy__by_hand() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]], np.float32)
    truth = np.array([1, 0, 1])  # second, third, first
    assert [top_k_accuracy(truth, probabilities, k) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy__ties_go_to_the_first_classes_as_in_argmax(k: int) -> None:
    # Hard votes and saturated softmaxes contain many equal values, which must not all count as found.
    probabilities = np.array([[0, 0, 1, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]], np.float32).repeat(4, axis=0)
    truth = np.tile(np.arange(4), 3)
    found = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    wanted = float(np.mean([true in row for true, row in zip(truth, found, strict=True)]))
    assert top_k_accuracy(truth, probabilities, k) == wanted == k / 4


@pytest.mark.parametrize(("classes", "there"), [(5, False), (6, True)])
def test_classification_metrics__top5_where_it_says_something(classes: int, there: bool) -> None:
    rng = np.random.default_rng(0)
    truth, probabilities = rng.integers(0, classes, 30), rng.dirichlet(np.ones(classes), 30).astype(np.float32)
    scores = classification_metrics(truth, probabilities, tuple("abcdef"[:classes]))
    assert ("top5_accuracy" in scores) == there
    if there:
        assert scores["top5_accuracy"] == top_k_accuracy_score(truth, probabilities, k=5, labels=range(classes))


def test_classification_metrics__no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        classification_metrics(np.empty(0, np.int64), np.empty((0, 4), np.float32), NAMES)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Source: Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3 (four decimals).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval__published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)  # published to four decimals


@pytest.mark.parametrize("trials", [1, 2, 7, 1000])
def test_wilson_interval__stays_within_0_and_1_and_holds_the_share(trials: int) -> None:
    for successes in (0, trials // 2, trials):
        low, high = wilson_interval(successes, trials)
        assert 0.0 <= low < high <= 1.0
        assert low - FLOAT64_ORDER <= successes / trials <= high + FLOAT64_ORDER


def test_wilson_interval__is_symmetric() -> None:
    low, high = wilson_interval(3, 10)
    other_low, other_high = wilson_interval(7, 10)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low), abs=FLOAT64_ORDER)


def test_expected_calibration_error__by_hand() -> None:
    # Two bins of width 0.5: {0.25 wrong, 0.375 right} |0.5 - 0.3125|, {0.75 right, 1.0 right} |1 - 0.875|.
    confidence = np.array([0.25, 0.375, 0.75, 1.0], np.float32)
    correct = np.array([False, True, True, True])
    wanted = 0.5 * (0.5 - 0.3125) + 0.5 * (1 - 0.875)
    assert expected_calibration_error(correct, confidence, bins=2) == wanted  # every value is a binary fraction


def test_expected_calibration_error__certain_and_right_is_0_certain_and_wrong_is_1() -> None:
    certain = np.ones(5, np.float32)
    assert expected_calibration_error(np.ones(5, bool), certain) == 0.0
    assert expected_calibration_error(np.zeros(5, bool), certain) == 1.0


def test_expected_calibration_error__against_a_loop_over_images() -> None:
    truth, probabilities = random_case(9, 200)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins: dict[int, list[tuple[bool, float]]] = {}
    for right, value in zip(correct.tolist(), confidence.tolist(), strict=True):
        bins.setdefault(min(14, int(value * 15)), []).append((right, value))
    wanted = sum(abs(sum(r - v for r, v in members)) for members in bins.values()) / 200
    assert expected_calibration_error(correct, confidence) == pytest.approx(wanted, abs=FLOAT64_ORDER)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (2, 9), (40, 22)])
def test_mcnemar_p__as_the_binomial_test(gained: int, lost: int) -> None:
    right = np.array([True] * gained + [False] * lost + [True, False])
    other = np.array([False] * gained + [True] * lost + [True, False])
    wanted = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(right, other) == pytest.approx(wanted)
    assert mcnemar_p(right, other) == mcnemar_p(other, right)
