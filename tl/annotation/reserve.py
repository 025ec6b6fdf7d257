"""Draw the images that are labeled blind, in random order, so that an honest accuracy can be estimated from them.

The order of an image is a hash of a seed and its name. Photos that are added later are reserved with the same
probability; they come behind the others, so that the images that were labeled before remain a random sample.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.annotation.photos import Photos

MOST, LEAST, SHARE = 400, 50, 0.15


def reserve_size(num_images: int) -> int:
    """Return how many of `num_images` images are reserved."""
    return min(MOST, max(LEAST, round(SHARE * num_images)), num_images // 2)


def order_keys(photos: Photos, seed: int) -> list[str]:
    """Return the key of each image; sorted by it, images are in random order. Images of one group stay together."""
    keys: dict[str, str] = {}
    ordered = []
    for i, name in enumerate(photos.names):
        group = photos.group(i)
        if not group:
            ordered.append(_hash(seed, name))
            continue
        if group not in keys:
            keys[group] = _hash(seed, group + "/")
        ordered.append(keys[group] + _hash(seed, name))
    return ordered


def with_groups(photos: Photos, names: Collection[str]) -> set[int]:
    """Return the images of these names, which may be gone, together with all others of their groups."""
    images = {photos.index[name] for name in names if name in photos.index}
    if not photos.has_groups:
        return images
    groups = {photos.group_of(name) for name in names} - {""}
    return images | {i for i in range(len(photos)) if photos.group(i) in groups}


@dataclass(frozen=True)
class Draw:
    """Which images are reserved: those with a key up to `limit`, "" for none, but for groups with a key in `passed`."""

    limit: str = ""
    passed: tuple[str, ...] = ()


def draw_reserve(photos: Photos, seed: int, labeled: Collection[int] = ()) -> Draw:
    """Draw the images to reserve. `labeled`: images that have a label already.

    Groups are reserved as a whole, and at most half of the images are: a group that is too large is passed over.
    """
    keys = order_keys(photos, seed)
    sizes = Counter(keys[i][:_LENGTH] for i in range(len(photos)) if i not in labeled)
    free, count = sizes.total(), 0
    limit, passed = "", list[str]()
    for key, size in sorted(sizes.items()):
        if count >= reserve_size(free):
            break
        if count + size > free // 2:
            passed.append(key)
        else:
            limit, count = key, count + size
    return Draw(limit, tuple(key for key in passed if key < limit))


def reserved_images(
    photos: Photos, seed: int, draw: Draw, labeled: Collection[int] = (), drawn: Sequence[str] = ()
) -> NDArray[np.intp]:
    """Return the reserved images in random order. `labeled`: as when they were drawn.

    `drawn`: names of those that earlier calls have returned, in this order; images that are new come behind them.
    """
    before = [photos.index[name] for name in drawn if name in photos.index]
    if not draw.limit:
        return np.array(before, np.intp)
    keys, excluded = order_keys(photos, seed), {*before, *labeled}
    new = [
        i
        for i, key in enumerate(keys)
        if key[:_LENGTH] <= draw.limit and key[:_LENGTH] not in draw.passed and i not in excluded
    ]
    return np.array([*before, *sorted(new, key=keys.__getitem__)], np.intp)


_LENGTH = 32


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:_LENGTH]
