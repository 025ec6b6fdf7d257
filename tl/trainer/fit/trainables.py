"""Build the inputs of the loop from a config: trainable model, options, learning rate (with search), validation.

Does not depend on images or on the order of a run.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl.errors import TrainingError
from tl.evaluation.calibration import softmax
from tl.evaluation.metrics import expected_calibration_error, macro_f1
from tl.progress import Progress
from tl.trainer.config import Optimizer, TrainConfig
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.loop import Batches, Figures, FitOptions
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.optimizers import build_optimizer, set_lr
from tl.trainer.fit.steps import (
    Batch,
    Classification,
    Objective,
    TrainableModel,
    balanced_class_weights,
    build_mix,
    build_scaler,
    train_step,
)
from tl.trainer.models.freezing import ParameterGroup, parameter_groups, thaw_trunk
from tl.trainer.models.network import Network
from tl.trainer.options import settled
from tl.trainer.run_folder.run import Run

_LOWEST, _HIGHEST, _STEPS = 1e-6, 1.0, 100
_SMOOTHING = 0.8
_MEASURED_STEPS = 5
# The test ends when the smoothed loss exceeds its minimum by this factor.
_BROKEN_AWAY = 3.0


@dataclass(frozen=True)
class FinderRow:
    """One step of the learning rate test: a row of `lr_finder.csv`."""

    lr: float
    loss: float
    smoothed_loss: float


def find_lr(
    trainable: TrainableModel,
    batches: Batches,
    optimizer: Optimizer,
    *,
    momentum: float,
    weight_decay: float,
    seed: int,
    machine: Machine,
    progress: Progress,
) -> tuple[float, list[FinderRow]]:
    """Suggest a peak learning rate: a tenth of the rate with the lowest smoothed loss. Returns it and the whole curve.

    Raises `TrainingError` if even the smallest rate gives no finite loss.
    Source: Smith 2017; a tenth of the minimum is fastai's `minimum` rule.
    """
    module = trainable.module
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(seed * 100_003)
    trainable.begin_epoch(1)
    module.train()
    steps = build_optimizer(optimizer, trainable.groups, _LOWEST, momentum=momentum, weight_decay=weight_decay)
    scaler = build_scaler(machine)
    rows: list[FinderRow] = []
    average = 0.0
    progress.start("searching for a learning rate", _STEPS, "steps")
    for step, batch in enumerate(itertools.islice(_endless(batches), _STEPS)):
        lr = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        set_lr(steps, trainable.groups, lr)
        results = train_step(trainable, module, [batch], steps, scaler, machine, Ranks(), None)
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
        raise TrainingError(f"lr auto: the loss is not finite even at the lowest learning rate, {_LOWEST:g}")
    return min(rows, key=lambda row: row.smoothed_loss).lr / 10, rows


def measure_steps(trainable: TrainableModel, batches: Batches, machine: Machine) -> float:
    """Median seconds of a training step. Changes the module."""
    optimizer = build_optimizer("sgd", trainable.groups, 0.0, momentum=0.0, weight_decay=0.0)
    scaler = build_scaler(machine)
    trainable.module.train()
    seconds = []
    started = time.perf_counter()
    for batch in itertools.islice(_endless(batches), _MEASURED_STEPS):
        results = train_step(trainable, trainable.module, [batch], optimizer, scaler, machine, Ranks(), None)
        float(results[0].losses.sum())  # waits for the device
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return float(np.median(seconds[1:]))  # the first step also starts workers and allocates memory


def _endless(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count(1):
        yield from batches.epoch(epoch)


def class_objective(
    config: TrainConfig, class_names: tuple[str, ...], train_ids: NDArray[np.int64], machine: Machine
) -> Classification:
    """The objective of classification. `train_ids` int64 (N,): classes of the training images."""
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_class_weights(train_ids.tolist(), len(class_names)).to(machine.device)
    return Classification(class_names, weights, config.label_smoothing)


def build_trainable(config: TrainConfig, module: nn.Module, objective: Objective) -> TrainableModel:
    """A whole network with its freezing, or a head alone."""
    trainable = TrainableModel(module, [ParameterGroup(tuple(module.parameters()), 1.0)], objective)
    if not isinstance(module, Network):
        return trainable
    every, trunk = config.unfreeze_every, module.trunk
    if every is not None:
        trainable = dataclasses.replace(trainable, begin_epoch=lambda epoch: thaw_trunk(trunk, epoch, every))
    mix = None
    if isinstance(objective, Classification):
        mix = build_mix(config.mixup, config.cutmix, len(objective.class_names))
    return dataclasses.replace(trainable, groups=_network_groups(module, config), mix=mix)


def fit_options(config: TrainConfig) -> FitOptions:
    """The loop options of a config."""
    return FitOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(FitOptions)})


def settle_lr(
    config: TrainConfig, run: Run, trainable: TrainableModel, batches: Batches, machine: Machine, progress: Progress
) -> TrainConfig:
    """Search the learning rate if it is `auto`; writes `lr_finder.csv` and the config with the rate that was found."""
    if config.lr != "auto" or config.optimizer is None:
        return config
    found, rows = find_lr(
        trainable,
        batches,
        config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        seed=config.seed,
        machine=machine,
        progress=progress,
    )
    run.save_rows("lr_finder.csv", FinderRow, rows)
    progress.say(f"lr auto: {found:.2g} (lr_finder.csv)")
    config = dataclasses.replace(config, lr=float(f"{found:.2g}"))
    run.save_config(dataclasses.replace(run.load_config(), lr=config.lr))
    return config


def validate(logits: NDArray[np.floating], true_ids: NDArray[np.int64]) -> Figures:
    """Score logits (N, C) of the validation split; all NaN if any logit is not finite."""
    if not np.isfinite(logits).all():
        return dict.fromkeys(("loss", "top1_accuracy", "macro_f1", "ece"), math.nan)
    probabilities = softmax(logits)
    decided = probabilities.argmax(axis=1)
    of_true = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(true_ids))
    confidence = probabilities.max(axis=1)
    return {
        "loss": float(of_true),
        "top1_accuracy": float((decided == true_ids).mean()),
        "macro_f1": macro_f1(true_ids, decided, logits.shape[1]),
        "ece": expected_calibration_error(decided == true_ids, confidence),
    }


def _network_groups(network: Network, config: TrainConfig) -> list[ParameterGroup]:
    others = [network.head] if network.aux is None else [network.head, network.aux]
    return parameter_groups(network.trunk, others, settled(config.layer_lr_decay))
