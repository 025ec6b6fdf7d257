"""The training images that a backbone finds most like another image, by the features that a run left in the cache.

Knows kept features. Computes none: where they are gone, there are no neighbors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.features import FeatureSet
from tl.errors import TlError
from tl.studies.report.run_files import FinishedRun
from tl.trainer.fit.augment import build_augment
from tl.trainer.models.backbone_info import remembered_info
from tl.trainer.task import find_info, find_start, open_run_features


@dataclass(frozen=True)
class Neighbor:
    """A training image. `likeness`: cosine of the angle between both embeddings."""

    path: str
    label: str
    likeness: float


# Image path -> its nearest training images, nearest first; none for an image without features.
FindNearest = Callable[[str], list[Neighbor]]


def open_neighbors(finished: FinishedRun, count: int = 3) -> FindNearest | None:
    """What finds neighbors of the run's images, None where training images' features are not kept."""
    try:
        features = _kept_features(finished)
    except TlError:  # weights or an augmentation file that have gone since
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
        return None  # the first has no features worth while, the second colors of its own
    weights, info = find_start(config, remembered_info(config.backbone, find_info))
    if weights is None:
        return None
    augment = build_augment(str(config.augment), preprocessing) if config.views else None
    return open_run_features(config, info, preprocessing, augment, weights)


def _embedding(features: FeatureSet, digest: str) -> NDArray[np.float32]:
    """Of length 1; maps are averaged."""
    (found,) = features.cache.stack([features.key(digest, 0)])
    vector = found.mean(axis=(1, 2)) if found.ndim == 3 else found
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)
