"""Choose which images to label next, and find images like given ones.

Knows features and probabilities, no images and no names of classes. Depends on scikit-learn, never on torch.
benchmarks/RESULTS.md, "Labeling", compares this rule with others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tl.data.features import directions, standard_scale

# Share of the images on offer that are drawn at random, from the reserve.
RANDOM_SHARE = 0.2
RULE_NAME = "uncertain and different images first"
RULE_SOURCE = (
    "k-means of the images with the smallest margins (Zhdanov 2019, Diverse mini-batch Active Learning); before there "
    "is a head, typical images of clusters (Hacohen et al. 2022, Active Learning on a Budget)"
)
# Images with the smallest margins among which different ones are chosen, for each one that is wanted.
_UNCERTAIN_PER_IMAGE = 10
# More images say no more about clusters and about the scales of features, and take longer.
_MAX_CLUSTERED, _MAX_MEASURED = 2048, 4096
# Neighbors that say how typical an image is, as in TypiClust.
_NEIGHBORS = 20
_ROWS_AT_ONCE = 1024


def choose_images(
    features: NDArray[np.float32],
    probabilities: NDArray[np.float32] | None,
    candidates: NDArray[np.intp],
    labeled: NDArray[np.intp],
    count: int,
    seed: int,
) -> NDArray[np.intp]:
    """Choose up to `count` of the `candidates` to label next, best first, none twice. Deterministic for a seed.

    `features` (N, D) and `probabilities` (N, C) of all images, None without a head; `candidates` (M,) and `labeled`
    (n,) are their rows. Without a head, the candidates are 2,048 at most, drawn at random.

    Source: Zhdanov 2019 with a head, TypiClust (Hacohen et al. 2022) without.
    """
    count = min(count, len(candidates))
    if count == 0:
        return np.empty(0, np.intp)
    with threadpool_limits(1):  # as in `learner`
        if probabilities is None or probabilities.shape[1] < 2:
            return _typical(features, candidates, labeled, count, seed)
        return _uncertain(features, probabilities, candidates, count, seed)


def find_similar(features: NDArray[np.float32], to: NDArray[np.intp], candidates: NDArray[np.intp]) -> NDArray[np.intp]:
    """Sort `candidates` (M,) by their mean cosine similarity to the images `to` (k,), most similar first.

    `features` (N, D) are standardized first.
    """
    if len(candidates) == 0 or len(to) == 0:
        return candidates.copy()
    scale = _scale(features, candidates)
    wanted = directions(features[to], scale).mean(axis=0)
    similarity = np.empty(len(candidates), np.float32)
    with threadpool_limits(1):
        for start in range(0, len(candidates), _ROWS_AT_ONCE):
            rows = candidates[start : start + _ROWS_AT_ONCE]
            similarity[start : start + len(rows)] = directions(features[rows], scale) @ wanted
    return candidates[np.argsort(-similarity, kind="stable")]


def margins(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Differences (N,) of the two highest of probabilities (N, C)."""
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _uncertain(
    features: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    candidates: NDArray[np.intp],
    count: int,
    seed: int,
) -> NDArray[np.intp]:
    """The image nearest to each center of k-means, weighted by uncertainty, of those with the smallest margins."""
    margin = margins(probabilities[candidates])
    order = np.argsort(margin, kind="stable")[: _UNCERTAIN_PER_IMAGE * count]
    near, uncertainty = candidates[order], 1 - margin[order] + 1e-6
    if len(near) <= count:
        return near
    x = directions(features[near], _scale(features, candidates))
    clusters, centers = _k_means(x, count, seed, uncertainty)
    closeness = (x * centers[clusters]).sum(axis=1)
    chosen = [rows[closeness[rows].argmax()] for rows in _members(clusters)]
    return near[_filled(sorted(chosen), len(near), count)]


def _typical(
    features: NDArray[np.float32], candidates: NDArray[np.intp], labeled: NDArray[np.intp], count: int, seed: int
) -> NDArray[np.intp]:
    """The image that is nearest to its neighbors, of each of the largest clusters without a labeled image."""
    rng = np.random.default_rng(seed)
    some = candidates
    if len(candidates) > max(_MAX_CLUSTERED, count):
        some = np.sort(rng.permutation(candidates)[: max(_MAX_CLUSTERED, count)])
    known = labeled[: _MAX_CLUSTERED // 4]
    x = directions(features[np.concatenate([some, known])], _scale(features, some))
    clusters, _ = _k_means(x, min(count + len(known), len(x)), seed, None)
    covered = set(clusters[len(some) :].tolist())
    groups = sorted(_members(clusters[: len(some)]), key=lambda rows: (clusters[rows[0]] in covered, -len(rows)))
    chosen = [rows[_typicality(x[rows]).argmax()] for rows in groups]
    return some[_filled(chosen, len(some), count)]


def _typicality(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean similarity (N,) of each direction of (N, D) to the nearest of the others."""
    similarity, nearest = x @ x.T, min(_NEIGHBORS, len(x) - 1)
    return np.asarray(-np.partition(-similarity, nearest, axis=1)[:, : nearest + 1].mean(axis=1))


def _k_means(
    x: NDArray[np.float32], count: int, seed: int, weights: NDArray[np.floating] | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The cluster (N,) of each row of (N, D), and the centers (K, D)."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        model = KMeans(count, n_init=1, max_iter=100, random_state=seed).fit(x, sample_weight=weights)
    return model.labels_, model.cluster_centers_


def _members(clusters: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """The rows of each cluster that has some."""
    return [np.flatnonzero(clusters == c) for c in np.unique(clusters)]


def _filled(chosen: list[np.intp], total: int, count: int) -> NDArray[np.intp]:
    """The first `count` of `chosen`, filled up with the first other ones of `total` rows."""
    rest = np.setdiff1d(np.arange(total), chosen)
    return np.concatenate([np.array(chosen, np.intp), rest])[:count].astype(np.intp)


def _scale(features: NDArray[np.float32], rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scale of the features, measured on evenly spaced ones of `rows`."""
    return standard_scale(features[rows[:: max(1, -(-len(rows) // _MAX_MEASURED))]])
