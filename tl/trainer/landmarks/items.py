"""Training pictures with their points, changed together. Knows pictures and augmentation; does not know networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.trainer.augment import Augment
from tl.trainer.batches import item_seed
from tl.trainer.pictures import PictureStore


@dataclass(frozen=True)
class AnnotatedItems:
    """Pictures of the input size and their points (K, 2) in pixels of it, NaN where missing.

    `points`: of the whole store, (N, K, 2). `partners`: each point's place in a mirror image.
    """

    store: PictureStore
    points: NDArray[np.float32]
    partners: Sequence[int]
    augment: Augment | None
    seed: int

    def __call__(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """One picture and its points."""
        working = self.store.input(index)
        if self.augment is None:
            return working, self.points[index]
        return self.augment.with_points(working, self.points[index], item_seed(self.seed, epoch, index), self.partners)
