"""What every way of training gives back. Knows no way of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.trainer.progress import Progress
from tl.trainer.runs import Run


@dataclass(frozen=True)
class Outcome:
    """A trained network, before its confidence is calibrated.

    `logits`: split -> float (N, C) in the store's order. `save`: writes `best.safetensors`, given the temperature.
    `trained_parameters`: how many numbers were learnt. `best_epoch` is None where nothing was trained by epochs.
    `train_seconds`: of all epochs, None to time the run.
    """

    logits: Callable[[str], NDArray[np.floating]]
    save: Callable[[float], None]
    trained_parameters: int
    best_epoch: int | None = None
    train_seconds: float | None = None


# (run, progress, whether the run is taken up again) -> what came out
Training = Callable[[Run, Progress, bool], Outcome]
