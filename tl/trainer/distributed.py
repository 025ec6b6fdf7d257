"""Training as one of several processes that torchrun started: shares of batches, sums over all, and who writes.

Knows torch.distributed. Does not know networks, pictures or files. Without torchrun there is one process and nothing
here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """One process among its fellows. `local` counts within the machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Own part of what all have."""
        return items[self.rank :: self.world]

    def add_up(self, *numbers: Tensor) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world > 1:
            for number in numbers:
                dist.all_reduce(number)

    def interleave(self, part: Tensor) -> Tensor:
        """Undo `share`: rows of all processes in their order, (N, ...)."""
        if self.world == 1:
            return part
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part.cpu())
        total = sum(len(p) for p in parts)
        whole = part.new_empty((total, *part.shape[1:]))
        for rank, rows in enumerate(parts):
            whole[rank :: self.world] = rows.to(part.device)
        return whole

    def tell(self, value: Item) -> Item:
        """What the first process has."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose backward pass averages gradients over the processes."""
        if self.world == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        # Buffers are equal everywhere: batch norm sees the whole batch.
        return DistributedDataParallel(module, broadcast_buffers=False)


def join_ranks() -> Ranks:
    """Join the processes that torchrun started, or be alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))


def leave_ranks() -> None:
    """Part from the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def share_batch_norm(module: nn.Module, ranks: Ranks) -> None:
    """Let every batch norm measure the whole batch, not this process's part of it."""
    if ranks.world == 1:
        return
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = _SharedBatchNorm2d
        elif isinstance(child, _BatchNorm):
            raise NotImplementedError(f"{type(child).__name__} across processes")


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes; torch's SyncBatchNorm does not run on the CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = torch.tensor([values.numel() / values.shape[1]], device=values.device)
        # Each sum is differentiable; gradients flow back to every process's pictures.
        sums = torch.cat([values.sum(dim=(0, 2, 3)), (values * values).sum(dim=(0, 2, 3)), count])
        moments: Tensor = all_reduce(sums)  # type: ignore[no-untyped-call]  # torch lacks its type
        channels = self.num_features
        total = moments[-1]
        mean = moments[:channels] / total
        var = moments[channels : 2 * channels] / total - mean * mean
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
                rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach(), rate)
                self.running_var.lerp_(var.detach() * total / (total - 1), rate)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        normalised: Tensor = values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return normalised.to(input.dtype)
