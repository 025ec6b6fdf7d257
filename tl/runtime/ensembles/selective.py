"""Selective prediction: conformal prediction sets, and rejection of uncertain or out-of-distribution images.

Pure numpy on probabilities and scores. `tl.evaluation.calibration` measures the limits, `ensemble` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Label of a rejected image.
REJECTED = "?"
# What the reason for rejecting an image unlike the training images begins with.
OOD = "out-of-distribution score"


@dataclass(frozen=True)
class SelectivePrediction:
    """Requirements for accepting a prediction.

    `coverage` in (0, 1): also return the prediction set, which contains the true class with at least this probability.
    A label becomes "?" if its confidence is below `min_confidence` or, with `reject_unknown`, if the image is
    out-of-distribution.
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
    """Return the conformal score of each class, (N, C) -> (N, C) in [0, 1]; higher for less probable classes.

    The score is the probability of all more probable classes plus half of the class's own. Source: adaptive prediction
    sets of Romano, Sesia, Candes 2020, with their random number fixed at one half, so that equal images get equal sets.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked.cumsum(axis=1) - ranked / 2, axis=1)
    return scores


def conformal_limit(scores: Sequence[float], coverage: float) -> float:
    """Return the highest score of classes in a prediction set, from `scores` of true classes of held-out images.

    Infinite if there are too few scores for the coverage; sets then contain every class. Source: split conformal
    prediction, Vovk et al. 2005: the ceil((n + 1) coverage)-th smallest of n.
    """
    place = math.ceil((len(scores) + 1) * coverage)
    return math.inf if place > len(scores) else float(sorted(scores)[place - 1])


def prediction_sets(probabilities: NDArray[np.float32], limit: float) -> NDArray[np.bool_]:
    """Return which classes belong to each image's set, bool (N, C); the most probable class always does."""
    members = conformal_scores(probabilities) <= limit
    members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members


# Fewest images of a batch, and the excess over the expected share, for saying that a batch is unlike training.
_BATCH, _EXCESS = 20, 2.0


def is_unfamiliar(unknown: int, count: int, expected: float) -> bool:
    """Whether `unknown` of `count` images above the limit are surely more than twice the `expected` share.

    Source: the lower bound of the 99% interval of Wilson 1927.
    """
    if count < _BATCH:
        return False
    z = 2.576
    share, weight = unknown / count, z * z / count
    low = (share + weight / 2 - z * math.sqrt(share * (1 - share) / count + weight / (4 * count))) / (1 + weight)
    return low > _EXCESS * expected


def reasons(
    confidence: NDArray[np.float32],
    ood_score: NDArray[np.float32] | None,
    unknown_limit: float | None,
    selective: SelectivePrediction,
) -> list[str]:
    """Return why each label is rejected, "" if it is accepted. `confidence`, `ood_score`: (N,)."""
    lowest = -math.inf if selective.min_confidence is None else selective.min_confidence
    highest = unknown_limit if selective.reject_unknown and unknown_limit is not None else math.inf
    unlike = np.zeros(len(confidence)) if ood_score is None else ood_score
    found = []
    for sure, strange in zip(confidence.tolist(), unlike.tolist(), strict=True):
        why = [f"confidence {sure:.3f} below {lowest:g}"] if sure < lowest else []
        if highest < math.inf and not strange <= highest:  # also true for NaN
            why.append(f"{OOD} {strange:.3f} above {highest:.3f}")
        found.append("; ".join(why))
    return found
