from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tl.evaluation.label_errors import (
    calibrated_joint,
    class_thresholds,
    confident_joint,
    find_label_errors,
    normalized_margin,
    self_confidence,
)

# Two images labeled 0 look like class 0 and one like class 1, and the other way round.
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.8, 0.2]])
IDS = np.array([0, 0, 0, 1, 1, 1])


def flipped(count: int = 120, classes: int = 3) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of a fairly good model, and labels of which every tenth is wrong."""
    truth = np.arange(count) % classes
    ids = truth.copy()
    ids[::10] = (ids[::10] + 1 + (np.arange(count)[::10] // 10) % 2) % classes
    waves = 2 * np.sin(1.7 * np.arange(count * classes)).reshape(count, classes)
    shares = np.exp(waves + 3 * (truth[:, None] == np.arange(classes)))
    return shares / shares.sum(axis=1, keepdims=True), ids


def test_class_thresholds__mean_probability_of_the_images_of_a_class() -> None:
    thresholds = class_thresholds(np.hstack([PROBABILITIES, np.zeros((6, 1))]), IDS)
    assert thresholds == pytest.approx([(0.9 + 0.8 + 0.2) / 3, (0.9 + 0.7 + 0.2) / 3, np.inf])


def test_confident_joint__counts_by_hand() -> None:
    assert confident_joint(PROBABILITIES, IDS).tolist() == [[2, 1], [1, 2]]


def test_confident_joint__an_image_below_all_thresholds_counts_nowhere() -> None:
    doubtful = np.vstack([PROBABILITIES, [[0.55, 0.45]]])  # thresholds: 0.6125 and 0.6
    joint = confident_joint(doubtful, np.append(IDS, 0))
    assert joint.tolist() == [[2, 1], [1, 2]]
    # but the row of its label is scaled to four images
    assert calibrated_joint(joint, np.append(IDS, 0)) == pytest.approx(np.array([[8 / 3, 4 / 3], [1, 2]]))


def test_confident_joint__a_class_with_modest_probabilities_is_not_at_a_disadvantage() -> None:
    """All images labeled 1 have a probability of 0.4 for it: the threshold is 0.4, so they are no errors."""
    modest = np.array([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.6, 0.4]])
    ids = np.array([0, 0, 1, 1])
    assert confident_joint(modest, ids).tolist() == [[2, 0], [0, 2]]
    assert find_label_errors(modest, ids).ranked.tolist() == []


def test_confident_joint__equal_probabilities_reach_their_own_mean() -> None:
    """The mean of three times 0.7 in float32 is above 0.7."""
    equal = np.array([[0.7, 0.3]] * 3 + [[0.3, 0.7]] * 3, np.float32)
    assert confident_joint(equal, IDS).tolist() == [[3, 0], [0, 3]]


def test_calibrated_joint__a_class_that_no_image_reaches_has_no_errors() -> None:
    joint = calibrated_joint(np.array([[2, 1], [0, 0]]), IDS)
    assert joint == pytest.approx(np.array([[2.0, 1.0], [0.0, 3.0]]))


def test_confident_joint__as_cleanlab() -> None:
    """cleanlab 2.9.0: compute_confident_joint(calibrate=False)."""
    assert confident_joint(*flipped()).tolist() == [[22, 2, 1], [1, 20, 2], [3, 1, 22]]


def test_find_label_errors__as_cleanlab() -> None:
    """cleanlab 2.9.0: find_label_issues(filter_by="prune_by_class", return_indices_ranked_by="self_confidence")."""
    found = find_label_errors(*flipped())
    assert found.ranked.tolist() == [50, 70, 30, 100, 90, 80, 110, 10, 60, 40, 12, 81, 68, 89, 0]


def test_find_label_errors__names_the_two_wrong_labels() -> None:
    found = find_label_errors(PROBABILITIES, IDS)
    assert found.ranked.tolist() == [2, 5]
    assert found.suggested.tolist() == [0, 0, 1, 1, 1, 0]
    assert found.quality == pytest.approx([0.9, 0.8, 0.2, 0.9, 0.7, 0.2])
    assert found.noise_rate == pytest.approx(2 / 6)


def test_find_label_errors__ranks_the_least_probable_label_first() -> None:
    probabilities = PROBABILITIES.copy()
    probabilities[5] = [0.95, 0.05]
    assert find_label_errors(probabilities, IDS).ranked.tolist() == [5, 2]


def test_find_label_errors__none_where_the_model_agrees_with_all_labels() -> None:
    found = find_label_errors(PROBABILITIES, PROBABILITIES.argmax(axis=1))
    assert found.ranked.tolist() == []
    assert found.noise_rate == pytest.approx(0)


def test_find_label_errors__ids_without_images_and_no_images() -> None:
    wider = np.hstack([PROBABILITIES, np.zeros((6, 2))])
    assert find_label_errors(wider, IDS).ranked.tolist() == [2, 5]
    empty = find_label_errors(np.zeros((0, 2)), np.zeros(0, np.int64))
    assert (empty.ranked.tolist(), empty.noise_rate) == ([], 0)


def test_quality__by_hand() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
    ids = np.array([0, 2])
    assert self_confidence(probabilities, ids) == pytest.approx([0.5, 0.2])
    assert normalized_margin(probabilities, ids) == pytest.approx([(0.5 - 0.3 + 1) / 2, (0.2 - 0.7 + 1) / 2])


@pytest.mark.parametrize(
    ("probabilities", "ids", "fault"),
    [
        (PROBABILITIES, IDS[:5], "expected probabilities"),
        (PROBABILITIES[:, :1], IDS, "two or more classes"),
        (np.full((6, 2), np.nan), IDS, "finite"),
        (PROBABILITIES, IDS + 1, "ids must be 0 to 1, found 1 to 2"),
    ],
)
def test_find_label_errors__wrong_inputs(
    probabilities: NDArray[np.float64], ids: NDArray[np.int64], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        find_label_errors(probabilities, ids)
