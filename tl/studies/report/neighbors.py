"""Find the training images most similar to an image, by the backbone features that a run cached.

Computes no features: without cached features, there are no neighbors.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tl.data.features import FeatureSet, Neighbor, unit_length
from tl.errors import TlError
from tl.studies.report.run_files import FinishedRun
from tl.trainer.fit.augment import build_augment
from tl.trainer.models.backbone_info import remembered_info
from tl.trainer.task import find_info, find_start, open_run_features

# Image path -> its nearest training images, nearest first; empty for an image without features.
FindNearest = Callable[[str], list[Neighbor]]


def open_neighbors(finished: FinishedRun, count: int = 3) -> FindNearest | None:
    """Return a function that finds neighbors of the run's images, or None if no training features are cached."""
    try:
        features = _kept_features(finished)
    except TlError:  # the weights or augmentation file no longer exist
        return None
    if features is None:
        return None
    rows = finished.rows("manifest.csv")
    places = [os.path.normpath(os.path.join(finished.run.folder, row["path"])) for row in rows]
    known = [i for i, row in enumerate(rows) if row["split"] == "train" and features.has(row["sha256"], (0,))]
    if not known:
        return None
    train = np.stack([_embedding(features, rows[i]["sha256"]) for i in known])
    digests = {place: row["sha256"] for place, row in zip(places, rows, strict=True)}

    def find(path: str) -> list[Neighbor]:
        digest = digests.get(path, "")
        if not features.has(digest, (0,)):
            return []
        likeness = train @ _embedding(features, digest)
        order = np.argsort(-likeness, kind="stable")[:count]
        return [Neighbor(places[known[k]], rows[known[k]]["label"], float(likeness[k])) for k in order]

    return find


def _kept_features(finished: FinishedRun) -> FeatureSet | None:
    config, preprocessing = finished.config, finished.card.preprocessing
    if config.weights == "none" or config.normalize == "dataset":
        return None  # random weights give no useful features; dataset normalization differs from the cached features
    weights, info = find_start(config, remembered_info(config.backbone, find_info))
    if weights is None:
        return None
    augment = build_augment(str(config.augment), preprocessing) if config.views else None
    return open_run_features(config, info, preprocessing, augment, weights)


def _embedding(features: FeatureSet, digest: str) -> NDArray[np.float32]:
    """Return the embedding with unit norm; feature maps are averaged."""
    (found,) = features.cache.stack([features.key(digest, 0)])
    vector = found.mean(axis=(1, 2)) if found.ndim == 3 else found
    return np.asarray(unit_length(vector[None])[0], np.float32)
