"""Features of images from a backbone that has not seen their labels, and predictions by heads that have not seen the
image.

Uses the trainer's inputs and feature cache, so that images of an earlier training are not computed again. Imports the
trainer only when called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.data.splits import Fold, find_folds, inseparable
from tl.errors import DataError
from tl.evaluation.calibration import softmax
from tl.progress import Progress

if TYPE_CHECKING:
    from tl.trainer.config import TrainConfig


@dataclass(frozen=True)
class Embedded:
    """The readable images at `places` (N,) of those asked for: features float32 (N, D), and SHA-256 of the files (N,).

    `failed`: unreadable images and the reasons.
    """

    places: tuple[int, ...]
    features: NDArray[np.float32]
    hashes: tuple[str, ...]
    failed: tuple[tuple[LabeledImage, str], ...]


def embed_images(images: Sequence[LabeledImage], config: TrainConfig, progress: Progress) -> Embedded:
    """Compute the features of the frozen backbone of `config`, or take them from the cache.

    Raises `DataError` if no image can be read, and any `TlError` of the preparation.
    """
    from tl.trainer.classification import compute_features
    from tl.trainer.options import resolve
    from tl.trainer.task import prepare_inputs

    def bind(readable: Sequence[LabeledImage], config: TrainConfig) -> tuple[str, ...]:
        if not readable:
            raise DataError(f"{config.data}: none of its {len(images)} images can be read")
        return tuple(sorted({image.label for image in readable}))

    asked = dataclasses.replace(config, task="classification", method="features", skip_bad=True, audit=False)
    together = [dataclasses.replace(image, split="train", group="", sequence="") for image in images]
    inputs = prepare_inputs(asked, resolve(asked), together, list, bind, lambda *parts: None, progress)
    if inputs.features is None:
        raise DataError(f"{config.backbone}: has no pretrained weights, so its features say nothing of the images")
    compute_features(inputs, progress, splits=("train",))
    features = inputs.features_at(range(len(inputs.store.images)))
    features = features.mean(axis=(2, 3)) if features.ndim == 4 else features
    places = _places_of(inputs.store.images, images)
    failed = tuple((images[i], reason) for i, (_, reason) in zip(_rest(places, len(images)), inputs.bad, strict=True))
    return Embedded(places, features, inputs.store.hashes, failed)


def _places_of(readable: Sequence[LabeledImage], images: Sequence[LabeledImage]) -> tuple[int, ...]:
    """Places of the readable images, which are in the same order."""
    places: list[int] = []
    for i, image in enumerate(images):
        if len(places) < len(readable) and readable[len(places)].key == image.key:
            places.append(i)
    return tuple(places)


def _rest(places: Sequence[int], count: int) -> list[int]:
    kept = set(places)
    return [i for i in range(count) if i not in kept]


# As many folds as choose C in training. A class with fewer images than folds cannot be in each of them.
FOLDS = 5
# With folds for this share of the images, the rest does without held-out predictions.
_ENOUGH = 0.9
# Weaker and stronger ones were never chosen in benchmarks/label_errors.py, and C of 1 and more takes the longest.
C_VALUES = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class HeldOut:
    """Probabilities float32 (N, C) by heads that have not seen the image, and the number of folds; 0 without any.

    Rows of NaN are those of images whose class is too small to be cross-validated.
    """

    probabilities: NDArray[np.float32]
    folds: int


def predict_held_out(
    features: NDArray[np.float32],
    ids: NDArray[np.int64],
    num_classes: int,
    hashes: Sequence[str],
    groups: Sequence[str],
    seed: int,
) -> HeldOut:
    """Predict each image by a linear head that was fitted without it, its group and files equal to it.

    `features` (N, D), `ids` int64 (N,), `hashes` (N,), `groups` (N,) with '' for none. Classes with too few images or
    groups are left out of the folds.
    """
    from tl.trainer.heads.solvers import cross_validate

    probabilities = np.full((len(ids), num_classes), np.nan, np.float32)
    places, folds = _folds(ids, hashes, groups, seed)
    if not folds:
        return HeldOut(probabilities, 0)
    classes, own_ids = np.unique(ids[places], return_inverse=True)
    found = cross_validate("logistic", (features[places], own_ids), folds, C_VALUES, seed)
    probabilities[places] = 0
    probabilities[np.ix_(places, classes)] = softmax(found.held_out)
    return HeldOut(probabilities, len(folds))


def _folds(
    ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], seed: int
) -> tuple[NDArray[np.intp], list[Fold]]:
    """The images of large enough classes, and their folds: five, or fewer if five would leave out many images."""
    tied = np.array(inseparable(hashes, groups))
    sizes = {c: len(set(tied[ids == c].tolist())) for c in np.unique(ids).tolist()}
    for count in range(FOLDS, 1, -1):
        large = [c for c, size in sizes.items() if size >= count]
        places = np.flatnonzero(np.isin(ids, large))
        if len(large) < 2 or (count > 2 and len(places) < _ENOUGH * len(ids)):
            continue
        own = [[values[i] for i in places.tolist()] for values in (hashes, groups)]
        if folds := find_folds(ids[places], own[0], own[1], count, seed):
            return places, folds
    return np.empty(0, np.intp), []
