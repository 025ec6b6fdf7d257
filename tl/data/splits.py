"""Assign images to splits and folds: stratified by class, with groups and equal files on one side.

Opens no images and never imports torch.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.errors import DataError

# (images, fraction, seed) -> places of the images to hold out. Raises `DataError`.
HoldOut = Callable[[Sequence[LabeledImage], float, int], list[int]]


def assign_splits(
    images: Sequence[LabeledImage], val_fraction: float, seed: int, hold_out: HoldOut | None = None
) -> list[LabeledImage]:
    """Assign every image to a split. Without splits in the data, hold out `val_fraction` of each class.

    Groups stay whole. If the data has a training but no validation split, take validation images from training.
    `hold_out`: another way of choosing them. Raises `DataError`.
    """
    splits = Counter(image.split for image in images)
    if splits[""] and len(splits) > 1:
        nameless = next(image for image in images if not image.split)
        raise DataError(f"{nameless.name}: has no split, but other images do: give all images a split, or none")
    if splits["val"]:
        check_groups(images)
        if not splits["train"]:
            raise DataError("the data set has no training split")
        return list(images)
    pool = [i for i, image in enumerate(images) if image.split in ("", "train")]
    if not pool:
        raise DataError("the data set has no training split")
    held_out = {pool[i] for i in (hold_out or _held_out)([images[i] for i in pool], val_fraction, seed)}
    assigned = [
        dataclasses.replace(p, split="val" if i in held_out else "train") if p.split in ("", "train") else p
        for i, p in enumerate(images)
    ]
    check_groups(assigned)
    return assigned


def limit_per_class(images: Sequence[LabeledImage], count: int, seed: int) -> list[LabeledImage]:
    """Keep `count` training images of each class, drawn with `seed`, and all images of the other splits.

    Raises `DataError` if a class has fewer.
    """
    by_label: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        if image.split == "train":
            by_label.setdefault(image.label, []).append(i)
    short = [f"'{label}' has {len(places)}" for label, places in sorted(by_label.items()) if len(places) < count]
    if short:
        raise DataError(f"per_class {count}: too few training images: class {', '.join(short)}")
    rng = np.random.default_rng(seed)
    kept = {int(i) for _, places in sorted(by_label.items()) for i in rng.permutation(places)[:count]}
    return [image for i, image in enumerate(images) if image.split != "train" or i in kept]


def check_groups(images: Sequence[LabeledImage]) -> None:
    """Raise `DataError` for a group with images in two splits."""
    homes: dict[str, str] = {}
    for image in images:
        if image.group and homes.setdefault(image.group, image.split) != image.split:
            raise DataError(
                f"group '{image.group}' has images in both {homes[image.group]} and {image.split}, "
                f"for example {image.name}: keep each group in one split"
            )


# (training, held-out) indices in the pool of images.
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def cut_folds(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], count: int, seed: int
) -> list[Fold]:
    """Hold out every image once, with stratified classes; groups ('' is none) and equal files stay in one fold.

    `true_ids` int64 (N,). Raises `DataError` if there are too few images or groups for `count` folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    tied = inseparable(hashes, groups)
    smallest = int(np.unique(true_ids, return_counts=True)[1].min())
    is_grouped = len(set(tied)) < len(tied)
    if count > min(smallest, len(set(tied))):
        groups_too = f" and at least as many groups (found {len(set(tied))})" if is_grouped else ""
        cure = "lower folds" if smallest > 1 else "add images to it"
        raise DataError(
            f"{count} folds require at least as many images of each class{groups_too}; the smallest "
            f"class has {smallest}: {cure}"
        )
    splitter = (StratifiedGroupKFold if is_grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    folds = list(splitter.split(true_ids, true_ids, tied if is_grouped else None))
    if any(len(set(true_ids[train])) < len(set(true_ids)) for train, _ in folds):
        raise DataError(f"{count} folds leave a class without training images: it has too few groups")
    return folds


def find_folds(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], most: int, seed: int
) -> list[Fold] | None:
    """Return `cut_folds` for the largest possible number of folds up to `most`; None if two are not possible."""
    for count in range(most, 1, -1):
        with suppress(DataError):
            return cut_folds(true_ids, hashes, groups, count, seed)
    return None


def cut_parts(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], count: int, seed: int
) -> list[NDArray[np.intp]]:
    """Divide images into up to `count` parts of similar size and classes; none is empty.

    `true_ids` int64 (N,). Groups ('' is none) and equal files stay in one part. Unlike `cut_folds`, a part may lack a
    class.
    """
    tied = np.array(inseparable(hashes, groups))
    numbers, first, sizes = np.unique(tied, return_index=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    dealt = sorted(shuffled, key=lambda i: (true_ids[first[i]], -sizes[i]))  # as cards, class by class
    parts = [np.flatnonzero(np.isin(tied, numbers[dealt[start::count]])) for start in range(count)]
    return [part for part in parts if len(part)]


def inseparable(hashes: Sequence[str], groups: Sequence[str]) -> list[int]:
    """A number for each image, shared by all images connected through equal files or groups, directly or indirectly."""
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


def _held_out(images: Sequence[LabeledImage], val_fraction: float, seed: int) -> list[int]:
    by_label: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        by_label.setdefault(image.label, []).append(i)
    for label, places in by_label.items():
        if len(places) < 2:
            what = f"class '{label}' has" if label else "the data set has"
            raise DataError(f"{what} only one image: at least two are needed, for training and validation")
    if any(image.group for image in images):
        return _held_out_groups(images, val_fraction, seed)
    rng = np.random.default_rng(seed)
    held_out: list[int] = []
    for _, places in sorted(by_label.items()):
        count = min(len(places) - 1, max(1, round(len(places) * val_fraction)))
        held_out += rng.permutation(places)[:count].tolist()
    return held_out


def _held_out_groups(images: Sequence[LabeledImage], val_fraction: float, seed: int) -> list[int]:
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [image.label for image in images]
    groups = [image.group or f"\0{i}" for i, image in enumerate(images)]
    # scikit-learn allows no more folds than the largest class has images, and no more than there are groups.
    folds = min(max(2, round(1 / val_fraction)), max(Counter(labels).values()), len(set(groups)))
    if folds < 2:
        raise DataError(
            "all images belong to one group, which cannot be split: add a split column, or define more groups"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warns that a class is smaller than the number of folds
        held_out = [int(i) for i in next(iter(splitter.split(labels, labels, groups)))[1]]
    lost = set(labels) - {labels[i] for i in set(range(len(labels))) - set(held_out)}
    if lost:
        raise DataError(f"class '{min(lost)}' has too few groups for training and validation: add a split column")
    return held_out
