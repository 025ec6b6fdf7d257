"""Folds of labelled pictures, for cross-validation and for bagging: what must not be parted stays on one side.

Knows labels, groups and content hashes. Does not know pictures, features or heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError

# (training, held out) places in the pool of pictures.
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def cut_folds(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], count: int, seed: int
) -> list[Fold]:
    """Every picture is held out once, each class spread evenly; groups ('' is none) and equal files are unbroken.

    `true_ids` int64 (N,). Raises `DataError` where there are too few pictures or groups for `count` folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    tied = _inseparable(hashes, groups)
    smallest = int(np.unique(true_ids, return_counts=True)[1].min())
    is_grouped = len(set(tied)) < len(tied)
    if count > min(smallest, len(set(tied))):
        groups_too = f" and as many groups, which are {len(set(tied))}" if is_grouped else ""
        cure = "lower --folds" if smallest > 1 else "it needs more"
        raise DataError(
            f"{count} folds need as many pictures of each class{groups_too}; the smallest class has {smallest}: {cure}"
        )
    splitter = (StratifiedGroupKFold if is_grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    folds = list(splitter.split(true_ids, true_ids, tied if is_grouped else None))
    if any(len(set(true_ids[train])) < len(set(true_ids)) for train, _ in folds):
        raise DataError(f"{count} folds leave a class without training pictures: its groups are too few")
    return folds


def _inseparable(hashes: Sequence[str], groups: Sequence[str]) -> list[int]:
    """A number for each picture, the same for all that equal files or groups tie together, one by the other."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ties = [*((i, ("hash", digest)) for i, digest in enumerate(hashes))]
    ties += [(i, ("group", group)) for i, group in enumerate(groups) if group]
    nodes = {key: len(hashes) + n for n, key in enumerate(dict.fromkeys(key for _, key in ties))}
    count = len(hashes) + len(nodes)
    rows, columns = [i for i, _ in ties], [nodes[key] for _, key in ties]
    graph = coo_array((np.ones(len(ties)), (rows, columns)), shape=(count, count))
    numbers: list[int] = connected_components(graph, directed=False)[1][: len(hashes)].tolist()
    return numbers
