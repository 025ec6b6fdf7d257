"""Features of labeled images for `labeling.py`: whole sets of $TL_SHARED/data, and imbalanced draws of them."""

import os
import threading
from pathlib import Path

import numpy as np

from tl.annotation.feature_sources import open_source
from tl.annotation.features import PhotoFeatures

DATA = Path(os.environ["TL_SHARED"]) / "data"
NAMES = (
    "pacs-cartoon",
    "cats-dogs",
    "cifar10",
    "coins",
    "brain-mri",
    "hymenoptera",
    "imagenet-val-500",
    "tiny-imagenet",
)
TINY_CLASSES = 40
Labeled = tuple[np.ndarray, np.ndarray]


def load(name: str) -> Labeled:
    """Features float32 (N, D) and class ids (N,) of all images of a set.

    NAME:long-tail has classes of sizes that fall evenly on a log scale from all images to a tenth.
    """
    base, _, tail = name.partition(":")
    paths = sorted(path for path in (DATA / base).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    labels = [path.relative_to(DATA / base).parts[-3 if path.parent.name == "images" else -2] for path in paths]
    if base == "tiny-imagenet":
        kept = sorted(set(labels))[:TINY_CLASSES]
        paths, labels = zip(*[(p, name) for p, name in zip(paths, labels, strict=True) if name in kept], strict=True)
    photos = PhotoFeatures(list(map(str, paths)), open_source())
    photos.run(threading.Event())
    ids = np.unique(np.array(labels)[photos.is_ready], return_inverse=True)[1]
    features = photos.matrix[photos.is_ready]
    if tail:
        rows = _long_tail(ids)
        features, ids = features[rows], ids[rows]
    return features, ids


def _long_tail(ids: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    classes = int(ids.max()) + 1
    kept = []
    for rank, c in enumerate(rng.permutation(classes)):
        rows = rng.permutation(np.flatnonzero(ids == c))
        kept.append(rows[: max(6, round(len(rows) * 10 ** (-rank / max(classes - 1, 1))))])
    return np.sort(np.concatenate(kept))


def divide(ids: np.ndarray, seed: int, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pool and of the test images: `share` of each class, drawn anew for each seed."""
    rng = np.random.default_rng(seed)
    test = [rng.permutation(np.flatnonzero(ids == c)) for c in range(int(ids.max()) + 1)]
    rows = np.concatenate([rows[: round(share * len(rows))] for rows in test])
    return np.setdiff1d(np.arange(len(ids)), rows), np.sort(rows)
