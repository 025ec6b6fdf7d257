"""Average networks: on the line between initial and trained weights, and over networks that were trained alike.

Contains states and logits; does not train or read images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, lerp

from tl.data.splits import Fold
from tl.evaluation.calibration import fit_temperature
from tl.evaluation.metrics import variance_of_mean
from tl.trainer.heads.solvers import log_losses, select_nested

# Positions between the initial (0) and the trained weights (1) that are compared on held-out images.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class WeightLine:
    """The weights of one network before and after training, and its scores between them.

    `logits` float (len(SHARES), N, C), at each of `SHARES`, of the images at `held_out` (N,), which it was not trained
    on.
    """

    start: State
    end: State
    held_out: Sequence[int]
    logits: NDArray[np.floating]


def interpolate(start: State, end: State, share: float) -> dict[str, Tensor]:
    """Tensors at `share` of the way from `start` to `end`, both of one network; counters are those of `end`.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT).
    """
    return {
        name: lerp(start[name], tensor, share) if tensor.is_floating_point() else tensor for name, tensor in end.items()
    }


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of networks that were trained from the same weights.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models".
    """
    mean = dict(states[0])
    for count, state in enumerate(states[1:], 2):
        mean = interpolate(mean, state, 1 / count)
    return mean


def choose_share(
    logits: NDArray[np.floating], ids: NDArray[np.int64], groups: Sequence[str], folds: Sequence[Fold]
) -> tuple[int, NDArray[np.floating]]:
    """Choose the farthest position whose log loss on held-out images is within one standard error of the lowest.

    `logits` (len(SHARES), N, C), classes `ids` int64 (N,), `groups` (N,), '' for none. Returns the position's index in
    `SHARES`, and logits (N, C) of the same images, each from a choice that was made without it.

    Each network is scaled by a temperature first, as it is in deployment. Why the farthest: the mean of several
    networks has lost part of the noise of each, so its best position is farther than theirs.
    """
    names = np.array(groups)

    def farthest(losses: NDArray[np.floating], rows: NDArray[np.intp]) -> int:
        best = int(losses.mean(axis=1).argmin())
        for position in range(len(losses) - 1, best, -1):
            differences = losses[position] - losses[best]
            if differences.mean() <= math.sqrt(variance_of_mean(differences, names[rows].tolist())):
                return position
        return best

    losses = np.array([_scaled_losses(each, ids) for each in logits])
    return select_nested(logits, losses, folds, farthest)


def scaled_loss(logits: NDArray[np.floating], ids: NDArray[np.int64]) -> float:
    """Mean log loss of logits (N, C) after scaling by the temperature that suits them best."""
    return float(_scaled_losses(logits, ids).mean())


def _scaled_losses(logits: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    return log_losses(logits / fit_temperature(logits, ids), ids)
