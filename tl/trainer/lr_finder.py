"""The learning-rate range test: raise the rate until the loss breaks away, and suggest one well before that.

Knows steps and losses. Leaves the module as it found it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tl.errors import TrainingError
from tl.trainer.config import Optimizer
from tl.trainer.distributed import Ranks
from tl.trainer.loop import Batches
from tl.trainer.machine import Machine
from tl.trainer.optimizers import build_optimizer, set_lr
from tl.trainer.progress import Progress
from tl.trainer.stepping import Batch, Trainee, build_scaler, take_step

_LOWEST, _HIGHEST, _STEPS = 1e-6, 1.0, 100
_SMOOTHING = 0.8
# The test ends where the smoothed loss is this many times its lowest.
_BROKEN_AWAY = 3.0


@dataclass(frozen=True)
class FinderRow:
    """One step of the test: a row of `lr_finder.csv`."""

    lr: float
    loss: float
    smoothed_loss: float


def find_lr(
    trainee: Trainee,
    batches: Batches,
    optimizer: Optimizer,
    *,
    momentum: float,
    weight_decay: float,
    seed: int,
    machine: Machine,
    progress: Progress,
) -> tuple[float, list[FinderRow]]:
    """Suggest a peak learning rate: a tenth of the one with the lowest smoothed loss. Returns it and the whole curve.

    Raises `TrainingError` if not even the smallest rate gives a finite loss.
    Source: Smith 2017; a tenth of the minimum is fastai's `minimum` rule.
    """
    module = trainee.module
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(seed * 100_003)
    trainee.begin_epoch(1)
    module.train()
    steps = build_optimizer(optimizer, trainee.groups, _LOWEST, momentum=momentum, weight_decay=weight_decay)
    scaler = build_scaler(machine)
    rows: list[FinderRow] = []
    average = 0.0
    progress.start("searching a learning rate", _STEPS, "steps")
    for step, batch in enumerate(itertools.islice(_endless(batches), _STEPS)):
        lr = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        set_lr(steps, trainee.groups, lr)
        results = take_step(trainee, module, [batch], steps, scaler, machine, Ranks(), None)
        loss = float(results[0].losses.mean())
        if not math.isfinite(loss):
            break
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        rows.append(FinderRow(lr, loss, average / (1 - _SMOOTHING ** (step + 1))))
        progress.advance(1, f"lr {lr:.2g}, loss {loss:.3f}")
        if rows[-1].smoothed_loss > _BROKEN_AWAY * min(row.smoothed_loss for row in rows):
            break
    module.load_state_dict(before)
    if not rows:
        raise TrainingError(f"lr auto: the loss is not finite at learning rate {_LOWEST:g} already")
    return min(rows, key=lambda row: row.smoothed_loss).lr / 10, rows


def _endless(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count(1):
        yield from batches.epoch(epoch)
