"""Training a landmark network on pictures, and finding points with it.

Knows networks, batches and processes. Does not read annotations or write metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.trainer.batches import PictureBatches, iter_inputs
from tl.trainer.checkpoints import RunCheckpoints
from tl.trainer.config import TrainConfig
from tl.trainer.distributed import Ranks, share_batch_norm
from tl.trainer.freezing import parameter_groups, thaw_trunk
from tl.trainer.landmarks.items import AnnotatedItems
from tl.trainer.landmarks.network import Heatmapper, Regressor
from tl.trainer.landmarks.networks import LandmarkNetwork, build_landmark_network, deployed
from tl.trainer.landmarks.objective import HeatmapPoints, RegressedPoints
from tl.trainer.landmarks.task import LandmarkTask
from tl.trainer.loop import Figures, best_epoch, fit
from tl.trainer.machine import Machine
from tl.trainer.objectives import Objective
from tl.trainer.options import settled
from tl.trainer.picture_training import build_own_machine, count_trained, num_workers, standardise
from tl.trainer.progress import Progress
from tl.trainer.runs import NetworkCard, Run
from tl.trainer.stepping import Trainee
from tl.trainer.trainees import fit_options, settle_lr
from tl.trainer.weights import read_weights

_EVAL_BATCH = 16


@dataclass(frozen=True)
class FoundPoints:
    """Points (N, K, 2) in input pixels, and how sure each is (N, K), None for a head that cannot say."""

    points_xy: NDArray[np.float32]
    confidence: NDArray[np.float32] | None


@dataclass(frozen=True)
class LandmarkOutcome:
    """A trained network. `find`: split -> what it finds, in the store's order. `save` writes `best.safetensors`."""

    find: Callable[[str], FoundPoints]
    save: Callable[[], None]
    trained_parameters: int
    best_epoch: int
    train_seconds: float | None


LandmarkTraining = Callable[[Run, Progress, bool], LandmarkOutcome]


def prepare_landmark_training(task: LandmarkTask, ranks: Ranks) -> LandmarkTraining:
    """Build the network of a task, so that faults of options and weights show before any long work.

    Raises `DeviceError`, `ConfigError` or `WeightsError`.
    """
    config = task.config
    machine = build_own_machine(config, ranks)
    weights = read_weights(task.weights, config.backbone) if task.weights else None
    network = build_landmark_network(config, task.info, len(task.keypoint_names), weights).to(machine.device)
    share_batch_norm(network, ranks)
    return partial(_train, task, network, machine, ranks)


def landmark_card(task: LandmarkTask) -> NetworkCard:
    """What `best.safetensors` says of the network."""
    weights = task.weights.description if task.weights else "none"
    return NetworkCard((), task.keypoint_names, task.recipe, weights, 1.0)


def _train(
    task: LandmarkTask,
    network: LandmarkNetwork,
    machine: Machine,
    ranks: Ranks,
    run: Run,
    progress: Progress,
    is_resumed: bool,
) -> LandmarkOutcome:
    config, store = task.config, task.store
    train = store.indices("train")
    if isinstance(network, Regressor):
        if task.weights is not None:
            standardise(network, store, machine)
        network.place(torch.from_numpy(task.input_points(train)).to(machine.device))
    trainee = _build_trainee(config, network)
    points = task.input_points(range(len(store.pictures)))
    batches = PictureBatches(
        AnnotatedItems(store, points, task.partners, task.augment, config.seed),
        train,
        batch_size=settled(config.batch_size),
        seed=config.seed,
        workers=num_workers(config, machine),
        epochs=settled(config.epochs),
        pin_memory=machine.device.type == "cuda",
        ranks=ranks,
    )
    judge = partial(_validate, task, trainee.objective, machine, ranks)
    config = settle_lr(config, run, trainee, batches, machine, progress)
    checkpoints = RunCheckpoints(run, config.log, writes=ranks.is_first)
    history = fit(trainee, batches, judge, fit_options(config), machine, checkpoints, progress, ranks)

    def save() -> None:
        tensors = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
        run.save_best(tensors, landmark_card(task))

    return LandmarkOutcome(
        find=lambda split: find_points(network, task, store.indices(split), machine),
        save=save,
        trained_parameters=count_trained(network),
        best_epoch=best_epoch(history, settled(config.monitor)),
        train_seconds=sum(row.seconds for row in history) if is_resumed else None,
    )


def _build_trainee(config: TrainConfig, network: LandmarkNetwork) -> Trainee:
    objective: Objective
    if isinstance(network, Heatmapper):
        objective = HeatmapPoints(network.decode)
    else:
        objective = RegressedPoints(config.point_loss)
    groups = parameter_groups(network.trunk, [network.head], config.layer_lr_decay)
    every = config.unfreeze_every
    if every is None:
        return Trainee(network, groups, objective)
    return Trainee(network, groups, objective, begin_epoch=lambda epoch: thaw_trunk(network.trunk, epoch, every))


@torch.no_grad()
def find_points(network: LandmarkNetwork, task: LandmarkTask, indices: Sequence[int], machine: Machine) -> FoundPoints:
    """The trainer's evaluation path: pictures as deployment sees them -> points."""
    module = deployed(network)[0].eval()
    rows = [module(batch.to(machine.device)) for batch in iter_inputs(task.store, indices, _EVAL_BATCH)]
    points, *confidence = (torch.cat(parts).float().cpu().numpy() for parts in zip(*rows, strict=True))
    return FoundPoints(points, confidence[0] if confidence else None)


@torch.no_grad()
def _validate(task: LandmarkTask, objective: Objective, machine: Machine, ranks: Ranks, module: nn.Module) -> Figures:
    """Loss and errors on the validation split; not-a-number throughout where a point found is not finite."""
    val = task.store.indices("val")
    share = list(ranks.share(val)) or val[:1]  # a process without a picture of its own still takes part in what all do
    wanted = torch.from_numpy(task.input_points(share))
    losses, found = [], []
    start = 0
    module.eval()
    for batch in iter_inputs(task.store, share, _EVAL_BATCH):
        outputs = module(batch.to(machine.device))
        targets = wanted[start : start + len(batch)].to(machine.device)
        losses.append(objective.losses(outputs, targets).cpu())
        found.append((outputs[0] if isinstance(outputs, tuple) else outputs).float().cpu())
        start += len(batch)
    count = len(ranks.share(val))
    all_losses = ranks.interleave(torch.cat(losses)[:count])
    return _figures(task, val, all_losses, ranks.interleave(torch.cat(found)[:count]).numpy())


def _figures(task: LandmarkTask, val: Sequence[int], losses: Tensor, found: NDArray[np.float32]) -> Figures:
    if not np.isfinite(found).all():
        return dict.fromkeys(("loss", "error_px", "error_input_px"), math.nan)
    true = np.stack([task.points[i] for i in val])
    in_photo = np.linalg.norm(task.photo_points(val, found) - true, axis=2)
    in_input = np.linalg.norm(found - np.stack([task.placements[i].to_input(task.points[i]) for i in val]), axis=2)
    return {
        "loss": float(losses.mean()),
        "error_px": float(np.nanmean(in_photo)),
        "error_input_px": float(np.nanmean(in_input)),
    }
