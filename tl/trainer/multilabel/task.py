"""Prepare a run of several labels before any network exists: images with the labels that they have.

Never imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.label_sets import assign_label_splits, check_label_matrix, label_folds, label_matrix, read_label_sets
from tl.data.manifests import LabeledImage
from tl.data.splits import Fold
from tl.errors import DataError
from tl.progress import Progress
from tl.trainer.boxes import manifest_columns
from tl.trainer.config import TrainConfig
from tl.trainer.defaults import SOLVER_FOLDS
from tl.trainer.options import resolve, settled
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.task import Check, FeatureTask, prepare_inputs, refits


@dataclass(frozen=True)
class MultilabelTask(FeatureTask):
    """The prepared inputs of a run of several labels. `outputs`: names of the labels.

    `labels`: (N, C) of all images in the store: 1, 0 or NaN where unknown.
    """

    labels: NDArray[np.float64]

    def folds(self, places: Sequence[int]) -> list[Fold] | None:
        """Folds of the images at `places` with equal shares of every label; None if two are not possible."""
        images, hashes = [self.store.images[i] for i in places], [self.store.hashes[i] for i in places]
        groups = [image.group for image in images]
        return label_folds(self.labels[list(places)], hashes, groups, SOLVER_FOLDS, self.config.seed)

    def card(self, temperatures: tuple[float, ...]) -> NetworkCard:
        """The network's description, stored in `best.safetensors`."""
        weights = self.weights.description if self.weights else "none"
        return NetworkCard(self.outputs, (), self.preprocessing, weights, 1.0, temperatures=temperatures)


def prepare_multilabel_task(
    config: TrainConfig, progress: Progress, check: Check = lambda *parts: None
) -> MultilabelTask:
    """Read all inputs of a run. `check` is called before images are opened. Raises any `TlError` of the steps."""
    asked, config = config, resolve(config)
    columns = dataclasses.replace(manifest_columns(config), targets=config.target or ())
    names, found = read_label_sets(config.data, columns, progress.say)
    has_own_split = any(image.split == "val" for image in found)

    def split(images: Sequence[LabeledImage]) -> list[LabeledImage]:
        return assign_label_splits(images, names, settled(config.val_fraction), config.seed)

    def bind(images: Sequence[LabeledImage], config: TrainConfig) -> tuple[str, ...]:
        for needed in ("train", "val", "test") if config.test else ("train", "val"):
            if not any(image.split == needed for image in images):
                raise DataError(f"the data set has no images in its {needed} split")
        check_label_matrix(label_matrix([image for image in images if image.split == "train"], names), names)
        return names

    inputs = prepare_inputs(asked, config, found, split, bind, check, progress)
    task = MultilabelTask(**vars(inputs), labels=label_matrix(inputs.store.images, names))
    return dataclasses.replace(task, config=dataclasses.replace(task.config, refit=refits(task, has_own_split)))
