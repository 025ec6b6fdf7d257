"""Train a whole network on images: from scratch, fine-tuning, or a head on a frozen trunk with augmentation.

Does not read data sets or write metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.data.images import ImageStore
from tl.errors import ConfigError
from tl.progress import Progress
from tl.trainer.config import TrainConfig
from tl.trainer.fit.batches import ImageBatches, LabeledItems, iter_inputs
from tl.trainer.fit.distributed import Ranks, share_batch_norm
from tl.trainer.fit.loop import Figures, best_epoch, fit
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.fit.trainables import build_trainable, fit_options, settle_lr, validate
from tl.trainer.heads.solvers import LinearHead
from tl.trainer.heads.training import solve_linear
from tl.trainer.models.build import build_network
from tl.trainer.models.network import Network, OnFeatures
from tl.trainer.models.weights import Weights, read_weights
from tl.trainer.options import settled
from tl.trainer.run_folder.checkpoints import RunCheckpoints
from tl.trainer.run_folder.run import Run
from tl.trainer.task import Outcome, PreparedInputs, Task, Training, network_card

_Network = TypeVar("_Network", bound=nn.Module)
_EVAL_BATCH = 32
# Enough images to estimate mean and standard deviation.
_STANDARDISE_ON = 256


def prepare_image_training(task: Task, ranks: Ranks) -> Training:
    """Build the network of a task, so that invalid options and weights are detected before any long computation.

    Raises `DeviceError`, `ConfigError` or `WeightsError`.
    """
    network, machine = build_on_machine(
        task, ranks, lambda weights: build_network(task.config, task.info, len(task.class_names), weights)
    )
    return partial(_train, task, network, machine, ranks)


def build_on_machine(
    task: PreparedInputs, ranks: Ranks, build: Callable[[Weights | None], _Network]
) -> tuple[_Network, Machine]:
    """Build a network from the task's weights, on this process's device. Raises as `prepare_image_training` does."""
    machine = _build_own_machine(task.config, ranks)
    network = build(read_weights(task.weights, task.config.backbone) if task.weights else None).to(machine.device)
    share_batch_norm(network, ranks)
    return network, machine


def _build_own_machine(config: TrainConfig, ranks: Ranks) -> Machine:
    """One process's machine settings. Raises `DeviceError`, or `ConfigError` for options torchrun excludes."""
    machine = build_machine(_own_device(config, ranks), config.precision, config.threads)
    if ranks.world > 1 and settled(config.batch_size) < 2 * ranks.world:
        raise ConfigError(
            f"batch_size {config.batch_size} gives each of the {ranks.world} processes fewer than two "
            "images: increase it"
        )
    if ranks.world > 1 and (config.lr == "auto" or config.device.startswith("cuda:")):
        raise ConfigError("with torchrun, lr must be a number and device must be cuda: each process uses its own GPU")
    return machine


def _train(
    task: Task,
    network: Network,
    machine: Machine,
    ranks: Ranks,
    run: Run,
    progress: Progress,
    is_resumed: bool,
) -> Outcome:
    config = task.config
    if task.weights is not None:
        standardize(network, task.store, machine)
    if config.head_init == "solved":
        start_head(network, ranks.broadcast(solve_linear(task, run, progress) if ranks.is_first else None))
    trainable = build_trainable(config, network, task.class_names, task.true_ids("train"), machine)
    train = task.store.indices("train")
    batches = ImageBatches(
        LabeledItems(task.store, task.ids, task.augment, config.seed),
        train,
        batch_size=settled(config.batch_size),
        seed=config.seed,
        workers=num_workers(config, machine),
        epochs=settled(config.epochs),
        pin_memory=machine.device.type == "cuda",
        balance=[task.ids[i] for i in train] if config.sampler == "balanced" else None,
        ranks=ranks,
    )
    val = task.store.indices("val")

    def judge(module: nn.Module) -> Figures:
        share = ranks.shard(val)
        # A process without images of its own must still take part in collective operations.
        own = predict_logits(module.eval(), task.store, share or val[:1], machine)[: len(share)]
        return validate(ranks.gather(own).numpy(), task.true_ids("val"))

    config = settle_lr(config, run, trainable, batches, machine, progress)
    checkpoints = RunCheckpoints(run, config.log, writes=ranks.is_first)
    history = fit(trainable, batches, judge, fit_options(config), machine, checkpoints, progress, ranks)

    def logits(split: str) -> NDArray[np.floating]:
        return predict_logits(network.eval(), task.store, task.store.indices(split), machine).numpy()

    def save(temperature: float) -> None:
        tensors = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
        run.save_best(tensors, network_card(task, temperature))

    return Outcome(
        logits=logits,
        save=save,
        trained_parameters=count_trained(network),
        best_epoch=best_epoch(history, settled(config.monitor)),
        train_seconds=sum(row.seconds for row in history) if is_resumed else None,
    )


def count_trained(network: nn.Module) -> int:
    """Number of trainable (not frozen) parameter values of a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@torch.no_grad()
def predict_logits(
    module: Callable[[Tensor], Tensor], store: ImageStore, indices: Sequence[int], machine: Machine
) -> Tensor:
    """The trainer's evaluation path: images as seen in deployment -> logits float32 (N, C) on the CPU."""
    return torch.cat(
        [module(batch.to(machine.device)).float().cpu() for batch in iter_inputs(store, indices, _EVAL_BATCH)]
    )


@torch.no_grad()
def standardize(network: OnFeatures, store: ImageStore, machine: Machine) -> None:
    """Standardize the pretrained trunk's features using training images; one learning rate then suits any trunk."""
    train = store.indices("train")
    some = train[:: max(1, len(train) // _STANDARDISE_ON)]
    network.eval()
    parts = [network.features(batch.to(machine.device)) for batch in iter_inputs(store, some, _EVAL_BATCH)]
    is_frozen = not any(parameter.requires_grad for parameter in network.trunk.parameters())
    (network.standardize.fit if is_frozen else network.standardize.fit_scale)(torch.cat(parts))


@torch.no_grad()
def start_head(network: Network, solved: LinearHead | None) -> None:
    """Initialize a linear head with weights solved on raw features, so that early fine-tuning does not distort the
    pretrained features.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features".
    """
    if solved is None or not isinstance(network.head, nn.Linear):
        raise ValueError("only a linear head can be initialized by solving it")
    mean, std = (getattr(network.standardize, name).double().cpu().numpy() for name in ("mean", "std"))
    network.head.weight.copy_(torch.from_numpy(solved.weight * std))
    network.head.bias.copy_(torch.from_numpy(solved.bias + solved.weight @ mean))


def _own_device(config: TrainConfig, ranks: Ranks) -> str:
    """Assign each process on a machine its own GPU."""
    if ranks.world > 1 and config.device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{ranks.local}"
    return config.device


def num_workers(config: TrainConfig, machine: Machine) -> int:
    """Number of augmentation worker processes."""
    if config.workers is not None:
        return config.workers
    return max(1, min(16, machine.threads - 1)) if machine.device.type == "cuda" else 0
