"""What training makes small, and the figure that people read beside it: by picture, from a network's outputs.

Knows outputs and targets. Does not know networks, batches or optimisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

# Source: Szegedy et al. 2016 weigh the auxiliary loss of Inception by 0.3; torchvision's reference training by 0.4.
_AUX_WEIGHT = 0.4


class Objective(Protocol):
    """One task's losses. `outputs` are whatever the network gives in training, `targets` (n, ...) what it should.

    `score_name`: what `scores` average to, as in the columns `train_NAME` and `val_NAME` of `history.csv`.
    """

    score_name: str

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of each picture (n,), differentiable."""

    def scores(self, outputs: Any, targets: Tensor) -> Tensor:
        """The figure that people read, of each picture (n,)."""

    def describe(self, targets: Tensor) -> str:
        """Whose targets these are, for a message about faulty pictures."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of class ids int64 (n,) or shares (n, C) with logits (n, C), or with (logits, auxiliary logits).

    `class_weights` (C,): of each class in the loss, 1 on average.
    """

    class_names: Sequence[str]
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    score_name = "top1_accuracy"

    def losses(self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Cross-entropy (n,)."""
        if isinstance(outputs, tuple):
            main, aux = (self.losses(logits, targets) for logits in outputs)
            return main + _AUX_WEIGHT * aux
        return functional.cross_entropy(
            outputs.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )

    def scores(self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Whether the most probable class is the true one (n,)."""
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return logits.argmax(dim=1) == targets

    def describe(self, targets: Tensor) -> str:
        """The first classes by name."""
        ids = sorted(set(targets.tolist()))
        named = ", ".join(f"'{self.class_names[i]}'" for i in ids[:3])
        return f"class {named}" + (" and others" if len(ids) > 3 else "")


def balanced_class_weights(class_ids: Sequence[int], num_classes: int) -> Tensor:
    """N / (C * n_c) for each class: rare ones weigh more, and the mean over the pictures is 1.

    Source: scikit-learn's class_weight="balanced".
    """
    counts = torch.bincount(torch.tensor(class_ids), minlength=num_classes)
    return len(class_ids) / (num_classes * counts.clamp_min(1).float())
