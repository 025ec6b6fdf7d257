"""The loss of several labels, and how a network learns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tl.evaluation.multilabel import f1_scores, sigmoid
from tl.trainer.fit.loop import Figures
from tl.trainer.fit.target_training import TargetTraining, mean_of_known
from tl.trainer.multilabel.logistic import solve_for_run
from tl.trainer.multilabel.task import MultilabelTask

_HALF = 0.5


@dataclass(frozen=True)
class LabelSets:
    """Binary cross-entropy of logits (n, C), averaged over the known labels; NaN targets are unknown.

    `pos_weight` (C,): weight of a present label relative to an absent one, None for equal weights.
    """

    class_names: Sequence[str]
    pos_weight: Tensor | None = None
    score_name = "label_accuracy"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each image's known labels (n,)."""
        weight = None if self.pos_weight is None else self.pos_weight.to(outputs.device)
        values = functional.binary_cross_entropy_with_logits(
            outputs.float(), targets.nan_to_num(), pos_weight=weight, reduction="none"
        )
        return mean_of_known(values, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of each image's known labels that are right at probability 0.5 (n,)."""
        return mean_of_known(((outputs > 0) == (targets.nan_to_num() > _HALF)).float(), targets)

    def describe(self, targets: Tensor) -> str:
        """Names of the labels of these images."""
        present = (targets.nan_to_num() > _HALF).any(dim=0).tolist()
        named = [name for name, has in zip(self.class_names, present, strict=True) if has]
        return f"labels {', '.join(named[:3])}" + (" and others" if len(named) > 3 else "")

    def figures(self, outputs: NDArray[np.floating], targets: NDArray[np.floating]) -> Figures:
        """Mean loss and scores of validation images; NaN if an output is not finite."""
        if not np.isfinite(outputs).all():
            return dict.fromkeys(("loss", self.score_name, "macro_f1"), float("nan"))
        found, wanted = torch.from_numpy(np.asarray(outputs, np.float32)), torch.from_numpy(targets)
        decided = sigmoid(outputs) >= _HALF
        per_label = f1_scores(decided, targets)[(targets == 1).any(axis=0)]
        return {
            "loss": float(LabelSets(self.class_names).losses(found, wanted).mean()),
            self.score_name: float(self.scores(found, wanted).mean()),
            "macro_f1": float(per_label.mean()) if per_label.size else 0.0,
        }


def build_objective(task: MultilabelTask) -> LabelSets:
    """The objective of a run. Balanced class weights make presence and absence of each label weigh the same.

    Source: pos_weight = absent / present, as in torch.nn.BCEWithLogitsLoss.
    """
    if task.config.class_weights != "balanced":
        return LabelSets(task.outputs)
    labels = task.labels[task.store.indices("train")]
    weight = (labels == 0).sum(axis=0) / (labels == 1).sum(axis=0)
    return LabelSets(task.outputs, torch.from_numpy(weight.astype(np.float32)))


def build_target_training(task: MultilabelTask) -> TargetTraining:
    """How a run's network learns its labels."""
    return TargetTraining(
        task=task,
        targets=task.labels.astype(np.float32),
        objective=build_objective(task),
        solve=lambda places, run, progress: solve_for_run(task, places, run, progress).head,
    )
