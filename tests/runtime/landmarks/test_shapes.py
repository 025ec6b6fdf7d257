from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tl.runtime.landmarks.shapes import align, centroid_size, mean_shape, procrustes_distance

SQUARE = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])


def shape_of(seed: int, count: int = 6) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 10, (count, 2))


def moved(shape: NDArray[np.float64], angle: float, scale: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(scale * shape @ turn + shift)


def test_centroid_size__by_hand() -> None:
    assert centroid_size(SQUARE) == pytest.approx(np.sqrt(8))  # four corners, each sqrt(2) from the center
    assert centroid_size(np.array([[0, 0], [3, 4], [np.nan, np.nan]])) == pytest.approx(np.sqrt(2 * 2.5**2))
    assert np.isnan(centroid_size(np.full((3, 2), np.nan)))


@given(st.floats(-3, 3), st.floats(0.1, 50), st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_procrustes_distance__ignores_place_size_and_turn(
    angle: float, scale: float, shift: tuple[float, float]
) -> None:
    # float64 coordinates up to 1e3, with a shape that may be as small as 1.
    assert procrustes_distance(moved(shape_of(1), angle, scale, shift), shape_of(1)) == pytest.approx(0, abs=1e-7)


def test_procrustes_distance__by_hand_and_by_scipy() -> None:
    procrustes = pytest.importorskip("scipy.spatial", reason="the runtime alone has no scipy").procrustes
    for seed in range(5):
        a, b = shape_of(seed), shape_of(seed + 10)
        # scipy also scales the second shape and may mirror it: full against partial distance, d_full^2 = 1 - cos^2.
        full = procrustes(a, b)[2]
        cosine = 1 - procrustes_distance(a, b) ** 2 / 2
        mirrored_cosine = 1 - procrustes_distance(a * [1, -1], b) ** 2 / 2
        assert 1 - max(cosine, mirrored_cosine) ** 2 == pytest.approx(full, abs=1e-9)
    # A triangle and its mirror image differ.
    triangle = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 2.0]])
    assert procrustes_distance(triangle * [1, -1], triangle) > 0.5
    assert procrustes_distance(triangle, triangle) == pytest.approx(0, abs=1e-12)  # float64


def test_procrustes_distance__over_common_points_alone() -> None:
    shape, other = shape_of(1), shape_of(1)
    shape[0], other[3] = np.nan, (1e6, 1e6)
    other[3] = np.nan
    assert procrustes_distance(shape, other) == pytest.approx(0, abs=1e-9)  # float64
    assert np.isnan(procrustes_distance(np.where(np.arange(6)[:, None] < 2, shape_of(1), np.nan), shape_of(1)))
    assert np.isnan(procrustes_distance(np.ones((6, 2)), shape_of(1)))


def test_align__undoes_a_move() -> None:
    shape = moved(shape_of(2), 0.7, 3.0, (50, -20))
    shape[2] = np.nan
    found = align(shape, shape_of(2))
    present = ~np.isnan(shape).any(axis=1)
    np.testing.assert_allclose(found[present], shape_of(2)[present], atol=1e-9)  # float64
    assert np.isnan(found[2]).all()
    with pytest.raises(ValueError, match="2 common points"):
        align(shape[:2], shape_of(2)[:2])


def test_mean_shape__of_moved_copies_is_the_shape() -> None:
    copies = [moved(shape_of(3), angle, 1 + angle, (angle, 5)) for angle in (0.0, 0.4, 1.1)]
    copies[1][4] = np.nan
    mean = mean_shape(copies)
    assert procrustes_distance(mean, shape_of(3)) == pytest.approx(0, abs=1e-9)  # float64
    assert centroid_size(mean) == pytest.approx(1)
    np.testing.assert_allclose(mean.mean(axis=0), 0, atol=1e-12)  # float64


def test_mean_shape__a_point_that_nobody_has_is_missing() -> None:
    shapes = [np.where(np.arange(6)[:, None] == 5, np.nan, shape_of(4)) for _ in range(2)]
    assert np.isnan(mean_shape(shapes)).any(axis=1).tolist() == [False] * 5 + [True]
    with pytest.raises(ValueError, match="no shape"):
        mean_shape([np.full((6, 2), np.nan)])
