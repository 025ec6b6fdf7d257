"""Choose which images to label next, and find images like given ones.

Knows features and probabilities, no images and no labels' names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Share of the images on offer that are drawn at random, from the reserve.
RANDOM_SHARE = 0.2
# For the page: what chooses, and where it is from.
RULE_NAME = "smallest margin"
RULE_SOURCE = "Settles 2009, Active Learning Literature Survey"


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
    (n,) are their rows.
    """
    count = min(count, len(candidates))
    if probabilities is None:
        return np.random.default_rng(seed).permutation(candidates)[:count]
    top = np.partition(probabilities[candidates], -2, axis=1)[:, -2:]
    return candidates[np.argsort(top[:, 1] - top[:, 0], kind="stable")[:count]]


def find_similar(features: NDArray[np.float32], to: NDArray[np.intp], candidates: NDArray[np.intp]) -> NDArray[np.intp]:
    """Sort `candidates` (M,) by their mean cosine similarity to the images `to` (k,), most similar first.

    `features` (N, D) of all images are standardized first.
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    centered = (features - mean) / np.maximum(std, max(0.1 * float(std.mean()), 1e-6))
    directions = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    similarity = directions[candidates] @ directions[to].mean(axis=0)
    return candidates[np.argsort(-similarity, kind="stable")]
