"""Prepare a regression run before any network exists: images with numbers, and the scale of the numbers.

Never imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.data.targets import assign_number_splits, check_numbers, numbers_of, read_numbers, strata_of
from tl.errors import DataError
from tl.progress import Progress
from tl.trainer.boxes import manifest_columns
from tl.trainer.config import TrainConfig
from tl.trainer.options import resolve, settled
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.task import Check, FeatureTask, prepare_inputs, refits


@dataclass(frozen=True)
class RegressionTask(FeatureTask):
    """The prepared inputs of a regression run. `outputs`: names of the targets.

    `numbers`: (N, T) of all images in the store, NaN where missing. `mean`, `std`: (T,) of the training images.
    """

    numbers: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @property
    def standardized(self) -> NDArray[np.float64]:
        """The numbers of all images (N, T), with mean 0 and standard deviation 1 in the training images."""
        return (self.numbers - self.mean) / self.std

    def strata(self, places: Sequence[int]) -> NDArray[np.int64]:
        """The part of the range of numbers (N,) that each of the images at `places` is in."""
        return strata_of(self.numbers[list(places)])

    @property
    def card(self) -> NetworkCard:
        """The network's description, stored in `best.safetensors`."""
        weights = self.weights.description if self.weights else "none"
        return NetworkCard((), (), self.preprocessing, weights, 1.0, target_names=self.outputs)


def prepare_regression_task(
    config: TrainConfig, progress: Progress, check: Check = lambda *parts: None
) -> RegressionTask:
    """Read all inputs of a run. `check` is called before images are opened. Raises any `TlError` of the steps."""
    asked, config = config, resolve(config)
    columns = dataclasses.replace(manifest_columns(config), targets=config.target or ())
    names, found = read_numbers(config.data, columns, progress.say)
    has_own_split = any(image.split == "val" for image in found)

    def split(images: Sequence[LabeledImage]) -> list[LabeledImage]:
        return assign_number_splits(images, settled(config.val_fraction), config.seed)

    def bind(images: Sequence[LabeledImage], config: TrainConfig) -> tuple[str, ...]:
        for needed in ("train", "val", "test") if config.test else ("train", "val"):
            if not any(image.split == needed for image in images):
                raise DataError(f"the data set has no images in its {needed} split")
        check_numbers(numbers_of([image for image in images if image.split == "train"], len(names)), names)
        return names

    inputs = prepare_inputs(asked, config, found, split, bind, check, progress)
    numbers = numbers_of(inputs.store.images, len(names))
    trained = numbers[inputs.store.indices("train")]
    mean, std = np.nanmean(trained, axis=0), np.nanstd(trained, axis=0)
    task = RegressionTask(**vars(inputs), numbers=numbers, mean=mean, std=std)
    return dataclasses.replace(task, config=dataclasses.replace(task.config, refit=refits(task, has_own_split)))
