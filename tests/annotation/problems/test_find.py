from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tl.annotation.problems import KINDS, Evidence, Problem, find_problems
from tl.annotation.problems.similarity import find_nearest, outlier_distances
from tl.data.audit import FEW_IMAGES
from tl.data.manifests import LabeledImage

NAMES = ("ant", "bee", "wasp")


def make_evidence(labels: Sequence[str], splits: Sequence[str] | None = None, **changes: object) -> Evidence:
    """Unlike images of which each is predicted as labeled, with a probability of 0.9."""
    count = len(labels)
    splits = splits or [""] * count
    images = tuple(
        LabeledImage(f"/x/{i}.png", f"{i}.png", label, split)
        for i, (label, split) in enumerate(zip(labels, splits, strict=True))
    )
    names = tuple(sorted({*NAMES, *labels}))
    ids = np.array([names.index(label) for label in labels], np.int64)
    probabilities = np.full((count, len(names)), 0.1 / (len(names) - 1), np.float32)
    probabilities[np.arange(count), ids] = 0.9
    evidence = Evidence(
        images=images,
        hashes=tuple(f"{i:064x}" for i in range(count)),
        features=np.random.default_rng(0).normal(size=(count, 40)).astype(np.float32),
        ids=ids,
        class_names=names,
        probabilities=probabilities,
        is_by_run=np.zeros(count, np.bool_),
    )
    return dataclasses.replace(evidence, **changes)  # type: ignore[arg-type]


def predict(evidence: Evidence, index: int, *probabilities: float) -> None:
    evidence.probabilities[index] = probabilities


LABELS = ["ant"] * 12 + ["bee"] * 12 + ["wasp"] * 12


def test_find_problems__nothing_where_all_is_well() -> None:
    found = find_problems(make_evidence(LABELS), [kind for kind in KINDS if kind != "outlier"])
    assert found == []


def test_find_problems__no_images() -> None:
    assert find_problems(make_evidence([])) == []


def test_find_problems__unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown kinds of problems: labels"):
        find_problems(make_evidence(LABELS), ["labels"])


def test_find_problems__labels_that_predictions_contradict_most_doubtful_first() -> None:
    evidence = make_evidence(LABELS)
    predict(evidence, 3, 0.04, 0.95, 0.01)
    predict(evidence, 30, 0.98, 0.01, 0.01)
    found = find_problems(evidence, ["label"])
    assert [(problem.index, problem.suggested) for problem in found] == [(30, "ant"), (3, "bee")]
    assert [problem.score for problem in found] == pytest.approx([0.99, 0.96])
    assert found[1].reason == ("labeled 'ant', to which cross-validation gives a probability of 0.04, and 'bee' 0.95")


def test_find_problems__images_without_predictions_are_not_doubted() -> None:
    evidence = make_evidence(LABELS)
    predict(evidence, 3, 0.04, 0.95, 0.01)
    predict(evidence, 7, np.nan, np.nan, np.nan)
    assert [problem.index for problem in find_problems(evidence, ["label", "error"])] == [3]
    evidence.probabilities[:] = np.nan
    assert find_problems(evidence, ["label", "error"]) == []


def test_find_problems__errors_are_those_of_the_run_most_confident_first() -> None:
    evidence = make_evidence(LABELS)
    predict(evidence, 3, 0.3, 0.6, 0.1)
    predict(evidence, 5, 0.2, 0.0, 0.8)
    predict(evidence, 6, 0.0, 0.9, 0.1)  # by cross-validation
    evidence.is_by_run[:6] = True
    found = find_problems(evidence, ["error"])
    assert [(problem.index, problem.suggested, round(problem.score, 3)) for problem in found] == [
        (5, "wasp", 0.8),
        (3, "bee", 0.6),
    ]
    assert found[0].reason == "labeled 'ant', but the model predicts 'wasp' (0.80)"


def test_find_problems__equal_files_in_two_splits_and_under_two_labels() -> None:
    evidence = make_evidence(LABELS, ["val", "train", "train"] * 12)
    hashes = list(evidence.hashes)
    hashes[3] = hashes[1]  # 1 ant train, 3 ant val
    hashes[14] = hashes[2]  # 2 ant train, 14 bee train
    evidence = dataclasses.replace(evidence, hashes=tuple(hashes))
    predict(evidence, 2, 0.1, 0.8, 0.1)
    predict(evidence, 14, 0.2, 0.7, 0.1)  # both look like bees, so the ant is doubtful
    leak, conflict = find_problems(evidence, ["duplicate"])
    assert (leak.index, leak.other, leak.suggested, leak.score) == (1, 3, None, 1)
    assert leak.reason == ("the same file as 3.png: in train here and val there, so scores are too good")
    assert (conflict.index, conflict.other, conflict.suggested) == (2, 14, "bee")
    assert conflict.reason == "the same file as 14.png: labeled 'ant' here and 'bee' there"


def test_find_problems__near_duplicates_after_equal_files() -> None:
    evidence = make_evidence(LABELS)
    evidence.features[20] = evidence.features[2] + 0.01
    evidence.features[30] = evidence.features[3]
    hashes = list(evidence.hashes)
    hashes[30] = hashes[3]
    evidence = dataclasses.replace(evidence, hashes=tuple(hashes))
    predict(evidence, 20, 0.9, 0.1, 0.0)
    equal, near = find_problems(evidence, ["duplicate"])
    assert (equal.index, equal.other, equal.score) == (3, 30, 1)
    assert (near.index, near.other, near.suggested) == (20, 2, "ant")  # the bee is the doubtful one
    assert near.reason == "nearly the same image (1.00) as 2.png: labeled 'bee' here and 'ant' there"
    assert 0.99 < near.score < 1


def test_find_problems__disagreement_of_members() -> None:
    evidence = make_evidence(LABELS)
    members = np.stack([evidence.probabilities] * 2)
    members[:, 4] = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # as much as possible: a score of 1
    members[:, 9] = [[0.6, 0.4, 0.0], [0.4, 0.6, 0.0]]
    members[:, 15] = [[0.1, 0.9, 0.0], [0.4, 0.6, 0.0]]  # the same label
    members[0, 16] = np.nan
    evidence = dataclasses.replace(evidence, members=members, member_names=("a", "b"))
    found = find_problems(evidence, ["disagreement"])
    assert [(problem.index, problem.suggested) for problem in found] == [(4, "bee"), (9, None)]
    # ln 2 - (-0.6 ln 0.6 - 0.4 ln 0.4), divided by ln 2
    assert [problem.score for problem in found] == pytest.approx([1, 0.0290494], abs=1e-5)
    assert found[0].reason == "labeled 'ant': 1 of 2 models say 'bee', 1 of 2 models say 'wasp'"


def test_find_problems__classes_with_few_training_images() -> None:
    labels = ["ant"] * FEW_IMAGES + ["bee"] * 12 + ["wasp"] * 3 + ["bees"]
    splits = ["train"] * len(labels)
    splits[FEW_IMAGES] = "val"
    found = find_problems(make_evidence(labels, splits), ["rare"])
    assert [(problem.index, problem.suggested) for problem in found] == [
        (25, "bee"),
        *((i, None) for i in (22, 23, 24)),
    ]
    assert found[0].reason == "class 'bees' has 1 training image, fewer than 10; its name resembles 'bee'"
    assert found[1].reason == "class 'wasp' has 3 training images, fewer than 10"
    assert [problem.score for problem in found] == pytest.approx([0.9, 0.7, 0.7, 0.7])


def test_find_problems__as_many_small_classes_as_images() -> None:
    names = [f"{i:05d}" for i in range(3000)]
    evidence = make_evidence(LABELS)
    images = tuple(LabeledImage(f"/x/{name}", name, name) for name in names)
    many = dataclasses.replace(
        evidence,
        images=images,
        hashes=tuple(names),
        features=np.eye(3000, 40, dtype=np.float32),
        ids=np.zeros(3000, np.int64),
        probabilities=np.full((3000, len(evidence.class_names)), np.nan, np.float32),
        is_by_run=np.zeros(3000, np.bool_),
    )
    started = time.monotonic()
    assert len(find_problems(many, ["rare"])) == 3000
    assert time.monotonic() - started < 60  # a step for each pair of images and class took minutes


def clusters(count: int) -> NDArray[np.float32]:
    """Three kinds of similar images (count, 40)."""
    centers = np.random.default_rng(1).normal(size=(3, 40))
    noise = 0.3 * np.random.default_rng(2).normal(size=(count, 40))
    return np.asarray(centers[np.arange(count) % 3] + noise, np.float32)


def test_find_problems__an_image_unlike_all_others() -> None:
    evidence = make_evidence(["ant", "bee", "wasp"] * 20, features=clusters(60))
    evidence.features[31] = np.random.default_rng(3).normal(size=40)
    first = find_problems(evidence, ["outlier"])[0]
    assert first.index == 31
    assert first.reason.startswith("less similar to its 6 nearest images than")
    assert 31 not in first.neighbors


def test_find_problems__an_outlier_of_equal_images() -> None:
    evidence = make_evidence(["ant"] * 20, features=np.ones((20, 40), np.float32))
    assert find_problems(evidence, ["outlier"]) == []
    evidence.features[7, :20] = 0
    assert [problem.index for problem in find_problems(evidence, ["outlier"])] == [7]


def test_outlier_distances__to_the_given_neighbor_by_hand() -> None:
    features = np.array([[1, 0], [2, 0], [0, 3], [1, 1]], np.float32)
    half = 1 - np.sqrt(0.5)
    assert outlier_distances(features, 1) == pytest.approx([0, 0, half, half], abs=1e-6)
    assert outlier_distances(features, 2) == pytest.approx([half, half, 1, half], abs=1e-6)


def test_find_nearest__most_similar_first_and_never_the_image_itself() -> None:
    features = np.array([[1, 0], [2, 0], [0, 3], [1, 1]], np.float32)
    assert find_nearest(features, np.array([2, 0]), 2).tolist() == [[3, 0], [1, 3]]
    assert find_nearest(features, np.array([1]), 8).tolist() == [[0, 3, 2]]
    assert find_nearest(features[:1], np.array([0]), 8).tolist() == [[]]


def test_find_problems__in_the_order_of_kinds_with_neighbors() -> None:
    evidence = make_evidence(["ant", "bee", "wasp"] * 20, features=clusters(60))
    predict(evidence, 3, 0.01, 0.98, 0.01)
    evidence.is_by_run[3] = True
    found = find_problems(evidence)
    kinds = [problem.kind for problem in found]
    assert kinds == sorted(kinds, key=list(KINDS).index)
    assert {"label", "error", "outlier"} <= set(kinds)
    doubted = found[0]
    assert doubted.reason.startswith("labeled 'ant', to which the model gives")
    assert all(neighbor % 3 == 0 for neighbor in doubted.neighbors)  # ants
    assert len(set(doubted.neighbors)) == 8


def test_find_problems__a_single_image() -> None:
    (rare,) = find_problems(make_evidence(["ant"]))
    assert rare == Problem("rare", 0, 0.9, None, None, (), "class 'ant' has 1 training image, fewer than 10")


def test_evidence__wrong_shapes_are_named() -> None:
    evidence = make_evidence(LABELS)
    with pytest.raises(ValueError, match="hashes, ids: wrong shape for 36 images and 3 classes"):
        dataclasses.replace(evidence, hashes=(), ids=evidence.ids[:3])
    with pytest.raises(ValueError, match="members: wrong shape"):
        dataclasses.replace(evidence, members=np.zeros((2, 36, 3), np.float32), member_names=("a",))
