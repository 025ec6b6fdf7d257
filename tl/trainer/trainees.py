"""From a config to what the loop wants: trainee, options, learning rate, validation.

Knows configs and the loop's types. Does not know pictures or run order.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl.trainer.calibration import softmax
from tl.trainer.config import TrainConfig
from tl.trainer.freezing import ParameterGroup, parameter_groups, thaw_trunk
from tl.trainer.loop import Batches, Figures, FitOptions
from tl.trainer.lr_finder import FinderRow, find_lr
from tl.trainer.machine import Machine
from tl.trainer.metrics import expected_calibration_error, macro_f1
from tl.trainer.mixing import build_mix
from tl.trainer.network import Network
from tl.trainer.objectives import Classification, balanced_class_weights
from tl.trainer.progress import Progress
from tl.trainer.runs import Run
from tl.trainer.stepping import Trainee


def build_trainee(
    config: TrainConfig,
    module: nn.Module,
    class_names: tuple[str, ...],
    train_ids: NDArray[np.int64],
    machine: Machine,
) -> Trainee:
    """A whole network with its freezing, or a head alone. `train_ids` int64 (N,): classes of the training pictures."""
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_class_weights(train_ids.tolist(), len(class_names)).to(machine.device)
    trainee = Trainee(
        module=module,
        groups=[ParameterGroup(tuple(module.parameters()), 1.0)],
        objective=Classification(class_names, weights, config.label_smoothing),
    )
    if not isinstance(module, Network):
        return trainee
    every, trunk = config.unfreeze_every, module.trunk
    if every is not None:
        trainee = dataclasses.replace(trainee, begin_epoch=lambda epoch: thaw_trunk(trunk, epoch, every))
    mix = build_mix(config.mixup, config.cutmix, len(class_names))
    return dataclasses.replace(trainee, groups=_network_groups(module, config), mix=mix)


def fit_options(config: TrainConfig) -> FitOptions:
    """The loop's share of a config."""
    return FitOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(FitOptions)})


def settle_lr(
    config: TrainConfig, run: Run, trainee: Trainee, batches: Batches, machine: Machine, progress: Progress
) -> TrainConfig:
    """Search the learning rate where `auto` was asked; writes `lr_finder.csv` and the config with what was found."""
    if config.lr != "auto" or config.optimizer is None:
        return config
    found, rows = find_lr(
        trainee,
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
    """Score logits (N, C) of the validation split; not-a-number throughout where any of them is not finite."""
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
    return parameter_groups(network.trunk, others, config.layer_lr_decay)
