"""One optimiser step: batches in, weights changed, losses out.

Knows losses, mixed precision, gradient clipping and accumulation. Does not know epochs, schedules or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl.errors import TrainingError
from tl.trainer.distributed import Ranks
from tl.trainer.freezing import ParameterGroup
from tl.trainer.machine import Machine
from tl.trainer.mixing import Mix

# Source: Szegedy et al. 2016 weigh the auxiliary loss of Inception by 0.3; torchvision's reference training by 0.4.
_AUX_WEIGHT = 0.4

# Inputs (n, ...), class ids int64 (n,) of this process, and the pictures of the batch over all processes.
Batch = tuple[Tensor, Tensor, int]


def _nothing(epoch: int) -> None:
    """Nothing changes from epoch to epoch."""


@dataclass(frozen=True)
class Trainee:
    """What is trained, and how its loss is made.

    `module`: inputs -> logits (n, C), or (logits, auxiliary logits) in training. `class_weights` (C,): of each class in
    the loss, 1 on average. `begin_epoch` decides which parameters are trained in an epoch, counted from 1.
    """

    module: nn.Module
    groups: Sequence[ParameterGroup]
    class_names: Sequence[str]
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    mix: Mix | None = None
    begin_epoch: Callable[[int], None] = _nothing


@dataclass(frozen=True)
class StepResult:
    """Of one batch of this process: `losses` (n,) and `hits` bool (n,) by picture, their `class_ids` (n,)."""

    losses: Tensor
    hits: Tensor
    class_ids: Tensor


def take_step(
    trainee: Trainee,
    runner: nn.Module,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    machine: Machine,
    ranks: Ranks,
    clip_norm: float | None,
) -> list[StepResult]:
    """Add up the gradients of some batches and change the weights once. `runner` is the module as it runs.

    The gradient is that of the mean loss over all pictures of all processes, however they are divided.
    """
    total = sum(count for _, _, count in batches)
    optimizer.zero_grad(set_to_none=True)
    results = []
    for inputs, class_ids, _ in batches:
        inputs = inputs.to(machine.device, non_blocking=True)
        class_ids = class_ids.to(machine.device, non_blocking=True)
        mixed, targets = trainee.mix(inputs, class_ids) if trainee.mix else (inputs, class_ids)
        with machine.autocast():
            outputs = runner(mixed)
            losses = _losses(trainee, outputs, targets)
        scaled = scaler.scale(losses.sum() * (ranks.world / total))
        scaled.backward()  # type: ignore[no-untyped-call]  # torch lacks its type
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        results.append(StepResult(losses.detach(), logits.detach().argmax(dim=1) == class_ids, class_ids))
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in trainee.groups for p in group.parameters], clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return results


def check_finite(results: Sequence[StepResult], class_names: Sequence[str], where: str, lr: float) -> None:
    """Raise `TrainingError` if a loss is not finite, naming the step, the learning rate and the classes."""
    for offset, result in enumerate(results):
        bad = ~torch.isfinite(result.losses)
        if not bool(bad.any()):
            continue
        ids = sorted(set(result.class_ids[bad].tolist()))
        named = ", ".join(f"'{class_names[i]}'" for i in ids[:3]) + (" and others" if len(ids) > 3 else "")
        after = f", {offset + 1} of the last {len(results)} batches" if len(results) > 1 else ""
        raise TrainingError(
            f"{where}{after}: the loss of {int(bad.sum())} of {len(bad)} pictures is not finite (class {named}) at "
            f"learning rate {lr:.3g}; lower --lr (a tenth is a good next try), or give --lr auto or --clip-norm 1"
        )


def build_scaler(machine: Machine) -> torch.amp.GradScaler:
    """Keeps fp16 gradients from vanishing; does nothing in other arithmetic."""
    return torch.amp.GradScaler(machine.device.type, enabled=machine.autocast_dtype == torch.float16)


def balanced_class_weights(class_ids: Sequence[int], num_classes: int) -> Tensor:
    """N / (C * n_c) for each class: rare ones weigh more, and the mean over the pictures is 1.

    Source: scikit-learn's class_weight="balanced".
    """
    counts = torch.bincount(torch.tensor(class_ids), minlength=num_classes)
    return len(class_ids) / (num_classes * counts.clamp_min(1).float())


def _losses(trainee: Trainee, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    if isinstance(outputs, tuple):
        main, aux = (_losses(trainee, logits, targets) for logits in outputs)
        return main + _AUX_WEIGHT * aux
    return functional.cross_entropy(
        outputs.float(),
        targets,
        weight=trainee.class_weights,
        label_smoothing=trainee.label_smoothing,
        reduction="none",
    )
