"""Distributed training under torchrun: sharding batches, summing over processes, choosing the process that writes.

Depends on torch.distributed, not on networks, images or files. Without torchrun there is one process, and every
function here is a no-op.
"""

from __future__ import annotations

import gc
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
    """One process of the process group. `local` is the rank within the machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's share of the items."""
        return items[self.rank :: self.world]

    def all_reduce(self, *numbers: Tensor) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world > 1:
            for number in numbers:
                dist.all_reduce(number)

    def gather(self, part: Tensor) -> Tensor:
        """Undo `shard`: the rows of all processes in rank order, (N, ...)."""
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
        """The value of the first process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its backward pass averages gradients over the processes."""
        if self.world == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        # Buffers are equal on all processes: batch norm uses the whole batch.
        named = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"  # renamed in torch
        options: dict[str, Any] = {name: False}
        return DistributedDataParallel(module, **options)


def join_ranks() -> Ranks:
    """Join the process group that torchrun started, or return a single process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # The other processes wait while the first one reads the data.
        dist.init_process_group(backend, timeout=timedelta(hours=6))
    return Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))


def leave_ranks() -> None:
    """Leave the process group.

    Wrapped modules, which refer to themselves and to the group, are freed first: otherwise a thread of gloo may still
    release tensors of Python's while Python ends, which aborts the process (seen once in hundreds of trainings).
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def share_batch_norm(module: nn.Module, ranks: Ranks) -> None:
    """Make every batch norm use the statistics of the global batch. Raises `ConfigError` for unsupported types."""
    if ranks.world == 1:
        return
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = _SharedBatchNorm2d
        elif isinstance(child, _BatchNorm):  # for example timm's, which includes an activation
            raise ConfigError(
                f"{type(child).__name__} of this backbone cannot be synchronized between processes: "
                "train without torchrun"
            )


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes; torch's SyncBatchNorm does not run on the CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if not self.training:
            return super().forward(input)
        values = input.float()
        channels = self.num_features
        count = torch.tensor([values.numel() / channels], device=values.device)
        # Each sum is differentiable; gradients flow back to the images of every process.
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
    """Sum over all processes; its gradient is also summed over all processes."""

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
