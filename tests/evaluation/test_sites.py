from __future__ import annotations

import numpy as np
import pytest

from tl.data.manifests import LabeledImage
from tl.evaluation.sites import MAX_SITES, score_sites, site_folds, sites_of

SITES = ["a", "a", "b", "b", "b", ""]
RIGHT = np.array([True, False, True, True, True, False])


def test_score_sites__lowest_first_and_without_images_of_no_site() -> None:
    first, second = score_sites(SITES, RIGHT, np.array([1.0, 0.0, np.nan, 1.0, 1.0, np.nan]))
    assert (first.site, first.n, first.top1_accuracy, first.left_out_top1_accuracy) == ("a", 2, 0.5, 0.5)
    assert (second.site, second.n, second.top1_accuracy, second.left_out_top1_accuracy) == ("b", 3, 1.0, None)
    assert (first.ci_low, first.ci_high) == pytest.approx((0.0945, 0.9055), abs=1e-4)  # Wilson, 1 of 2


def test_score_sites__one_site_is_no_comparison() -> None:
    assert score_sites(["a", "a", ""], RIGHT[:3]) == []


def test_site_folds__each_site_once_unless_a_class_is_nowhere_else() -> None:
    folds = site_folds(SITES, np.array([0, 1, 0, 1, 0, 0]))
    assert [(rest.tolist(), held.tolist()) for rest, held in folds] == [([2, 3, 4, 5], [0, 1]), ([0, 1, 5], [2, 3, 4])]
    assert [held.tolist() for _, held in site_folds(SITES, np.array([0, 0, 0, 1, 1, 0]))] == [[0, 1]]
    assert site_folds(["a"] * 6, np.array([0, 1, 0, 1, 0, 0])) == []
    many = [str(i) for i in range(2 * (MAX_SITES + 1))]
    assert site_folds(many, np.arange(len(many)) % 2) == []


@pytest.mark.parametrize(
    ("sites", "groups", "expected"),
    [
        (["a", "", "b"], ["1", "2", "3"], ["a", "", "b"]),  # a group never stands for a site beside sites
        ([""] * 20, ["1", "2"] * 10, ["1", "2"] * 10),
        ([""] * 18, ["1", "2"] * 9, [""] * 18),  # specimens
        ([""] * 20, ["1"] * 20, [""] * 20),
    ],
)
def test_sites_of__groups_only_where_they_can_be_sites(
    sites: list[str], groups: list[str], expected: list[str]
) -> None:
    given = enumerate(zip(sites, groups, strict=True))
    images = [LabeledImage(f"{i}", f"{i}", "a", group=group, site=site) for i, (site, group) in given]
    assert sites_of(images) == expected


def test_sites_of__neither_sequences_nor_images_with_many_boxes() -> None:
    bursts = [LabeledImage(f"{i}", f"{i}", "a", group=f"{i % 2}", sequence=f"{i % 2}") for i in range(20)]
    boxes = [LabeledImage(f"{i % 2}", f"{i % 2}", "a", group=f"{i % 2}") for i in range(20)]
    assert sites_of(bursts) == sites_of(boxes) == [""] * 20
