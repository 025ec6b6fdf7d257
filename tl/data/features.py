"""Features of images from a frozen trunk, computed once and cached on disk for every later head, fold and run.

Defines the cache and the key of a feature. `tl.trainer.features.extraction` computes features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.data.array_cache import ArrayCache, cache_folder
from tl.data.images import ImageStore, content_key
from tl.progress import Progress
from tl.runtime.imaging.geometry import crop_to_input

# uint8 (N, H, W, 3) -> float32 (N, ...)
Embedder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
# (working image, seed) -> input image
Change = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
BATCH = 32
# Increase with every change in this project that changes features.
VERSION = 1
# Embeddings shorter than this are not scaled up to length 1.
SHORTEST = 1e-12
_NETWORK, _COUNT = "network/", "network tensors"


@dataclass(frozen=True)
class Neighbor:
    """A training image that is similar to another image. `likeness`: cosine similarity of the two embeddings."""

    path: str
    label: str
    likeness: float


def unit_length(embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
    """Scale embeddings (N, D) to length 1."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, SHORTEST))


def standard_scale(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale (D,) that standardize embeddings (N, D). Nearly constant entries are not amplified."""
    mean, std = embeddings.mean(axis=0), embeddings.std(axis=0)
    return mean, np.maximum(std, max(0.1 * float(std.mean()), 1e-6))


def directions(
    embeddings: NDArray[np.float32], scale: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Standardize embeddings (N, D) by a `standard_scale`, and scale them to length 1."""
    mean, std = scale
    return np.asarray(unit_length((embeddings - mean) / std), np.float32)


@dataclass(frozen=True)
class FeatureSet:
    """Features of one trunk and one image preprocessing. `cache` stores them by content hash and view."""

    cache: ArrayCache
    folder: Path

    @property
    def has_network(self) -> bool:
        """Whether all tensors of `network` are cached."""
        count = int(self.cache.get(_COUNT)) if _COUNT in self.cache else -1
        return sum(1 for _ in self.cache.keys_with_prefix(_NETWORK)) == count

    @property
    def network(self) -> dict[str, NDArray[Any]]:
        """The network tensors that computed the features, without standardization and head; {} if not cached."""
        if not self.has_network:
            return {}
        return self.cache.with_prefix(_NETWORK)

    def keep_network(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Cache the tensors that `network` returns."""
        for name, tensor in tensors.items():
            self.cache.put(f"{_NETWORK}{name}", tensor)
        self.cache.put(_COUNT, np.array(len(tensors)))
        self.cache.flush()

    def key(self, content: str, view: int) -> str:
        """The key of an image's features. View 0 is the image as in validation and deployment.

        `content`: its hash, with its region if it has one (`content_key`).
        """
        return f"{content}-{view}" if view else content

    def has(self, content: str, views: Sequence[int]) -> bool:
        """Whether all requested features of an image are cached."""
        return all(self.key(content, view) in self.cache for view in views)

    def get(self, store: ImageStore, indices: Sequence[int], views: Sequence[int] = (0,)) -> NDArray[np.float32]:
        """Return features float32 (len(views) * N, ...), ordered by view. Raises KeyError for a missing one."""
        return self.cache.stack([self.key(_content(store, i), view) for view in views for i in indices])

    def missing(self, store: ImageStore, indices: Sequence[int], views: Sequence[int]) -> list[tuple[int, int]]:
        """Return (image, view) pairs still to be computed, one per distinct content."""
        wanted = {self.key(_content(store, i), view): (i, view) for view in views for i in indices}
        return [place for key, place in wanted.items() if key not in self.cache]


def open_features(**depends_on: str) -> FeatureSet:
    """Open the feature cache, keyed by all dependencies but the images: weights, layer, preprocessing, augmentation."""
    digest = hashlib.sha256(json.dumps({**depends_on, "version": VERSION}, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "features" / digest
    return FeatureSet(ArrayCache(folder, keeps_unwritten=True), folder)


def compute_missing(
    features: FeatureSet,
    store: ImageStore,
    places: Sequence[tuple[int, int]],
    embed: Embedder,
    change: Change | None,
    seed: int,
    progress: Progress,
) -> None:
    """Compute and cache the features of `places`, given by `FeatureSet.missing`. Views above 0 are augmented images."""
    progress.start("computing features", len(places), "images")

    def prepare(working: NDArray[np.uint8], index: int, view: int) -> NDArray[np.uint8]:
        if view == 0 or change is None:
            return crop_to_input(working, store.preprocessing)
        return change(working, view_seed(seed, view, store.hashes[index]))

    # Threads decode the images; augmentation runs here, sequentially.
    workings = store.map(store.working, [index for index, _ in places], ahead=2 * BATCH)
    for start in range(0, len(places), BATCH):
        chunk = places[start : start + BATCH]
        images = np.stack([prepare(next(workings), *place) for place in chunk])
        for (index, view), row in zip(chunk, embed(images), strict=True):
            features.cache.put(features.key(_content(store, index), view), row)
        progress.advance(len(chunk))
    features.cache.flush()
    if features.cache.fault:
        progress.say(f"features cannot be cached for later runs: {features.cache.fault}")


def _content(store: ImageStore, index: int) -> str:
    return content_key(store.images[index], store.hashes[index])


def view_seed(seed: int, view: int, digest: str) -> int:
    """The seed of an augmented view. It depends on content only, so adding or removing images does not change it."""
    return int(np.random.SeedSequence((seed, view, int(digest[:16], 16))).generate_state(1)[0])
