"""Embeddings of images by a run's trained network, cached on disk, and nearest training images.

Does not depend on model files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.features import Neighbor, compute_missing, open_features, unit_length
from tl.data.images import check_readable, content_key, load_images
from tl.data.manifests import LabeledImage
from tl.errors import DataError
from tl.progress import Progress
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.strict_json import dump_json
from tl.runtime.sources.paths import hash_file
from tl.trainer.features.extraction import build_embedder
from tl.trainer.fit.machine import build_machine
from tl.trainer.models.build import load_network
from tl.trainer.models.network import Network
from tl.trainer.run_folder.run import Run


@dataclass(frozen=True)
class Embedded:
    """The readable images, their embeddings float32 (N, D) and the SHA-256 of their files, in the same order."""

    images: tuple[LabeledImage, ...]
    embeddings: NDArray[np.float32]
    hashes: tuple[str, ...] = ()

    @classmethod
    def joined(cls, first: Embedded, second: Embedded) -> Embedded:
        """The images of both."""
        embeddings = np.concatenate([first.embeddings, second.embeddings])
        return cls((*first.images, *second.images), embeddings, (*first.hashes, *second.hashes))


def embed_images(
    run: Run, network: Network, preprocessing: Preprocessing, images: Sequence[LabeledImage], progress: Progress
) -> Embedded:
    """Embed images with the run's `network`, as returned by `load_network`; cached embeddings are reused.

    Unreadable images are omitted; if none is readable, the array is empty.
    """
    kept = open_features(run_network=hash_file(run.best_path), preprocessing=dump_json(preprocessing))
    store, _ = load_images(
        *(images, preprocessing, "auto", progress),
        is_done=lambda image, digest: kept.has(content_key(image, digest), (0,)),
    )
    places = kept.missing(store, range(len(store.images)), (0,))
    if places:
        machine = build_machine("auto", "fp32", None)
        network.to(machine.device)
        graph = kept.folder / "trunk.onnx"
        embed = build_embedder(network, preprocessing.input_shape, len(places), graph, machine, progress)
        compute_missing(kept, store, places, embed, None, 0, progress)
        network.to("cpu")
    if not store.images:
        return Embedded((), np.empty((0, 0), np.float32))
    features = kept.get(store, range(len(store.images)))
    embeddings = features.mean(axis=(2, 3)) if features.ndim == 4 else features
    return Embedded(store.images, embeddings, tuple(store.hashes))


def find_neighbors(run: Run, paths: Sequence[str], count: int, progress: Progress) -> list[list[Neighbor]]:
    """For each image, the `count` nearest training images, nearest first. An image is never its own neighbor.

    Raises `RunError`, and `DataError` for unreadable images or if no training image is left.
    """
    network, card, _ = load_network(run)
    if run.has_boxes:
        raise DataError(f"{run.folder}: was trained on boxes, but neighbors are found for whole images")
    asked = [LabeledImage(path, path, "") for path in paths]
    store, bad = load_images(asked, card.preprocessing, "none", progress)
    check_readable(bad, "all images must be readable to find neighbors: fix or remove them")
    train = embed_images(run, network, card.preprocessing, run.images("train"), progress)
    if not train.images:
        raise DataError(f"{run.folder}: the run's training images no longer exist")
    found = embed_images(run, network, card.preprocessing, store.images, progress)
    likeness = unit_length(found.embeddings) @ unit_length(train.embeddings).T
    neighbors = []
    for path, row in zip(paths, likeness, strict=True):
        order = [k for k in np.argsort(-row, kind="stable") if train.images[k].path != path][:count]
        neighbors.append([Neighbor(train.images[k].path, train.images[k].label, float(row[k])) for k in order])
    return neighbors
