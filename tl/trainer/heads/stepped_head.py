"""Train a head by steps on in-memory features.

Contains no images, tasks or file access.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl.progress import Progress
from tl.trainer.config import TrainConfig
from tl.trainer.fit.batches import TensorBatches
from tl.trainer.fit.loop import Batches, Checkpoints, EpochRow, Figures, fit
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.steps import Objective, TrainableModel
from tl.trainer.fit.trainables import build_trainable, fit_options, validate
from tl.trainer.models.network import Standardize, build_head
from tl.trainer.options import settled

# Features float32 (N, ...) and their targets (N, ...): class ids int64, or numbers float32.
Labeled = tuple[NDArray[np.float32], NDArray[Any]]


@dataclass(frozen=True)
class SteppedHead:
    """Features -> logits, with the training state. `standardize` and `head` are on the same device."""

    standardize: Standardize
    head: nn.Module
    trainable: TrainableModel
    batches: Batches
    machine: Machine

    @torch.no_grad()
    def logits(self, features: NDArray[np.float32], head: nn.Module | None = None) -> NDArray[np.float32]:
        """Features (N, ...) -> logits (N, C), from this head or a copy of it."""
        module = (head or self.head).eval()
        given = torch.from_numpy(features).to(self.machine.device)
        logits: NDArray[np.float32] = module(self.standardize(given)).float().cpu().numpy()
        return logits

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """All tensors under their names in a `Network`."""
        modules = {"head": self.head, "standardize": self.standardize}
        return {
            f"{prefix}.{name}": tensor.detach().cpu().numpy()
            for prefix, module in modules.items()
            for name, tensor in module.state_dict().items()
        }


def build_stepped_head(
    config: TrainConfig, train: Labeled, num_outputs: int, objective: Objective, machine: Machine
) -> SteppedHead:
    """An untrained head, and its batches of standardized features."""
    features, targets = torch.from_numpy(train[0]).to(machine.device), torch.from_numpy(train[1])
    shape = tuple(features.shape[1:])
    standardize = Standardize(shape).to(machine.device)
    standardize.fit(features)
    torch.manual_seed(config.seed)
    head = build_head(
        settled(config.head), shape, num_outputs, sizes=settled(config.head_sizes), dropout=config.dropout
    )
    trainable = build_trainable(config, head.to(machine.device), objective)
    batches = TensorBatches(
        standardize(features),
        targets.to(machine.device),
        batch_size=settled(config.batch_size),
        seed=config.seed,
        sampler=config.sampler,
    )
    return SteppedHead(standardize, head, trainable, batches, machine)


def fit_stepped_head(
    stepped: SteppedHead,
    config: TrainConfig,
    val: Labeled,
    checkpoints: Checkpoints,
    progress: Progress,
    *,
    keeps_best: bool = True,
    score: Callable[[NDArray[np.floating], NDArray[Any]], Figures] = validate,
) -> list[EpochRow]:
    """Train the head and load its best weights on `val`, or keep its last ones. Returns the history.

    `score`: outputs and targets of `val` -> figures.
    """
    features, targets = val

    def judge(module: nn.Module) -> Figures:
        return score(stepped.logits(features, module), targets)

    options = fit_options(config)
    return fit(
        *(stepped.trainable, stepped.batches, judge, options, stepped.machine, checkpoints, progress),
        keeps_best=keeps_best,
    )
