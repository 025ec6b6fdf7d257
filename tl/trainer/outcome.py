"""The result that every training method returns, before it is calibrated and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.metrics import Metrics
from tl.progress import Progress
from tl.trainer.config import TrainConfig
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run
from tl.trainer.task import FeatureTask


@dataclass(frozen=True)
class HeldOut:
    """Out-of-fold logits float (N, C) of the images at `places` (N,) in the store."""

    places: list[int]
    logits: NDArray[np.floating]

    def only(self, places: Sequence[int]) -> HeldOut:
        """Those of some images, in their order; images without logits are left out."""
        at = {place: i for i, place in enumerate(self.places)}
        kept = [place for place in places if place in at]
        return HeldOut(kept, self.logits[[at[place] for place in kept]])


@dataclass(frozen=True)
class Outcome:
    """A trained network, before its confidence is calibrated.

    `logits`: split -> float (N, C) in the store's order. `save`: writes `best.safetensors`, given its card.
    `trained_parameters`: number of learned values. `best_epoch`: None if training had no epochs.
    `train_seconds`: time of all epochs, or None to use the run's wall time. `held_out`: replaces the validation split
    in every score if the network was fitted to it too. `left_out`: logits by heads that were fitted to other sites.
    """

    logits: Callable[[str], NDArray[np.floating]]
    save: Callable[[NetworkCard], None]
    trained_parameters: int
    best_epoch: int | None = None
    train_seconds: float | None = None
    held_out: HeldOut | None = None
    left_out: HeldOut | None = None

    def describe(self, config: TrainConfig, seconds: float) -> Metrics:
        """What `metrics.json` says of a training that took `seconds`."""
        return {
            "method": config.method,
            "best_epoch": self.best_epoch,
            "train_seconds": seconds,
            "trained_parameters": self.trained_parameters,
        }

    def scored(self, task: FeatureTask, split: str) -> HeldOut:
        """The images that a split's scores come from, and their logits.

        A validation split of the data's own was chosen to be scored on: of networks that are fitted to its images too,
        held-out results of these images alone count.
        """
        places = task.store.indices(split)
        if split == "val" and self.held_out is not None:
            return self.held_out.only(places) if task.has_own_split else self.held_out
        return HeldOut(places, self.logits(split))


# (run, progress, whether the run is resumed) -> outcome
Training = Callable[[Run, Progress, bool], Outcome]
