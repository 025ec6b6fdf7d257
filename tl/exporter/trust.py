"""What a run's held-out pictures say of its confidence, for the model file: conformal scores, and the unknown score.

Knows run folders and networks. Does not know how sets and scores are counted (`tl.runtime.caution`, `unknown`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.exporter.comparison import spread
from tl.exporter.conformal import conformal_of
from tl.exporter.unknown import Known, UnknownScore, class_ids_of, fit_unknown
from tl.runtime.ahead import map_ahead
from tl.runtime.contract import Conformal, UnknownFacts
from tl.runtime.devices import usable_cores
from tl.runtime.preprocess import load_input
from tl.runtime.recipe import Recipe
from tl.trainer.data import Picture
from tl.trainer.embedder import build_embedder
from tl.trainer.features import Embedder
from tl.trainer.machine import build_machine
from tl.trainer.network import Network
from tl.trainer.progress import Progress
from tl.trainer.runs import Run

# More tell no more, and would make the file larger and the export longer.
MAX_PICTURES = 2000
_BATCH = 16


def measure_conformal(run: Run, class_names: Sequence[str]) -> Conformal | None:
    """Scores of the true classes, from `predictions_val.csv`; of a thousand pictures drawn where there are more."""
    rows = run.rows("predictions_val.csv")
    if not rows:
        return None
    probabilities = np.array([[row[f"p:{name}"] for name in class_names] for row in rows], np.float32)
    true_ids = class_ids_of([row["true_label"] for row in rows], class_names)
    return conformal_of(probabilities, true_ids, "validation split")


def measure_unknown(
    run: Run, network: Network, recipe: Recipe, class_names: Sequence[str], progress: Progress
) -> tuple[UnknownScore, UnknownFacts] | None:
    """Fit the score to training pictures that are still there, None (and said so) where they are too few."""
    train, val = (spread(run.pictures(split), MAX_PICTURES) for split in ("train", "val"))
    known = set(class_names)
    train = [picture for picture in train if picture.label in known]
    if not train or not val:
        progress.say("no unknown score: the run's training or validation pictures are gone")
        return None
    with tempfile.TemporaryDirectory() as folder:
        machine = build_machine("auto", "fp32", None)
        graph = Path(folder) / "trunk.onnx"
        network.to(machine.device)
        embed = build_embedder(network, recipe.input_hw, len(train) + len(val), graph, machine, progress)
        progress.start("looking at training pictures", len(train) + len(val), "pictures")
        embeddings, labels = _embed(train, recipe, embed, progress)
        held_out, _ = _embed(val, recipe, embed, progress)
        network.to("cpu")
    found = fit_unknown(Known(embeddings, class_ids_of(labels, class_names), held_out), len(class_names))
    if found is None:
        progress.say("no unknown score: a class has too few training pictures, or the embedding is too large")
    return found


def _embed(
    pictures: Sequence[Picture], recipe: Recipe, embed: Embedder, progress: Progress
) -> tuple[NDArray[np.float32], list[str]]:
    """Embeddings (N, D) and labels of the pictures that can be read."""

    def read(picture: Picture) -> NDArray[np.uint8] | None:
        try:
            return load_input(picture.path, recipe)
        except ImageReadError:  # it could be read when the run was trained; the others tell enough
            return None

    parts: list[NDArray[np.float32]] = []
    labels: list[str] = []
    batch: list[NDArray[np.uint8]] = []

    def flush() -> None:
        if batch:
            features = embed(np.stack(batch))
            parts.append(features.mean(axis=(2, 3)) if features.ndim == 4 else features)
            batch.clear()

    images = map_ahead(read, pictures, workers=usable_cores(), ahead=2 * _BATCH)
    for picture, image in zip(pictures, images, strict=True):
        progress.advance()
        if image is None:
            continue
        labels.append(picture.label)
        batch.append(image)
        if len(batch) == _BATCH:
            flush()
    flush()
    return np.concatenate(parts), labels
