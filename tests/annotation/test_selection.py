from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.annotation.features import make_clouds
from tl.annotation.selection import choose_images, find_similar, margins

NONE = np.empty(0, np.intp)


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(2, 60),
    count=st.integers(0, 30),
    labeled=st.integers(0, 10),
    seed=st.integers(0, 3),
    has_head=st.booleans(),
    repeats=st.booleans(),
)
def test_choose_images__returns_candidates_none_twice(
    total: int, count: int, labeled: int, seed: int, has_head: bool, repeats: bool
) -> None:
    rng = np.random.default_rng(seed)
    features, _ = make_clouds(3, total)
    if repeats:
        features = features[rng.integers(0, max(total // 4, 1), total)]
    probabilities = rng.dirichlet(np.ones(3), total).astype(np.float32) if has_head else None
    order = rng.permutation(total)
    known, candidates = order[:labeled], order[labeled:]
    chosen = choose_images(features, probabilities, candidates, known, count, seed)
    assert len(chosen) == min(count, len(candidates))
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(candidates.tolist())
    again = choose_images(features, probabilities, candidates, known, count, seed)
    assert chosen.tolist() == again.tolist()


def test_choose_images__without_a_head_one_of_each_cluster() -> None:
    features, ids = make_clouds(6, 300, apart=6)
    chosen = choose_images(features, None, np.arange(300), NONE, 6, 0)
    assert sorted(ids[chosen].tolist()) == [0, 1, 2, 3, 4, 5]


def test_choose_images__without_a_head_typical_ones() -> None:
    """Two dense clusters and two lone images far away: the first choices are of the clusters."""
    features, _ = make_clouds(2, 200, apart=6)
    features[:2] = np.random.default_rng(1).normal(size=(2, features.shape[1])) * 40
    chosen = choose_images(features, None, np.arange(200), NONE, 2, 0)
    assert not set(chosen.tolist()) & {0, 1}


def test_choose_images__without_a_head_other_clusters_than_the_labeled_ones() -> None:
    features, ids = make_clouds(4, 200, apart=6)
    labeled = np.flatnonzero(ids < 2)[:10]
    candidates = np.setdiff1d(np.arange(200), labeled)
    chosen = choose_images(features, None, candidates, labeled, 2, 0)
    assert sorted(ids[chosen].tolist()) == [2, 3]


def test_choose_images__with_a_head_only_uncertain_ones() -> None:
    """Of 100 images, 20 have a margin of 0.1 and the others of 0.8: two of those 20 are chosen."""
    features, _ = make_clouds(2, 100)
    probabilities = np.tile(np.array([0.9, 0.1], np.float32), (100, 1))
    uncertain = np.arange(0, 100, 5)
    probabilities[uncertain] = 0.55, 0.45
    chosen = choose_images(features, probabilities, np.arange(100), NONE, 2, 0)
    assert set(chosen.tolist()) <= set(uncertain.tolist())


def test_choose_images__with_a_head_different_ones_of_the_uncertain() -> None:
    """Nine in ten of the uncertain images are copies of one image; only one of these is chosen."""
    features, ids = make_clouds(3, 60, apart=6)
    features[ids == 0] = features[0]
    probabilities = np.full((60, 2), 0.5, np.float32)
    chosen = choose_images(features, probabilities, np.arange(60), NONE, 3, 0)
    assert sorted(ids[chosen].tolist()) == [0, 1, 2]


def test_choose_images__most_uncertain_first() -> None:
    features, _ = make_clouds(4, 40, apart=6)
    first = np.linspace(0.5, 0.9, 40, dtype=np.float32)
    probabilities = np.stack([first, 1 - first], axis=1)
    chosen = choose_images(features, probabilities, np.arange(40), NONE, 4, 0)
    assert chosen.tolist() == sorted(chosen.tolist())


def test_choose_images__fewer_candidates_than_asked_for() -> None:
    features, _ = make_clouds(2, 10)
    probabilities = np.full((10, 2), 0.5, np.float32)
    assert sorted(choose_images(features, probabilities, np.array([3, 4]), NONE, 5, 0).tolist()) == [3, 4]
    assert choose_images(features, probabilities, NONE, NONE, 5, 0).tolist() == []


def test_choose_images__many_candidates() -> None:
    features, ids = make_clouds(5, 12_000, apart=6)
    chosen = choose_images(features, None, np.arange(12_000), NONE, 5, 0)
    assert sorted(ids[chosen].tolist()) == [0, 1, 2, 3, 4]


def test_choose_images__leaves_its_arguments_alone() -> None:
    features, _ = make_clouds(2, 30)
    probabilities = np.full((30, 2), 0.5, np.float32)
    candidates, copies = np.arange(30), (features.copy(), probabilities.copy())
    choose_images(features, probabilities, candidates, NONE, 5, 0)
    assert candidates.tolist() == list(range(30))
    np.testing.assert_array_equal(features, copies[0])
    np.testing.assert_array_equal(probabilities, copies[1])


def test_margins__of_the_two_highest() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32)
    np.testing.assert_allclose(margins(probabilities), [0.2, 0.7], atol=1e-6)


def test_find_similar__by_angle_of_standardized_features() -> None:
    """Mean (0, 0), deviations equal: (1, 0) is most like (5, 1), then (1, 1), (0, 2), (-3, 0)."""
    features = np.array([[5, 1], [1, 1], [0, 2], [-3, 0], [1, 0], [-4, -4]], np.float32)
    features = features - features.mean(axis=0) + 7
    centered = (features - features.mean(axis=0)) / features.std(axis=0)
    angles = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    wanted = sorted([0, 1, 2, 3, 5], key=lambda i: -float(angles[i] @ angles[4]))
    # The scales are measured on the candidates, so all images are candidates.
    found = find_similar(features, np.array([4]), np.arange(6)).tolist()
    assert found[0] == 4
    assert found[1:] == wanted


@pytest.mark.parametrize("to", [[0], [0, 4], [0, 4, 8]])
def test_find_similar__images_of_the_same_cluster_first(to: list[int]) -> None:
    features, ids = make_clouds(4, 4000, apart=2)
    candidates = np.setdiff1d(np.arange(4000), to)
    found = find_similar(features, np.array(to), candidates)
    assert sorted(found.tolist()) == candidates.tolist()
    assert (ids[found[: 1000 - len(to)]] == 0).mean() > 0.97


def test_find_similar__nothing_to_find() -> None:
    features, _ = make_clouds(2, 10)
    assert find_similar(features, np.array([1]), NONE).tolist() == []
    assert find_similar(features, NONE, np.array([3, 1])).tolist() == [3, 1]
