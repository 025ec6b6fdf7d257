"""What a run's trained network makes of pictures before its head, kept on disk; the training pictures nearest to one.

Knows runs, networks and kept features. Does not know model files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.features import compute_missing, open_features
from tl.data.images import check_readable, load_pictures
from tl.data.manifests import Picture
from tl.errors import DataError
from tl.progress import Progress
from tl.runtime.imaging.preprocessing import Recipe
from tl.runtime.model_file.strict_json import dump_json
from tl.runtime.sources.content import hash_file
from tl.trainer.features.extraction import build_embedder
from tl.trainer.fit.machine import build_machine
from tl.trainer.models.build import load_network
from tl.trainer.models.network import Network
from tl.trainer.run_folder.run import Run


@dataclass(frozen=True)
class Embedded:
    """Pictures that could be read, and their embeddings float32 (N, D) in the same order."""

    pictures: tuple[Picture, ...]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True)
class Neighbour:
    """A training picture. `likeness`: cosine of the angle between both embeddings."""

    picture: Picture
    likeness: float


def embed_pictures(
    run: Run, network: Network, recipe: Recipe, pictures: Sequence[Picture], progress: Progress
) -> Embedded:
    """Embeddings by the run's `network`, which `load_network` gives; those of before are kept.

    Pictures that cannot be read are left out; none at all gives an empty array.
    """
    kept = open_features(run_network=hash_file(run.best_path), recipe=dump_json(recipe))
    store, _ = load_pictures(pictures, recipe, "auto", progress, is_done=lambda picture, digest: kept.has(digest, (0,)))
    places = kept.missing(store, range(len(store.pictures)), (0,))
    if places:
        machine = build_machine("auto", "fp32", None)
        network.to(machine.device)
        graph = kept.folder / "trunk.onnx"
        embed = build_embedder(network, recipe.input_hw, len(places), graph, machine, progress)
        compute_missing(kept, store, places, embed, None, 0, progress)
        network.to("cpu")
    if not store.pictures:
        return Embedded((), np.empty((0, 0), np.float32))
    features = kept.get(store, range(len(store.pictures)))
    return Embedded(store.pictures, features.mean(axis=(2, 3)) if features.ndim == 4 else features)


def find_neighbours(run: Run, paths: Sequence[str], count: int, progress: Progress) -> list[list[Neighbour]]:
    """For each picture the `count` nearest training pictures, nearest first. A picture is no neighbour of itself.

    Raises `RunError`, and `DataError` for pictures that cannot be read or if no training picture is left.
    """
    network, card, _ = load_network(run)
    asked = [Picture(path, path, "") for path in paths]
    store, bad = load_pictures(asked, card.recipe, "none", progress)
    check_readable(bad, "neighbours are asked of whole pictures")
    train = embed_pictures(run, network, card.recipe, run.pictures("train"), progress)
    if not train.pictures:
        raise DataError(f"{run.folder}: its training pictures are gone")
    found = embed_pictures(run, network, card.recipe, store.pictures, progress)
    likeness = _to_length_one(found.embeddings) @ _to_length_one(train.embeddings).T
    neighbours = []
    for path, row in zip(paths, likeness, strict=True):
        order = [k for k in np.argsort(-row, kind="stable") if train.pictures[k].path != path][:count]
        neighbours.append([Neighbour(train.pictures[k], float(row[k])) for k in order])
    return neighbours


def _to_length_one(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), np.float32)
