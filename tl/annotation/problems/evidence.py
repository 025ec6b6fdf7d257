"""What is known of the images of a labeled data set, as plain arrays. Opens no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage


@dataclass(frozen=True)
class Evidence:
    """The readable images of a data set and what is known of each. N images, C classes, D features, M members.

    `images` (N,): labels, splits ('' if the data has none) and groups are those of the data. `hashes` (N,): SHA-256 of
    each file. `features` float32 (N, D), of a network that was not trained on these labels. `ids` int64 (N,) in the
    order of `class_names` (C,). `probabilities` float32 (N, C): predictions by heads or networks that have not seen the
    image; rows of NaN where there are none. `is_by_run` bool (N,): which rows are a trained run's predictions.
    `members` float32 (M, N, C): those of an ensemble's members, named `member_names` (M,); None without an ensemble;
    rows of NaN where a prediction failed. `failed`: unreadable images, with the reasons. `source`: where the
    probabilities come from, for display.
    """

    images: tuple[LabeledImage, ...]
    hashes: tuple[str, ...]
    features: NDArray[np.float32]
    ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    is_by_run: NDArray[np.bool_]
    members: NDArray[np.float32] | None = None
    member_names: tuple[str, ...] = ()
    failed: tuple[tuple[LabeledImage, str], ...] = ()
    source: str = "cross-validation"

    def __post_init__(self) -> None:
        count, classes = len(self.images), len(self.class_names)
        shapes = {
            "hashes": (len(self.hashes),) == (count,),
            "features": self.features.ndim == 2 and len(self.features) == count,
            "ids": self.ids.shape == (count,),
            "probabilities": self.probabilities.shape == (count, classes),
            "is_by_run": self.is_by_run.shape == (count,),
            "members": self.members is None or self.members.shape == (len(self.member_names), count, classes),
        }
        if wrong := [name for name, is_right in shapes.items() if not is_right]:
            raise ValueError(f"{', '.join(wrong)}: wrong shape for {count} images and {classes} classes")
