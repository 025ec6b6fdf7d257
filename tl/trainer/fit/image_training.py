"""Train a whole network on images: from scratch, fine-tuning, or a head on a frozen trunk with augmentation.

Does not read data sets or write metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from tl.trainer.fit.interpolation import SHARES, WeightLine, average, choose_share, interpolate, scaled_loss
from tl.trainer.fit.loop import EpochRow, Figures, best_epoch, fit
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.fit.steps import TrainableModel
from tl.trainer.fit.trainables import (
    build_trainable,
    class_objective,
    fit_options,
    measure_steps,
    settle_lr,
    validate,
)
from tl.trainer.heads.solvers import LinearHead
from tl.trainer.heads.training import solve_linear
from tl.trainer.models.build import build_network
from tl.trainer.models.network import Network, OnFeatures
from tl.trainer.models.weights import Weights, read_weights
from tl.trainer.options import settled
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.run_folder.checkpoints import RunCheckpoints
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run
from tl.trainer.task import PreparedInputs, Task

_Network = TypeVar("_Network", bound=nn.Module)
_EVAL_BATCH = 32
# Enough images to estimate mean and standard deviation.
_STANDARDISE_ON = 256


@dataclass(frozen=True)
class ImageTraining:
    """Training of one network on images, for one task."""

    task: Task
    network: Network
    machine: Machine
    ranks: Ranks

    @property
    def folds(self) -> list[tuple[list[int], list[int]]]:
        """For each network to train: the images it is trained on, and those that score it."""
        task = self.task
        train, val = task.store.indices("train"), task.store.indices("val")
        if not task.config.refit:
            return [(train, val)]
        parts = task.parts(val, settled(task.config.soup))
        return [(sorted({*train, *val} - {*part}), part) for part in parts]

    def seconds_per_image(self, run: Run, progress: Progress) -> float:
        """Measure a few training steps; the network is unchanged afterwards."""
        bench = _Bench(self.task, self.network, self.machine, self.ranks, run, progress)
        before = copy_state(self.network)
        trainable, batches = _training_parts(bench, self.task.config, self.task.store.indices("train"))
        seconds = measure_steps(trainable, batches, self.machine)
        self.network.load_state_dict(before)
        return seconds / settled(self.task.config.batch_size)

    def __call__(self, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
        """Train one network, or several whose weights are averaged."""
        bench = _Bench(self.task, self.network, self.machine, self.ranks, run, progress)
        task, network, config = self.task, self.network, self.task.config
        pretrained = copy_state(network)
        history: list[EpochRow] = []
        lines: list[WeightLine] = []
        for number, (places, scored) in enumerate(self.folds, 1):
            network.load_state_dict(pretrained)
            start = _start_network(bench, places, stage_of(number))
            config, rows = _fit_network(bench, config, places, scored, stage_of(number))
            history += rows
            if config.interpolate:
                lines.append(_score_line(bench, start, scored))
        held_out = _average(bench, lines) if lines else None

        def logits(split: str) -> NDArray[np.floating]:
            return predict_logits(network.eval(), task.store, task.store.indices(split), self.machine).numpy()

        def save(card: NetworkCard) -> None:
            tensors = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
            run.save_best(tensors, card)

        return Outcome(
            logits=logits,
            save=save,
            trained_parameters=count_trained(network),
            best_epoch=settled(config.epochs) if config.interpolate else best_epoch(history, settled(config.monitor)),
            train_seconds=sum(row.seconds for row in history) if is_resumed else None,
            held_out=held_out,
        )


@dataclass(frozen=True)
class _Bench:
    """What every training of a run's network needs."""

    task: Task
    network: Network
    machine: Machine
    ranks: Ranks
    run: Run
    progress: Progress


def prepare_image_training(task: Task, ranks: Ranks) -> ImageTraining:
    """Build the network of a task, so that invalid options and weights are detected before any long computation.

    Raises `DeviceError`, `ConfigError` or `WeightsError`.
    """
    network, machine = build_on_machine(
        task, ranks, lambda weights: build_network(task.config, task.info, len(task.class_names), weights)
    )
    return ImageTraining(task, network, machine, ranks)


def build_on_machine(
    task: PreparedInputs, ranks: Ranks, build: Callable[[Weights | None], _Network]
) -> tuple[_Network, Machine]:
    """Build a network from the task's weights, on this process's device. Raises as `prepare_image_training` does."""
    machine = _build_own_machine(task.config, ranks)
    network = build(read_weights(task.weights, task.config.backbone) if task.weights else None).to(machine.device)
    if task.config.batch_norm != "fixed":  # fixed statistics need no sharing
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


def stage_of(number: int) -> str:
    """What the files of a run's first, second ... network have appended to their names."""
    return "" if number == 1 else f"_{number}"


def _start_network(bench: _Bench, places: Sequence[int], stage: str) -> dict[str, Tensor]:
    """Prepare the pretrained network for the images at `places`: scale and head. Returns a copy of its state."""
    task, network, ranks = bench.task, bench.network, bench.ranks
    if task.weights is not None:
        standardize(network, task.store, bench.machine)
    if task.config.head_init == "solved":
        solved = solve_linear(task, places, bench.run, bench.progress, stage) if ranks.is_first else None
        start_head(network, ranks.broadcast(solved))
    return copy_state(network)


def _fit_network(
    bench: _Bench, config: TrainConfig, places: Sequence[int], val: Sequence[int], stage: str
) -> tuple[TrainConfig, list[EpochRow]]:
    """Train on the images at `places`, and validate each epoch on those at `val`. Returns the config with the learning
    rate used, and the history.
    """
    task, machine, ranks = bench.task, bench.machine, bench.ranks
    trainable, batches = _training_parts(bench, config, places)

    def judge(module: nn.Module) -> Figures:
        return validate(_gather_logits(bench, module, val), np.array([task.ids[i] for i in val]))

    config = settle_lr(config, bench.run, trainable, batches, machine, bench.progress)
    checkpoints = RunCheckpoints(bench.run, config.log, writes=ranks.is_first, stage=stage)
    history = fit(
        trainable,
        batches,
        judge,
        fit_options(config),
        machine,
        checkpoints,
        bench.progress,
        ranks,
        keeps_best=not config.interpolate,
    )
    return config, history


def _training_parts(bench: _Bench, config: TrainConfig, places: Sequence[int]) -> tuple[TrainableModel, ImageBatches]:
    """The network with its objective, and augmented batches of the images at `places`."""
    task, machine = bench.task, bench.machine
    ids = np.array([task.ids[i] for i in places])
    batches = ImageBatches(
        LabeledItems(task.store, task.ids, task.augment, config.seed),
        places,
        batch_size=settled(config.batch_size),
        seed=config.seed,
        workers=num_workers(config, machine),
        epochs=settled(config.epochs),
        pin_memory=machine.device.type == "cuda",
        balance=ids.tolist() if config.sampler == "balanced" else None,
        ranks=bench.ranks,
    )
    return build_trainable(config, bench.network, class_objective(config, task.class_names, ids, machine)), batches


def _score_line(bench: _Bench, start: dict[str, Tensor], scored: Sequence[int]) -> WeightLine:
    """Score the weights between `start` and the trained ones on the images at `scored`."""
    end = copy_state(bench.network)
    logits = []
    for share in SHARES:
        bench.network.load_state_dict(interpolate(start, end, share))
        logits.append(_gather_logits(bench, bench.network, scored))
    return WeightLine(start, end, scored, np.array(logits))


def _average(bench: _Bench, lines: Sequence[WeightLine]) -> HeldOut:
    """Load the mean of the networks, at the position between initial and trained weights that scores best.

    Returns the logits of the scored images, of networks and positions that were chosen without them.
    """
    task, network = bench.task, bench.network
    places = [place for line in lines for place in line.held_out]
    order = np.argsort(places)
    places = [places[i] for i in order]
    logits = np.concatenate([line.logits for line in lines], axis=1)[:, order]
    ids, groups = np.array([task.ids[i] for i in places]), [task.store.images[i].group for i in places]
    chosen, held_out = choose_share(logits, ids, groups, task.folds(places) or [])
    share = SHARES[chosen]
    start, end = average([line.start for line in lines]), average([line.end for line in lines])
    network.load_state_dict(interpolate(start, end, share))
    accuracy = float((logits[chosen].argmax(axis=1) == ids).mean())
    whose = f", mean of {len(lines)} networks" if len(lines) > 1 else ""
    if len(lines) > 1 and scaled_loss(_gather_logits(bench, network, places), ids) > scaled_loss(logits[chosen], ids):
        # Most of the networks have seen each of these images, so that their mean should know them better.
        network.load_state_dict(interpolate(lines[0].start, lines[0].end, share))
        whose = ", first network: the mean would be worse than each"
    bench.progress.say(
        f"interpolation: {share:.0%} of the way from the initial to the final weights{whose} (top-1 {accuracy:.3f})"
    )
    return HeldOut(places, held_out)


def _gather_logits(bench: _Bench, module: nn.Module, places: Sequence[int]) -> NDArray[np.floating]:
    """Logits of the images at `places`, computed by all processes together."""
    share = bench.ranks.shard(places)
    # A process without images of its own must still take part in collective operations.
    own = predict_logits(module.eval(), bench.task.store, share or places[:1], bench.machine)[: len(share)]
    gathered: NDArray[np.floating] = bench.ranks.gather(own).numpy()
    return gathered


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's tensors."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


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
    """Standardize the pretrained trunk's features using images of the training split; one learning rate then suits any
    trunk, and networks that are averaged have one scale.
    """
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
