"""Nearest images by cosine similarity of their features. Knows only arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.data.features import unit_length

_ROWS_AT_ONCE = 1024


def outlier_distances(features: NDArray[np.floating], neighbors: int) -> NDArray[np.float64]:
    """Cosine distance (N,) of features (N, D) to the given nearest neighbor, 0 for the same direction.

    Source: Ramaswamy, Rastogi & Shim 2000, "Efficient Algorithms for Mining Outliers from Large Data Sets", the
    distance to the k-th neighbor; Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors", the
    unit length.
    """
    directions = unit_length(features.astype(np.float32))
    distances = np.empty(len(features))
    for start in range(0, len(features), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(features)))
        likeness = directions[rows] @ directions.T
        likeness[np.arange(len(rows)), rows] = -np.inf  # an image is not its own neighbor
        distances[rows] = 1 - np.partition(likeness, -neighbors, axis=1)[:, -neighbors]
    return np.maximum(distances, 0)


def find_nearest(features: NDArray[np.floating], places: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """The `count` images (len(places), count) most similar to each of the images at `places`, most similar first.

    By cosine similarity of features (N, D); fewer if there are no more images. An image is not its own neighbor.
    """
    directions = unit_length(features.astype(np.float32))
    count = min(count, len(features) - 1)
    nearest = np.empty((len(places), max(count, 0)), np.intp)
    for start in range(0, len(places), _ROWS_AT_ONCE):
        chunk = places[start : start + _ROWS_AT_ONCE]
        likeness = directions[chunk] @ directions.T
        likeness[np.arange(len(chunk)), chunk] = -np.inf
        best = np.argpartition(-likeness, min(count, len(directions) - 1), axis=1)[:, :count]
        best = np.sort(best, axis=1)  # the earlier of equal ones first
        order = np.argsort(-np.take_along_axis(likeness, best, axis=1), axis=1, kind="stable")
        nearest[start : start + len(chunk)] = np.take_along_axis(best, order, axis=1)
    return nearest
