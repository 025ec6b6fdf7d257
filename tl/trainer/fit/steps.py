"""One optimizer step: batches in, updated weights and losses out. Also the objectives, mixup and CutMix.

Contains losses, mixed precision, gradient clipping and accumulation. Contains no epochs, schedules or file access.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl.errors import TrainingError
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.machine import Machine
from tl.trainer.models.freezing import ParameterGroup

# Source: Szegedy et al. 2016 weight the auxiliary loss of Inception by 0.3; torchvision's reference training by 0.4.
_AUX_WEIGHT = 0.4


class Objective(Protocol):
    """The losses of one task. `outputs`: the network's outputs in training mode; `targets` (n, ...): ground truth.

    `score_name`: name of the average of `scores`, as in the columns `train_NAME` and `val_NAME` of `history.csv`.
    """

    score_name: str

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of each image (n,), differentiable."""

    def scores(self, outputs: Any, targets: Tensor) -> Tensor:
        """The human-readable metric of each image (n,)."""

    def describe(self, targets: Tensor) -> str:
        """A description of the targets, for error messages about faulty images."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of logits (n, C), or (logits, auxiliary logits), with class ids int64 (n,) or shares (n, C).

    `class_weights` (C,): weight of each class in the loss, 1 on average.
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
        """Names of the first classes."""
        ids = sorted(set(targets.tolist()))
        named = ", ".join(f"'{self.class_names[i]}'" for i in ids[:3])
        return f"class {named}" + (" and others" if len(ids) > 3 else "")


def balanced_class_weights(class_ids: Sequence[int], num_classes: int) -> Tensor:
    """N / (C * n_c) for each class: rare classes weigh more, and the mean over the images is 1.

    Source: scikit-learn's class_weight="balanced".
    """
    counts = torch.bincount(torch.tensor(class_ids), minlength=num_classes)
    return len(class_ids) / (num_classes * counts.clamp_min(1).float())


# (images uint8 (N, H, W, 3), class ids (N,)) -> (images (N, H, W, 3), class shares float32 (N, C))
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_mix(mixup: float, cutmix: float, num_classes: int) -> Mix | None:
    """A mixer for the given alphas of the beta distribution; with both set, each batch draws one. None if both are 0.

    Source: Zhang et al. 2018, Yun et al. 2019.
    """
    if mixup == 0 and cutmix == 0:
        return None
    from torchvision.transforms import v2

    ways = [
        way(alpha=alpha, num_classes=num_classes) for way, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    chosen = ways[0] if len(ways) == 1 else v2.RandomChoice(ways)

    def mix(images: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
        # Blending in uint8 would round; the network's normalization also accepts floats in 0..255.
        mixed, shares = chosen(images.permute(0, 3, 1, 2).float(), class_ids)
        return mixed.permute(0, 2, 3, 1), shares

    return mix


# This process's inputs (n, ...) and targets (n, ...), and the number of images in the batch over all processes.
Batch = tuple[Tensor, Tensor, int]


def _nothing(epoch: int) -> None:
    """Do nothing at the start of an epoch."""


@dataclass(frozen=True)
class TrainableModel:
    """The module to train and its objective.

    `module`: inputs -> outputs that the `objective` accepts. `begin_epoch` sets which parameters are trained in an
    epoch, counted from 1.
    """

    module: nn.Module
    groups: Sequence[ParameterGroup]
    objective: Objective
    mix: Mix | None = None
    begin_epoch: Callable[[int], None] = _nothing


@dataclass(frozen=True)
class StepResult:
    """Result for one batch of this process: `losses` and `scores` (n,) per image, and their `targets` (n, ...)."""

    losses: Tensor
    scores: Tensor
    targets: Tensor


def train_step(
    trainable: TrainableModel,
    runner: nn.Module,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    machine: Machine,
    ranks: Ranks,
    clip_norm: float | None,
) -> list[StepResult]:
    """Accumulate the gradients of several batches and update the weights once. `runner` is the module to execute.

    The gradient is that of the mean loss over all images of all processes, however they are divided.
    """
    total = sum(count for _, _, count in batches)
    optimizer.zero_grad(set_to_none=True)
    results = []
    for inputs, targets, _ in batches:
        inputs = inputs.to(machine.device, non_blocking=True)
        targets = targets.to(machine.device, non_blocking=True)
        mixed_inputs, mixed_targets = trainable.mix(inputs, targets) if trainable.mix else (inputs, targets)
        with machine.autocast():
            outputs = runner(mixed_inputs)
            losses = trainable.objective.losses(outputs, mixed_targets)
        scaled = scaler.scale(losses.sum() * (ranks.world / total))
        scaled.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        with torch.no_grad():
            results.append(StepResult(losses.detach(), trainable.objective.scores(outputs, targets), targets))
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in trainable.groups for p in group.parameters], clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return results


def check_finite(results: Sequence[StepResult], objective: Objective, where: str, lr: float) -> None:
    """Raise `TrainingError` if a loss is not finite, naming the step, the learning rate and the images' targets."""
    for offset, result in enumerate(results):
        bad = ~torch.isfinite(result.losses)
        if not bool(bad.any()):
            continue
        after = f", {offset + 1} of the last {len(results)} batches" if len(results) > 1 else ""
        raise TrainingError(
            f"{where}{after}: the loss of {int(bad.sum())} of {len(bad)} images is not finite "
            f"({objective.describe(result.targets[bad])}) at "
            f"learning rate {lr:.3g}; lower it, or clip the gradients",
            options=[f"lr={lr / 10:.2g}", "lr=auto", "clip_norm=1"],
        )


def build_scaler(machine: Machine) -> torch.amp.GradScaler:
    """Gradient scaler that prevents fp16 underflow; does nothing for other precisions."""
    return torch.amp.GradScaler(machine.device.type, enabled=machine.autocast_dtype == torch.float16)
