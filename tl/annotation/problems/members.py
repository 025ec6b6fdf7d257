"""Predictions of an ensemble's members for the images of a data set, aligned by class name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.data.boxed import check_boxed
from tl.data.manifests import LabeledImage
from tl.errors import EnsembleError
from tl.progress import Progress
from tl.runtime.predictor import load
from tl.runtime.results import Classification


@dataclass(frozen=True)
class Votes:
    """Predictions of members `names` (M,): probabilities float32 (M, N, C) in the order of `class_names` (C,).

    0 for a class that a member lacks, NaN where an image could not be predicted.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]


def predict_members(
    models: Sequence[Path], images: Sequence[LabeledImage], device: str, threads: int | None, progress: Progress
) -> Votes:
    """Predict the images with each of two or more model files, or with the members of a merged one.

    Raises `EnsembleError` if there are no two members or they know no class of the data, `DataError` for models of
    boxes, and errors of the files.
    """
    with load(list(models), device=device, threads=threads, classes="union") as predictor:
        names = tuple(predictor.member_names)
        if len(names) < 2:
            raise EnsembleError(f"{models[0]}: is a single model: give two or more, whose predictions are compared")
        labels = {image.label for image in images}
        if labels.isdisjoint(predictor.class_names):
            found = ", ".join(f"'{name}'" for name in predictor.class_names[:5])
            raise EnsembleError(f"{models[0]}: predicts {found}, but no image is labeled as one of its classes")
        check_boxed(images, getattr(predictor.ensemble, "crop", None), str(models[0]))
        probabilities = np.full((len(names), len(images), len(predictor.class_names)), np.nan, np.float32)
        progress.start("predicting with each member", len(images), "images")
        for i, result in enumerate(predictor.predict_iter([image.path for image in images])):
            if isinstance(result, Classification) and result.votes is not None:
                probabilities[:, i] = result.votes.probabilities
            progress.advance()
        return Votes(names, tuple(predictor.class_names), probabilities)
