"""Optimizers by name over parameter groups, and the learning rate as a function of step, epoch and history.

Depends on torch.optim, not on networks or losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tl.trainer.config import Optimizer, Schedule
from tl.trainer.models.freezing import ParameterGroup

# Source: the defaults of torch's OneCycleLR: warm-up from 1/25 for 30% of the steps, then down to 1/250,000.
_RISE, _START, _END = 0.3, 1 / 25, 1 / 250_000


@dataclass(frozen=True, kw_only=True)
class SchedulePlan:
    """A schedule and its parameters, documented in `TrainConfig`."""

    schedule: Schedule
    epochs: int
    warmup_epochs: float
    drop_epochs: int
    drop_factor: float


def lr_factor(step: int, steps_per_epoch: int, plan: SchedulePlan, monitored: Sequence[float] = ()) -> float:
    """Fraction of the peak learning rate at a step, counted from 0.

    `monitored`: the monitored value of each finished epoch, smaller is better; only used by `plateau`.
    Warm-up is linear and lasts at most half of the epochs; one-cycle has its own warm-up.
    """
    total = plan.epochs * steps_per_epoch
    if plan.schedule == "onecycle":
        return _onecycle(step, total)
    warmup = min(plan.warmup_epochs, plan.epochs / 2) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if plan.schedule == "cosine":
        return _cosine((step - warmup) / max(1.0, total - warmup))
    if plan.schedule == "step":
        drops: int = (step // steps_per_epoch) // plan.drop_epochs
        return math.pow(plan.drop_factor, drops)
    if plan.schedule == "plateau":
        return math.pow(plan.drop_factor, count_plateaus(monitored, plan.drop_epochs))
    return 1.0


def count_plateaus(monitored: Sequence[float], drop_epochs: int) -> int:
    """Number of times that `drop_epochs` consecutive epochs brought no improvement; the count restarts after each."""
    plateaus, waited, best = 0, 0, math.inf
    for value in monitored:
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        if waited == drop_epochs:
            plateaus, waited = plateaus + 1, 0
    return plateaus


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _onecycle(step: int, total: int) -> float:
    """Source: Smith & Topin 2018, at torch's steps; momentum is unchanged."""
    top = max(_RISE * total - 1, 0.0)
    if step < top:
        return _START + (1 - _START) * _cosine(1 - step / top)
    return _END + (1 - _END) * _cosine((step - top) / max(1.0, total - 1 - top))


def build_optimizer(
    name: Optimizer, groups: Sequence[ParameterGroup], lr: float, *, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer at the peak learning rate of each group. Raises ValueError for `lbfgs`, which is a solver."""
    plain = [{"params": list(group.parameters), "lr": lr * group.lr_factor} for group in groups if group.parameters]
    # One fused kernel for all parameters; the CPU keeps the plain loop, to reproduce the results of earlier runs.
    fused = all(p.is_cuda for group in groups for p in group.parameters) or None
    if name == "sgd":
        return torch.optim.SGD(
            plain, lr, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay, fused=fused
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(plain, lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(plain, lr, weight_decay=weight_decay, fused=fused)
    if name == "adamw":
        return torch.optim.AdamW(plain, lr, weight_decay=weight_decay, fused=fused)
    raise ValueError(f"{name} is not an optimizer that trains by steps")


def set_lr(optimizer: torch.optim.Optimizer, groups: Sequence[ParameterGroup], lr: float) -> None:
    """Set the learning rate of every group, given the full rate."""
    factors = [group.lr_factor for group in groups if group.parameters]
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = lr * factor
