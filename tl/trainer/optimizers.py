"""Optimisers by name over groups of parameters.

Knows torch.optim. Does not know schedules, networks or losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tl.trainer.config import Optimizer
from tl.trainer.freezing import ParameterGroup


def build_optimizer(
    name: Optimizer, groups: Sequence[ParameterGroup], lr: float, *, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser at the peak learning rate of each group. Raises ValueError for `lbfgs`, which is a solver."""
    plain = [{"params": list(group.parameters), "lr": lr * group.lr_factor} for group in groups if group.parameters]
    # One kernel for all parameters; on the CPU the plain loop stays, whose results earlier runs were made with.
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
    raise ValueError(f"{name} is not trained by steps")


def set_lr(optimizer: torch.optim.Optimizer, groups: Sequence[ParameterGroup], lr: float) -> None:
    """Set every group's learning rate, given the full one."""
    factors = [group.lr_factor for group in groups if group.parameters]
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = lr * factor
