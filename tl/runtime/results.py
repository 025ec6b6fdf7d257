"""What a prediction gives back: small frozen dataclasses with numpy arrays, and their plain form.

Knows neither models nor files formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MemberVotes:
    """How an ensemble came to its label.

    `labels`: each member's own label, in member order. `probabilities`: float32 (M, C), in the ensemble's class order.
    `agreement`: share of members that voted for the decided label. `entropy`: of the voted probabilities, in nats.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    agreement: float
    entropy: float


@dataclass(frozen=True)
class Classification:
    """One picture's prediction. `probabilities`: float32 (C,) in the order of `class_names`.

    `confidence` is the probability of `label`. `votes` is None for a single model. `path` is '' for data without one.
    """

    path: str
    label: str
    confidence: float
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    votes: MemberVotes | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = {
            "path": self.path,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(zip(self.class_names, self.probabilities.tolist(), strict=True)),
        }
        if self.votes is not None:
            plain |= {
                "agreement": self.votes.agreement,
                "entropy": self.votes.entropy,
                "votes": list(self.votes.labels),
            }
        return plain


@dataclass(frozen=True)
class Failure:
    """A picture that gave no prediction, and why."""

    path: str
    error: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"path": self.path, "error": self.error}


Result = Classification | Failure
