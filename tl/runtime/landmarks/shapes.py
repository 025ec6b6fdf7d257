"""Shapes of landmark configurations: size, alignment, and distance between two shapes. Pure numpy.

Operates on points (K, 2), NaN if missing.
Source: Dryden & Mardia 2016, "Statistical Shape Analysis", chapters 2 to 4 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Fewer points do not define a shape: any two match.
MIN_POINTS = 3
_ROUNDS = 20


def centroid_size(keypoints_xy: NDArray[np.floating]) -> float:
    """Return the root of the summed squared distances of the points (K, 2) to their centroid; NaN without points."""
    present = _present(keypoints_xy)
    if len(present) == 0:
        return float("nan")
    return float(np.sqrt(((present - present.mean(axis=0)) ** 2).sum()))


def procrustes_distance(keypoints_xy: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Return the distance between two shapes, regardless of position, size and rotation (but not mirroring).

    Both (K, 2); uses the points present in both. 0 for equal shapes, at most sqrt(2). NaN for fewer than three such
    points, or if all points of a shape coincide.
    The partial Procrustes distance: after centering, scaling to centroid size 1 and the best rotation.
    """
    common = ~(np.isnan(keypoints_xy).any(axis=1) | np.isnan(reference).any(axis=1))
    if common.sum() < MIN_POINTS:
        return float("nan")
    shape, wanted = _normalized(keypoints_xy[common]), _normalized(reference[common])
    if shape is None or wanted is None:
        return float("nan")
    return float(np.linalg.norm(_rotated(shape, wanted) - wanted))


def align(keypoints_xy: NDArray[np.floating], reference: NDArray[np.floating]) -> NDArray[np.float64]:
    """Translate, scale and rotate a shape (K, 2) onto another, by least squares over the points present in both.

    Missing points stay missing. Raises ValueError for fewer than three common points.
    """
    common = ~(np.isnan(keypoints_xy).any(axis=1) | np.isnan(reference).any(axis=1))
    if common.sum() < MIN_POINTS:
        raise ValueError(f"{common.sum()} common points, expected at least {MIN_POINTS}")
    given, wanted = np.asarray(keypoints_xy, np.float64), np.asarray(reference, np.float64)
    from_center, to_center = given[common].mean(axis=0), wanted[common].mean(axis=0)
    source, target = given[common] - from_center, wanted[common] - to_center
    turn, strength = _rotation(source, target)
    scale = strength / max(float((source**2).sum()), 1e-300)
    return np.asarray(scale * (given - from_center) @ turn + to_center)


def mean_shape(shapes: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return the mean of shapes (K, 2), centered, with centroid size 1; missing points are left out of the mean.

    A point missing in all shapes is NaN. Raises ValueError if no shape has at least three points.
    Source: Gower 1975, generalized Procrustes analysis.
    """
    usable = [np.asarray(shape, np.float64) for shape in shapes if len(_present(shape)) >= MIN_POINTS]
    if not usable:
        raise ValueError(f"no shape has at least {MIN_POINTS} points")
    mean = _unit(max(usable, key=lambda shape: len(_present(shape))))
    for _ in range(_ROUNDS):
        aligned = np.stack([_aligned_if_possible(shape, mean) for shape in usable])
        seen = np.all(~np.isnan(aligned), axis=2)
        count = np.maximum(seen.sum(axis=0), 1)[:, None]
        total = np.where(seen[..., None], aligned, 0.0).sum(axis=0)
        renewed = np.where(np.any(seen, axis=0, keepdims=True).T, total / count, np.nan)
        mean = _unit(renewed)
    return mean


def _aligned_if_possible(shape: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        return align(shape, mean)
    except ValueError:  # too few points in common with the initial mean shape
        return np.full_like(shape, np.nan)


def _present(keypoints_xy: NDArray[np.floating]) -> NDArray[np.float64]:
    points = np.asarray(keypoints_xy, np.float64)
    return points[~np.isnan(points).any(axis=1)]


def _unit(shape: NDArray[np.float64]) -> NDArray[np.float64]:
    present = _present(shape)
    return np.asarray((shape - present.mean(axis=0)) / centroid_size(shape))


def _normalized(points: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Return the points centered and scaled to size 1, or None if all points coincide."""
    centered = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    size = float(np.linalg.norm(centered))
    return centered / size if size > 0 else None


def _rotated(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(source @ _rotation(source, target)[0])


def _rotation(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the rotation R (2, 2), never a reflection, that makes source @ R closest to target, and trace(R^T S^T T).

    Source: Kabsch 1976; Umeyama 1991 for the sign.
    """
    u, singular, vt = np.linalg.svd(source.T @ target)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    return u * sign @ vt, float((singular * sign).sum())
