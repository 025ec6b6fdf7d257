"""Draw the images that are labeled blind, in random order, so that an honest accuracy can be estimated from them.

The order of an image is a hash of a seed and its name. Photos that are added later therefore leave the order of the
others as it is, and each of them is reserved with the same probability.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

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


def with_groups(photos: Photos, images: Collection[int]) -> set[int]:
    """Return images together with all others of their groups."""
    if not photos.has_groups:
        return set(images)
    groups = {photos.group(i) for i in images} - {""}
    return set(images) | {i for i in range(len(photos)) if photos.group(i) in groups}


def draw_limit(photos: Photos, seed: int, labeled: Collection[int] = ()) -> str:
    """Return the key up to which images are reserved, "" for none. `labeled`: images that have a label already.

    Groups are reserved as a whole, as long as at most half of the images are.
    """
    keys = order_keys(photos, seed)
    free = sorted(keys[i] for i in range(len(photos)) if i not in labeled)
    wanted, count, limit = reserve_size(len(free)), 0, ""
    while count < wanted:
        start = free[count][:_LENGTH] if photos.has_groups else free[count]
        size = sum(1 for key in _from(free, count) if key.startswith(start))
        if count + size > len(free) // 2:
            break
        count += size
        limit = start
    return limit


def reserved_images(photos: Photos, seed: int, limit: str, labeled: Collection[int] = ()) -> NDArray[np.intp]:
    """Return the reserved images in random order. `limit`: of `draw_limit`. `labeled`: as it was then."""
    if not limit:
        return np.zeros(0, np.intp)
    keys = order_keys(photos, seed)
    chosen = [i for i, key in enumerate(keys) if key[: len(limit)] <= limit and i not in labeled]
    return np.array(sorted(chosen, key=keys.__getitem__), np.intp)


_LENGTH = 32


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:_LENGTH]


def _from(keys: list[str], start: int) -> list[str]:
    """The keys that begin as that at `start` does are next to each other."""
    end = start
    while end < len(keys) and keys[end][:_LENGTH] == keys[start][:_LENGTH]:
        end += 1
    return keys[start:end]
