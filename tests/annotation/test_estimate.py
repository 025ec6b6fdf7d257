from __future__ import annotations

import numpy as np
import pytest

from tests.annotation.features import make_clouds
from tl.annotation.estimate import corrected_share, estimate_accuracy, more_to_halve
from tl.annotation.learner import fit_head
from tl.evaluation.metrics import wilson_interval

NAMES = tuple("abcde")


def all_random(count: int) -> np.ndarray:
    return np.ones(count, bool)


def test_estimate_accuracy__perfect_head() -> None:
    features, ids = make_clouds(2, 40, apart=6)
    found = estimate_accuracy(features, ids, all_random(40), ("a", "b"))
    assert found is not None
    assert (found.accuracy, found.n, found.high) == (1.0, 40, 1.0)
    assert found.low == pytest.approx(40 / (40 + 1.959964**2))  # Wilson's lower limit without errors


def test_estimate_accuracy__only_random_images_count() -> None:
    """The chosen images have wrong labels. They neither count nor are held out."""
    features, ids = make_clouds(2, 60, apart=6)
    is_random = np.arange(60) < 50
    ids[50:] = 1 - ids[50:]
    found = estimate_accuracy(features, ids, is_random, ("a", "b"))
    assert found is not None
    assert (found.accuracy, found.n) == (1.0, 50)


def test_estimate_accuracy__no_image_is_predicted_by_a_head_that_has_seen_it() -> None:
    """Labels are random, so a head that has seen them would know them and another one cannot."""
    rng = np.random.default_rng(0)
    features, ids = rng.normal(size=(200, 400)).astype(np.float32), rng.integers(0, 2, 200)
    seen = fit_head(features, ids, ("a", "b")).probabilities(features).argmax(axis=1) == ids
    found = estimate_accuracy(features, ids, all_random(200), ("a", "b"))
    assert seen.mean() == 1.0
    assert found is not None
    assert found.low < 0.5 < found.high


def test_estimate_accuracy__holds_out_groups_as_a_whole() -> None:
    """Each image is there twice, with a label by chance: only its twin can tell the label."""
    rng = np.random.default_rng(0)
    features, ids = rng.normal(size=(100, 400)).astype(np.float32), rng.integers(0, 2, 100)
    twice, both = np.repeat(features, 2, axis=0), np.repeat(ids, 2)
    alone = estimate_accuracy(twice, both, all_random(200), ("a", "b"))
    grouped = estimate_accuracy(twice, both, all_random(200), ("a", "b"), groups=[f"g{i // 2}" for i in range(200)])
    assert alone is not None
    assert grouped is not None
    assert alone.accuracy > 0.7 > grouped.accuracy
    assert (grouped.low, grouped.high) == pytest.approx(
        wilson_interval(grouped.accuracy * 100, 100)
    )  # pairs count once
    assert grouped.more_labels_to_halve == 2 * more_to_halve(grouped.accuracy * 100, 100)


def test_estimate_accuracy__interval_contains_the_truth_in_most_cases() -> None:
    """30 sessions of 40 chosen and 40 random labels; their heads are tested on 2,000 other images."""
    inside = []
    for seed in range(30):
        features, ids = make_clouds(3, 2080, width=48, apart=0.3, seed=seed)
        own, names = slice(0, 80), ("a", "b", "c")
        found = estimate_accuracy(features[own], ids[own], np.arange(80) < 40, names, seed)
        head = fit_head(features[own], ids[own], names)
        truth = (head.probabilities(features[80:]).argmax(axis=1) == ids[80:]).mean()
        assert found is not None
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) >= 0.85  # 0.95 wanted; fewer than 26 of 30 have a probability below 0.02


def test_estimate_accuracy__unlabeled_images_fill_the_gap_around_random_ones() -> None:
    """The label of an image is that of its kind, and chosen images are of kinds without a random image.

    Where the only random image of a kind is held out, its kind is unknown, as it is for few other images.
    """
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        centers, label = rng.normal(size=(30, 256)), rng.integers(0, 2, 30)
        random = rng.integers(0, 30, 40)
        chosen = np.repeat(np.setdiff1d(np.arange(30), random), 2)
        kind = np.concatenate([random, chosen, rng.integers(0, 30, 1200)])
        features = (centers[kind] + 0.5 * rng.normal(size=(len(kind), 256))).astype(np.float32)
        own, count = slice(0, 40 + len(chosen)), 40 + len(chosen)
        unlabeled, others = features[count : count + 200], slice(count + 200, None)
        data = (features[own], label[kind[own]], np.arange(count) < 40, ("a", "b"), seed)
        head = fit_head(features[own], label[kind[own]], ("a", "b"))
        truth = (head.probabilities(features[others]).argmax(axis=1) == label[kind[others]]).mean()
        found = estimate_accuracy(*data), estimate_accuracy(*data, unlabeled=unlabeled)
        errors.append([each.accuracy - truth for each in found if each])
    alone, corrected = np.mean(errors, axis=0)
    assert alone < -0.1
    assert alone + 0.03 < corrected < 0


def test_estimate_accuracy__unlabeled_images_like_the_random_ones_change_little() -> None:
    features, ids = make_clouds(3, 1040, width=48, apart=0.3)
    alone = estimate_accuracy(features[:40], ids[:40], all_random(40), NAMES[:3])
    found = estimate_accuracy(features[:40], ids[:40], all_random(40), NAMES[:3], unlabeled=features[40:])
    assert alone is not None
    assert found is not None
    assert found.accuracy == pytest.approx(alone.accuracy, abs=0.05)  # chance alone: about 0.08 times a weight below 1
    assert (found.low, found.high) == wilson_interval(found.accuracy * 40, 40)
    assert found.n == 40


def test_estimate_accuracy__no_unlabeled_images() -> None:
    features, ids = make_clouds(3, 40, width=48, apart=0.3)
    own = features, ids, all_random(40), NAMES[:3]
    assert estimate_accuracy(*own, unlabeled=features[:0]) == estimate_accuracy(*own)


def test_corrected_share__by_hand() -> None:
    is_right, confidence = np.array([True, True, False, False]), np.array([0.8, 0.6, 0.6, 0.4])
    unlabeled = np.array([1, 1, 0.4, 0.4])
    # covariance 0.2 / 3, variance of all eight 0.46 / 8, four of each: weight 0.58 of 0.1 more confidence
    weight = 0.2 / 3 / (0.46 / 8) / (1 + 4 / 4)
    assert corrected_share(is_right, confidence, unlabeled) == pytest.approx(0.5 + weight * 0.1)


@pytest.mark.parametrize(
    ("is_right", "confidence", "unlabeled", "expected"),
    [
        ([1, 1, 0, 0], [0.8, 0.8, 0.7, 0.7], [0.9, 0.8, 0.9, 0.8], 0.6),  # weight 1: as much as the confidence differs
        ([1, 1, 0, 0], [0.6, 0.6, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9], 0.5),  # where it is wrong, it is most confident
        ([1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.6, 0.6], 1.0),  # confidence cannot tell right from wrong
        ([1, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], 0.5),
        ([1, 1, 0, 0], [0.9, 0.8, 0.7, 0.6], [], 0.5),
        ([1] * 9 + [0], [0.8] * 9 + [0.6], [1.0] * 90, 1.0),  # at most 1
    ],
)
def test_corrected_share__limits(
    is_right: list[int], confidence: list[float], unlabeled: list[float], expected: float
) -> None:
    found = corrected_share(np.array(is_right, bool), np.array(confidence), np.array(unlabeled))
    assert found == pytest.approx(expected)


def test_estimate_accuracy__too_few_random_images() -> None:
    features, ids = make_clouds(2, 40)
    assert estimate_accuracy(features, ids, np.arange(40) < 9, ("a", "b")) is None
    assert estimate_accuracy(features, ids, np.arange(40) < 10, ("a", "b")) is not None
    assert estimate_accuracy(features, ids, np.zeros(40, bool), ("a", "b")) is None


def test_estimate_accuracy__a_single_class() -> None:
    features, _ = make_clouds(1, 20)
    assert estimate_accuracy(features, np.zeros(20, np.int64), all_random(20), ("a",)) is None
    assert estimate_accuracy(features, np.zeros(20, np.int64), all_random(20), ("a", "b")) is None
    ids = np.zeros(20, np.int64)
    ids[3] = 1  # the only image of a class: without it, one class is left
    assert estimate_accuracy(features, ids, all_random(20), ("a", "b")) is None


def test_estimate_accuracy__the_only_image_of_a_class_counts_as_wrong() -> None:
    features, ids = make_clouds(2, 21, apart=6)
    ids[20] = 2
    found = estimate_accuracy(features, ids, all_random(21), ("a", "b", "c"))
    assert found is not None
    assert found.accuracy == pytest.approx(20 / 21)


def test_estimate_accuracy__is_deterministic() -> None:
    features, ids = make_clouds(4, 60, apart=0.3)
    first, second = (estimate_accuracy(features, ids, all_random(60), NAMES[:4], 7) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("hits", "count"), [(10, 10), (9, 10), (25, 50), (90, 100), (0, 20), (400, 400)])
def test_more_to_halve__is_the_smallest_number(hits: int, count: int) -> None:
    more, share = more_to_halve(hits, count), hits / count

    def width(n: int) -> float:
        low, high = wilson_interval(share * n, n)
        return high - low

    assert width(count + more) <= width(count) / 2 < width(count + more - 1)


def test_more_to_halve__about_three_times_as_many() -> None:
    assert 3 * 100 <= more_to_halve(50, 100) <= 3.2 * 100  # the width falls with the square root of the number
