"""Training as one of several processes that torchrun started: shares of batches, sums over all, and who writes.

Knows torch.distributed. Does not know networks, images or files. Without torchrun there is one process and nothing
here does anything.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tl.errors import ConfigError

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

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Own part of what all have."""
        return items[self.rank :: self.world]

    def all_reduce(self, *numbers: Tensor) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world > 1:
            for number in numbers:
                dist.all_reduce(number)

    def gather(self, part: Tensor) -> Tensor:
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

    def broadcast(self, value: Item) -> Item:
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
        named = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"  # torch renamed it
        options: dict[str, Any] = {name: False}
        return DistributedDataParallel(module, **options)


def join_ranks() -> Ranks:
    """Join the processes that torchrun started, or be alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # The first process looks at the data while the others wait for it.
        dist.init_process_group(backend, timeout=timedelta(hours=6))
    return Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))


def leave_ranks() -> None:
    """Part from the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def share_batch_norm(module: nn.Module, ranks: Ranks) -> None:
    """Let every batch norm measure the whole batch, not its process's part. Raises `ConfigError` for unknown kinds."""
    if ranks.world == 1:
        return
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = _SharedBatchNorm2d
        elif isinstance(child, _BatchNorm):  # such as timm's, which holds its activation too
            raise ConfigError(
                f"{type(child).__name__} of this backbone cannot be shared by processes: leave out torchrun"
            )


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes; torch's SyncBatchNorm does not run on the CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if not self.training:
            return super().forward(input)
        values = input.float()
        channels = self.num_features
        count = torch.tensor([values.numel() / channels], device=values.device)
        # Each sum is differentiable; gradients flow back to every process's images.
        sums = _AddUp.apply(torch.cat([values.sum(dim=(0, 2, 3)), count]))
        total = sums[-1]
        mean = sums[:channels] / total
        centered = values - mean.view(1, -1, 1, 1)
        var = _AddUp.apply((centered * centered).sum(dim=(0, 2, 3))) / total
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
                rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach(), rate)
                self.running_var.lerp_(var.detach() * total / (total - 1), rate)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        normalized: Tensor = centered * scale.view(1, -1, 1, 1)
        if self.bias is not None:
            normalized = normalized + self.bias.view(1, -1, 1, 1)
        return normalized.to(input.dtype)


class _AddUp(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum over all processes too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Sum values."""
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum gradients."""
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
