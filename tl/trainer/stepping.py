"""One optimiser step: batches in, weights changed, losses out.

Knows losses, mixed precision, gradient clipping and accumulation. Does not know epochs, schedules or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tl.errors import TrainingError
from tl.trainer.distributed import Ranks
from tl.trainer.freezing import ParameterGroup
from tl.trainer.machine import Machine
from tl.trainer.mixing import Mix
from tl.trainer.objectives import Objective

# Inputs (n, ...), their targets (n, ...) of this process, and the pictures of the batch over all processes.
Batch = tuple[Tensor, Tensor, int]


def _nothing(epoch: int) -> None:
    """Nothing changes from epoch to epoch."""


@dataclass(frozen=True)
class Trainee:
    """What is trained, and what it is trained for.

    `module`: inputs -> outputs that the `objective` knows. `begin_epoch` decides which parameters are trained in an
    epoch, counted from 1.
    """

    module: nn.Module
    groups: Sequence[ParameterGroup]
    objective: Objective
    mix: Mix | None = None
    begin_epoch: Callable[[int], None] = _nothing


@dataclass(frozen=True)
class StepResult:
    """Of one batch of this process: `losses` and `scores` (n,) by picture, and their `targets` (n, ...)."""

    losses: Tensor
    scores: Tensor
    targets: Tensor


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
    for inputs, targets, _ in batches:
        inputs = inputs.to(machine.device, non_blocking=True)
        targets = targets.to(machine.device, non_blocking=True)
        mixed_inputs, mixed_targets = trainee.mix(inputs, targets) if trainee.mix else (inputs, targets)
        with machine.autocast():
            outputs = runner(mixed_inputs)
            losses = trainee.objective.losses(outputs, mixed_targets)
        scaled = scaler.scale(losses.sum() * (ranks.world / total))
        scaled.backward()  # type: ignore[no-untyped-call]  # torch lacks its type
        with torch.no_grad():
            results.append(StepResult(losses.detach(), trainee.objective.scores(outputs, targets), targets))
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in trainee.groups for p in group.parameters], clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return results


def check_finite(results: Sequence[StepResult], objective: Objective, where: str, lr: float) -> None:
    """Raise `TrainingError` if a loss is not finite, naming the step, the learning rate and the pictures' targets."""
    for offset, result in enumerate(results):
        bad = ~torch.isfinite(result.losses)
        if not bool(bad.any()):
            continue
        after = f", {offset + 1} of the last {len(results)} batches" if len(results) > 1 else ""
        raise TrainingError(
            f"{where}{after}: the loss of {int(bad.sum())} of {len(bad)} pictures is not finite "
            f"({objective.describe(result.targets[bad])}) at "
            f"learning rate {lr:.3g}; lower --lr (a tenth is a good next try), or give --lr auto or --clip-norm 1"
        )


def build_scaler(machine: Machine) -> torch.amp.GradScaler:
    """Keeps fp16 gradients from vanishing; does nothing in other arithmetic."""
    return torch.amp.GradScaler(machine.device.type, enabled=machine.autocast_dtype == torch.float16)
