"""Divide images with several labels each into parts that have equal shares of every label. Opens no images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_parts(
    labels: NDArray[np.bool_], tied: Sequence[int], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """The part (N,) of each image, of `len(shares)` parts with these shares of the images and of each label.

    `labels` bool (N, C). `tied` (N,): images with the same number stay in one part. The images of the rarest label are
    dealt first, each to the part that lacks the most of it.

    Source: Sechidis, Tsoumakas & Vlahavas 2011, "On the Stratification of Multi-Label Data", with whole groups.
    """
    _, unit_of = np.unique(np.asarray(tied), return_inverse=True)
    sizes = np.bincount(unit_of)
    counts = np.zeros((len(sizes), labels.shape[1]))
    np.add.at(counts, unit_of, labels)
    wanted, room = np.outer(shares, counts.sum(axis=0)), np.asarray(shares) * len(labels)
    rng = np.random.default_rng(seed)
    order, part_order = rng.permutation(len(sizes)), rng.permutation(len(shares)).tolist()
    parts = np.full(len(sizes), -1)

    def deal(unit: int, lacks: NDArray[np.float64]) -> None:
        part = max(part_order, key=lambda k: (round(float(lacks[k]), 6), room[k]))
        parts[unit] = part
        wanted[part] -= counts[unit]
        room[part] -= sizes[unit]

    while len(waiting := order[parts[order] < 0]):
        left = counts[waiting].sum(axis=0)
        if not left.any():
            for unit in sorted(waiting.tolist(), key=lambda u: -sizes[u]):
                deal(unit, room)
            break
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        having = waiting[counts[waiting, rarest] > 0].tolist()
        for unit in sorted(having, key=lambda u: -counts[u, rarest]):
            deal(unit, wanted[:, rarest])
    return parts[unit_of]
