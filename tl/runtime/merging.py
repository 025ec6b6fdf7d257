"""How several members' points become one. Pure numpy.

Knows points in pixels of the photo and confidences. Does not know models, files or names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Merging = Literal["mean", "median", "confidence"]


@dataclass(frozen=True)
class Merged:
    """Points float64 (N, K, 2), their spread_px (N, K) and confidence float32 (N, K), None where members have none.

    `spread_px`: root mean square distance of the members from the merged point. `confidence`: the members' mean.
    """

    keypoints_xy: NDArray[np.float64]
    spread_px: NDArray[np.float64]
    confidence: NDArray[np.float32] | None


def merge_points(
    members_xy: NDArray[np.float64],
    merging: Merging = "mean",
    weights: Sequence[float] | None = None,
    confidence: NDArray[np.float32] | None = None,
) -> Merged:
    """Merge members' points (N, M, K, 2).

    mean: weighted mean. median: of each coordinate, unweighted. confidence: mean weighted by `confidence` (N, M, K)
    too; where all members' confidences are 0, the plain mean. `weights`: M positive numbers, None for equal ones.
    Raises ValueError for shapes, weights or a rule that do not fit.
    """
    if members_xy.ndim != 4 or members_xy.shape[3] != 2 or members_xy.shape[1] == 0:
        raise ValueError(f"members' points must be (N, M, K, 2), got {members_xy.shape}")
    given = np.ones(members_xy.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (members_xy.shape[1],) or not np.isfinite(given).all() or not (given > 0).all():
        raise ValueError(f"weights must be {members_xy.shape[1]} positive numbers, got {weights}")
    if merging == "median":
        merged = np.median(members_xy, axis=1)
    elif merging == "mean":
        merged = _weighted(members_xy, np.broadcast_to(given[None, :, None], members_xy.shape[:3]))
    elif merging == "confidence":
        if confidence is None:
            raise ValueError("merging by confidence needs members that give one")
        own = confidence.astype(np.float64)
        own = np.where(own.sum(axis=1, keepdims=True) > 0, own, 1.0)
        merged = _weighted(members_xy, own * given[None, :, None])
    else:
        raise ValueError(f"unknown merging {merging!r}: expected mean, median or confidence")
    squared = ((members_xy - merged[:, None]) ** 2).sum(axis=3)
    mean_confidence = None if confidence is None else confidence.mean(axis=1, dtype=np.float32)
    return Merged(merged, np.sqrt(squared.mean(axis=1)), mean_confidence)


def _weighted(members_xy: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    summed = (members_xy * weights[..., None]).sum(axis=1)
    return np.asarray(summed / weights.sum(axis=1)[..., None])
