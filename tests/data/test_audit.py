from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from tests.trainer.make import make_images
from tl.data import audit
from tl.data.audit import (
    FEW_IMAGES,
    NEAR_DUPLICATE,
    Finding,
    equal_pairs,
    find_class_faults,
    find_duplicates,
    find_imbalance,
    find_near_duplicates,
    near_pairs,
    summarize,
)
from tl.data.manifests import LabeledImage


def in_splits(**counts: int) -> list[LabeledImage]:
    """Images of class a, with the given count per split, named SPLIT-NUMBER."""
    return [
        LabeledImage(f"/x/{split}-{i}", f"{split}-{i}", "a", split)
        for split, count in counts.items()
        for i in range(count)
    ]


def hashes_of(count: int) -> list[str]:
    return [f"{i:064x}" for i in range(count)]


def pairs(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.path, finding.other) for finding in findings]


def test_find_class_faults__thin_classes_of_training() -> None:
    images = [
        *make_images(["Käfer"] * FEW_IMAGES + ["worm"] * (FEW_IMAGES - 1), "train"),
        *make_images(["Käfer", "worm"] * 20, "val"),  # validation images are not training images
    ]
    (finding,) = find_class_faults(images, ("Käfer", "worm"))
    assert finding == Finding("few images", "", "", f"class 'worm' has {FEW_IMAGES - 1} training images")


def test_find_class_faults__a_split_that_lacks_a_class() -> None:
    many = make_images(["a", "b", "c"] * FEW_IMAGES, "train")
    findings = find_class_faults([*many, *make_images(["a", "b"], "val")], ("a", "b", "c"))
    assert [(finding.kind, finding.detail) for finding in findings] == [
        ("no images", "split val has no images of class 'c', so that class is not evaluated")
    ]
    both = [*many, *make_images(["a", "c"], "val"), *make_images(["b"], "test")]
    details = [finding.detail for finding in find_class_faults(both, ("a", "b", "c"))]
    assert [detail.split(",")[0] for detail in details] == [
        "split val has no images of class 'b'",
        "split test has no images of class 'a'",
        "split test has no images of class 'c'",
    ]


def test_find_class_faults__a_split_that_is_not_there_lacks_nothing() -> None:
    images = [*make_images(["a", "b"] * FEW_IMAGES, "train"), *make_images(["a", "b"], "val")]
    assert find_class_faults(images, ("a", "b")) == []


def test_find_imbalance__names_the_rarest_and_the_largest_class() -> None:
    def found(**counts: int) -> list[Finding]:
        return find_imbalance(
            make_images([name for name, n in counts.items() for _ in range(n)], "train"), "weigh them"
        )

    assert found(a=36, b=36, c=8) == found() == []
    (finding,) = found(a=36, b=35, rare=5)
    assert (finding.kind, finding.path) == ("imbalanced classes", "")
    assert finding.detail == "class 'rare' has 5 training images, class 'a' 36: weigh them"
    (finding,) = found(a=36, b=7, rare=5)
    assert "'a' 36 (1 more classes are as rare): weigh them" in finding.detail
    held_out = make_images(["a"] * 36 + ["b"] * 5, "val")
    assert find_imbalance(held_out, "") == []


def test_find_duplicates__across_splits_and_labels() -> None:
    images = [
        LabeledImage("/x/0", "0", "a", "train"),
        LabeledImage("/x/1", "1", "a", "train"),  # same as 0, which is allowed
        LabeledImage("/x/2", "2", "a", "val"),  # same as 0: leakage
        LabeledImage("/x/3", "3", "b", "train"),  # same as 0: different label
        LabeledImage("/x/4", "4", "b", "test"),  # same as 0: both
        LabeledImage("/x/5", "5", "a", "val"),  # unique
    ]
    findings = find_duplicates(images, ["h", "h", "h", "h", "h", "other"])
    assert [(finding.kind, finding.path, finding.other) for finding in findings] == [
        ("duplicate across splits", "0", "2"),
        ("labels disagree", "0", "3"),
        ("labels disagree", "0", "4"),
        ("duplicate across splits", "0", "4"),
    ]
    assert findings[0].detail == "identical files in train and val"
    assert findings[1].detail == "identical files are labeled 'a' and 'b'"


def test_find_duplicates__conflicting_labels_in_any_order() -> None:
    images = make_images(["b", "a", "c"], "train")
    findings = find_duplicates(images, ["h", "g", "h"])
    assert [(finding.kind, finding.detail) for finding in findings] == [
        ("labels disagree", "identical files are labeled 'b' and 'c'")
    ]


def test_find_duplicates__none() -> None:
    assert find_duplicates(in_splits(train=3, val=3), hashes_of(6)) == []
    assert find_duplicates([], []) == []


def make_embeddings(train: int, others: int, width: int = 64) -> NDArray[np.float32]:
    """Dissimilar images, with entries of very different scales and offsets."""
    rng = np.random.default_rng(0)
    sizes, offsets = np.exp(rng.normal(size=width)), 5 * rng.normal(size=width)
    return (offsets + sizes * rng.normal(size=(train + others, width))).astype(np.float32)


def test_find_near_duplicates__unlike_images_are_left_alone() -> None:
    assert find_near_duplicates(in_splits(train=80, val=20), hashes_of(100), make_embeddings(80, 20)) == []


def test_find_near_duplicates__mirrored_and_rescaled_ones_are_found() -> None:
    embeddings = make_embeddings(80, 20)
    spread, mean = embeddings[:80].std(axis=0), embeddings[:80].mean(axis=0)
    noise = np.random.default_rng(1).normal(size=64)
    embeddings[85] = embeddings[7] + 0.2 * spread * noise  # mirrored: mostly equal
    embeddings[99] = mean + 0.5 * (embeddings[40] - mean)  # scaled down: the same direction, smaller
    embeddings[90] = mean - (embeddings[12] - mean)  # the opposite direction is not similar
    findings = find_near_duplicates(in_splits(train=80, val=10, test=10), hashes_of(100), embeddings)
    assert pairs(findings) == [("train-7", "val-5"), ("train-40", "test-9")]
    assert {finding.kind for finding in findings} == {"near duplicate across splits"}
    assert findings[1].detail == "similar images (1.000) in train and test"


def test_find_near_duplicates__ignores_training_pairs_and_identical_files() -> None:
    embeddings = make_embeddings(80, 20)
    embeddings[3] = embeddings[4]
    embeddings[81] = embeddings[82]
    embeddings[90] = embeddings[9]
    hashes = hashes_of(100)
    hashes[90] = hashes[9]
    assert find_near_duplicates(in_splits(train=80, val=20), hashes, embeddings) == []


@pytest.mark.parametrize("rows_at_once", [1, 7, 1024])
def test_find_near_duplicates__equal_a_plain_computation(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(audit, "_ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(2)
    embeddings = make_embeddings(50, 30, 6)  # so few entries that many pairs are similar
    order = rng.permutation(80)  # splits in random order
    images = in_splits(train=50, val=30)
    images, embeddings = [images[i] for i in order], embeddings[order]
    train = [i for i, image in enumerate(images) if image.split == "train"]
    others = [i for i, image in enumerate(images) if image.split == "val"]
    exact = embeddings.astype(np.float64)
    standardized = (exact - exact[train].mean(axis=0)) / exact[train].std(axis=0)
    cosines = 1 - cdist(standardized[others], standardized[train], "cosine")
    assert np.abs(cosines - NEAR_DUPLICATE).min() > 1e-5  # so that float32 gives the same decisions
    alike = [(i, int(cosines[i].argmax())) for i in range(len(others)) if cosines[i].max() > NEAR_DUPLICATE]
    wanted = [(images[train[j]].name, images[others[i]].name) for i, j in alike]
    assert len(wanted) > 10
    assert pairs(find_near_duplicates(images, hashes_of(80), embeddings)) == wanted


def test_find_near_duplicates__entries_without_spread_in_training_do_not_hide_one() -> None:
    embeddings = make_embeddings(80, 20)
    embeddings[85] = embeddings[7]
    embeddings[:80, :30] = 1.0  # dead channels with slight variation in validation images
    embeddings[80:, :30] = 1.0 + 1e-4 * np.random.default_rng(0).normal(size=(20, 30))
    assert pairs(find_near_duplicates(in_splits(train=80, val=20), hashes_of(100), embeddings)) == [
        ("train-7", "val-5")
    ]


def test_find_near_duplicates__identical_embeddings_are_ignored() -> None:
    # A trunk with constant output has no direction; the division must not warn either.
    assert find_near_duplicates(in_splits(train=4, val=3), hashes_of(7), np.ones((7, 5), np.float32)) == []


@pytest.mark.parametrize("splits", [{"train": 5}, {"train": 2, "val": 1}])
def test_find_near_duplicates__smallest_sets(splits: dict[str, int]) -> None:
    count = sum(splits.values())
    embeddings = make_embeddings(count, 0)
    assert find_near_duplicates(in_splits(**splits), hashes_of(count), embeddings) == []


def test_equal_pairs__two_splits_or_two_labels() -> None:
    images = [*in_splits(train=2, val=1), LabeledImage("/x/b", "b", "b", "train"), *in_splits(train=1)]
    assert equal_pairs(images, ["h"] * 4 + ["other"]) == [(0, 2), (0, 3)]  # 1 has the split and label of 0
    assert equal_pairs(images, hashes_of(5)) == []


def test_near_pairs__two_splits_or_two_labels_once_each() -> None:
    images = in_splits(train=60, val=20, test=20)
    images[5] = LabeledImage("/x/b", "b", "b", "train")
    embeddings = make_embeddings(60, 40)
    for copy, original in ((85, 62), (70, 3), (5, 4), (8, 9), (30, 31)):
        embeddings[copy] = embeddings[original]
    hashes = hashes_of(100)
    hashes[30], images[30] = hashes[31], LabeledImage("/x/c", "c", "b", "train")
    found = near_pairs(images, hashes, embeddings)
    # test and val, val and train, two labels; not 8 and 9 of one split and label, nor 30 and 31 of equal content
    assert sorted((i, j) for i, j, _ in found) == [(3, 70), (4, 5), (62, 85)]
    assert [similarity for *_, similarity in found] == pytest.approx([1, 1, 1], abs=1e-5)


def test_near_pairs__without_splits_only_labels_count() -> None:
    images = make_images(["a", "b"] * 40)
    embeddings = make_embeddings(80, 0)
    embeddings[7], embeddings[9] = embeddings[4], embeddings[11]
    assert [(i, j) for i, j, _ in near_pairs(images, hashes_of(80), embeddings)] == [(4, 7)]


def test_near_pairs__no_images() -> None:
    assert near_pairs([], [], np.zeros((0, 5), np.float32)) == []


def test_summarize__a_line_a_kind_with_count_and_first_example() -> None:
    findings = [
        Finding("labels disagree", "ä/0.png", "b/1.png", "identical files are labeled 'ä' and 'b'"),
        Finding("few images", "", "", "class 'a' has 3 training images"),
        Finding("few images", "", "", "class 'b' has 4 training images"),
        Finding("few images", "", "", "class 'c' has 5 training images"),
    ]
    assert summarize(findings, " in findings.csv") == [
        "warning: labels disagree: ä/0.png and b/1.png: identical files are labeled 'ä' and 'b'",
        "warning: few images: class 'a' has 3 training images (and 2 more in findings.csv)",
    ]
    assert summarize([]) == []
