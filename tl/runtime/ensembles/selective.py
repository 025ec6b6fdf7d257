"""Selective prediction: conformal sets of classes, and labels rejected as doubtful or out of distribution.

Pure numpy on probabilities and scores. `tl.evaluation.calibration` measures the limits, `ensemble` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The label of an image that is rejected.
REJECTED = "?"


@dataclass(frozen=True)
class SelectivePrediction:
    """How sure a prediction must be.

    `coverage` in (0, 1): give the set of classes that holds the true one at least so often. A label becomes "?" where
    its confidence is under `min_confidence`, or with `reject_unknown` where the image is unlike those of training.
    """

    coverage: float | None = None
    min_confidence: float | None = None
    reject_unknown: bool = False

    def __post_init__(self) -> None:
        for name in ("coverage", "min_confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")

    @property
    def rejects(self) -> bool:
        """Whether a label may become "?"."""
        return self.min_confidence is not None or self.reject_unknown


def conformal_scores(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far down the list of classes each one stands, (N, C) -> (N, C) in [0, 1].

    The probability of all more probable classes and half of its own. Source: adaptive prediction sets of Romano, Sesia,
    Candes 2020, with their random number fixed at one half, so that the same image has the same set every time.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked.cumsum(axis=1) - ranked / 2, axis=1)
    return scores


def conformal_limit(scores: Sequence[float], coverage: float) -> float:
    """The score up to which classes belong to a set, from `scores` of true classes on images held out.

    Infinite where they are too few for so much coverage: every class belongs then. Source: split conformal prediction,
    Vovk et al. 2005: the ceil((n + 1) coverage)-th smallest of n.
    """
    place = math.ceil((len(scores) + 1) * coverage)
    return math.inf if place > len(scores) else float(sorted(scores)[place - 1])


def prediction_sets(probabilities: NDArray[np.float32], limit: float) -> NDArray[np.bool_]:
    """Which classes belong to each image's set, (N, C); the most probable one always does."""
    members = conformal_scores(probabilities) <= limit
    members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members


def reasons(
    confidence: NDArray[np.float32],
    ood_score: NDArray[np.float32] | None,
    unknown_limit: float | None,
    selective: SelectivePrediction,
) -> list[str]:
    """Why each label is not to be given, "" where it is. `confidence`, `ood_score`: (N,)."""
    lowest = -math.inf if selective.min_confidence is None else selective.min_confidence
    highest = unknown_limit if selective.reject_unknown and unknown_limit is not None else math.inf
    unlike = np.zeros(len(confidence)) if ood_score is None else ood_score
    found = []
    for sure, strange in zip(confidence.tolist(), unlike.tolist(), strict=True):
        why = [f"confidence {sure:.3f} under {lowest:g}"] if sure < lowest else []
        if highest < math.inf and not strange <= highest:  # also what is no number
            why.append(f"unknown score {strange:.3f} over {highest:.3f}")
        found.append("; ".join(why))
    return found
