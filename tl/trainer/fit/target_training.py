"""Train a network whose targets are rows of an array, by steps on cached features or on images.

Serves regression and multilabel. Does not read data sets or write metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.progress import Progress
from tl.trainer.config import TrainConfig
from tl.trainer.fit.batches import ImageBatches, LabeledItems
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.image_training import (
    build_on_machine,
    count_trained,
    num_workers,
    predict_logits,
    standardize,
    start_head,
)
from tl.trainer.fit.loop import Figures, best_epoch, fit
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.fit.steps import Objective
from tl.trainer.fit.trainables import build_trainable, fit_options, settle_lr
from tl.trainer.heads.solvers import LinearHead
from tl.trainer.heads.stepped_head import build_stepped_head, fit_stepped_head
from tl.trainer.heads.training import save_head
from tl.trainer.models.build import build_network
from tl.trainer.models.network import Network
from tl.trainer.options import settled
from tl.trainer.outcome import Outcome, Training
from tl.trainer.run_folder.checkpoints import RunCheckpoints
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run
from tl.trainer.task import FeatureTask


class TargetObjective(Objective, Protocol):
    """The losses of rows of targets, of which some values may be NaN: unknown."""

    def figures(self, outputs: NDArray[np.floating], targets: NDArray[np.floating]) -> Figures:
        """Mean loss and scores of validation images; NaN if an output is not finite."""


@dataclass(frozen=True)
class TargetTraining:
    """What a task trains. `targets`: float32 (N, T) of all images in the store, NaN where unknown.

    `solve`: images, run, progress -> the linear head that fine-tuning starts from. `finish` changes a trained head
    before it is scored and saved.
    """

    task: FeatureTask
    targets: NDArray[np.float32]
    objective: TargetObjective
    solve: Callable[[Sequence[int], Run, Progress], LinearHead]
    finish: Callable[[nn.Module], None] = lambda head: None


def mean_of_known(values: Tensor, targets: Tensor) -> Tensor:
    """The mean of each image's values (n, T) whose target is known: (n,)."""
    known = ~targets.isnan()
    return (values * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)


def prepare_target_training(training: TargetTraining, ranks: Ranks) -> Training:
    """Training on cached features where they suffice, else on images, whose network is built now.

    Raises `DeviceError`, `ConfigError` or `WeightsError`.
    """
    task = training.task
    if task.uses_kept_features:
        return lambda run, progress, is_resumed: _train_head(training, run, progress, is_resumed)
    network, machine = build_on_machine(
        task, ranks, lambda weights: build_network(task.config, task.info, len(task.outputs), weights)
    )
    return lambda run, progress, is_resumed: _train_network(
        training, network, machine, ranks, run, progress, is_resumed
    )


def _train_head(training: TargetTraining, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
    """Train a head by steps on cached features."""
    task, config = training.task, training.task.config
    machine = build_machine(config.device, config.precision, config.threads)
    train, val = (
        (task.split_features(split), training.targets[task.store.indices(split)]) for split in ("train", "val")
    )
    stepped = build_stepped_head(config, train, len(task.outputs), training.objective, machine)
    config = settle_lr(config, run, stepped.trainable, stepped.batches, machine, progress)
    checkpoints = RunCheckpoints(run, config.log)
    history = fit_stepped_head(stepped, config, val, checkpoints, progress, score=training.objective.figures)
    training.finish(stepped.head)
    return Outcome(
        logits=lambda split: stepped.logits(task.split_features(split)),
        save=lambda card: save_head(task, run, stepped.tensors(), card),
        trained_parameters=sum(t.size for name, t in stepped.tensors().items() if name.startswith("head.")),
        best_epoch=best_epoch(history, settled(config.monitor)),
        train_seconds=sum(row.seconds for row in history) if is_resumed else None,
    )


def _train_network(
    training: TargetTraining,
    network: Network,
    machine: Machine,
    ranks: Ranks,
    run: Run,
    progress: Progress,
    is_resumed: bool,
) -> Outcome:
    """Train a network on images."""
    task, config, store = training.task, training.task.config, training.task.store
    if task.weights is not None:
        standardize(network, store, machine)
    if config.head_init == "solved":
        solved = training.solve(store.indices("train"), run, progress) if ranks.is_first else None
        start_head(network, ranks.broadcast(solved))
    batches = _build_batches(training, config, machine, ranks)
    val = store.indices("val")
    share = ranks.shard(val)

    def judge(module: nn.Module) -> Figures:
        # A process without images of its own must still take part in collective operations.
        own = predict_logits(module.eval(), store, list(share) or val[:1], machine)[: len(share)]
        return training.objective.figures(ranks.gather(own).numpy(), training.targets[val])

    def save(card: NetworkCard) -> None:
        run.save_best({name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}, card)

    trainable = build_trainable(config, network, training.objective)
    config = settle_lr(config, run, trainable, batches, machine, progress)
    checkpoints = RunCheckpoints(run, config.log, writes=ranks.is_first)
    history = fit(trainable, batches, judge, fit_options(config), machine, checkpoints, progress, ranks)
    training.finish(network.head)
    return Outcome(
        logits=lambda split: predict_logits(network.eval(), store, store.indices(split), machine).numpy(),
        save=save,
        trained_parameters=count_trained(network),
        best_epoch=best_epoch(history, settled(config.monitor)),
        train_seconds=sum(row.seconds for row in history) if is_resumed else None,
    )


def _build_batches(training: TargetTraining, config: TrainConfig, machine: Machine, ranks: Ranks) -> ImageBatches:
    task, rows = training.task, list[Any](training.targets)
    return ImageBatches(
        LabeledItems(task.store, rows, task.augment, config.seed),
        task.store.indices("train"),
        batch_size=settled(config.batch_size),
        seed=config.seed,
        workers=num_workers(config, machine),
        epochs=settled(config.epochs),
        pin_memory=machine.device.type == "cuda",
        ranks=ranks,
    )
