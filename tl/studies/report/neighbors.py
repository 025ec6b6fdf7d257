"""Find similar images of a run by the backbone features that it cached.

Computes no features: without cached features, there are no embeddings and no neighbors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.features import FeatureSet, Neighbor, unit_length
from tl.errors import TlError
from tl.runtime.sources.box_files import BOX
from tl.studies.report.run_files import FinishedRun
from tl.trainer.fit.augment import build_augment
from tl.trainer.models.backbone_info import remembered_info
from tl.trainer.run_folder.manifest_regions import REGION
from tl.trainer.task import find_info, find_start, open_run_features

# Image path -> its nearest training images, nearest first; empty for an image without features.
FindNearest = Callable[[str], list[Neighbor]]


@dataclass(frozen=True)
class Embeddings:
    """The run's images that have cached features. `rows`: of the manifest. `vectors` float32 (N, D), of length 1."""

    rows: list[dict[str, str]]
    paths: list[str]
    vectors: NDArray[np.float32]


def open_embeddings(finished: FinishedRun) -> Embeddings | None:
    """Read the embeddings of the run's images, or return None if no training features are cached.

    Also None for a run on boxes: its images share photos, so that paths do not tell them apart.
    """
    rows = finished.rows("manifest.csv")
    if any(row.get(name) for row in rows for name in (REGION[0], BOX[0])):
        return None
    try:
        features = _kept_features(finished)
    except TlError:  # the weights or augmentation file no longer exist
        return None
    if features is None:
        return None
    rows = [row for row in rows if features.has(row["sha256"], (0,))]
    if not any(row["split"] == "train" for row in rows):
        return None
    paths = [os.path.normpath(os.path.join(finished.run.folder, row["path"])) for row in rows]
    return Embeddings(rows, paths, np.stack([_embedding(features, row["sha256"]) for row in rows]))


def neighbors_among(embeddings: Embeddings, count: int = 3) -> FindNearest:
    """Return a function that finds the training images most similar to one of the images."""
    rows, places = embeddings.rows, embeddings.paths
    known = [i for i, row in enumerate(rows) if row["split"] == "train"]
    train = embeddings.vectors[known]
    numbers = {place: i for i, place in enumerate(places)}

    def find(path: str) -> list[Neighbor]:
        if path not in numbers:
            return []
        likeness = train @ embeddings.vectors[numbers[path]]
        likeness[[place == numbers[path] for place in known]] = -np.inf  # a training image is not its own neighbor
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
