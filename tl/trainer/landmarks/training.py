"""Train a landmark network: its objectives, its augmented items, its loop.

Does not read data sets or write metrics.
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

from tl.data.images import ImageStore
from tl.progress import Progress
from tl.trainer.config import PointLoss, TrainConfig
from tl.trainer.fit.augment import Augment
from tl.trainer.fit.batches import ImageBatches, item_seed, iter_inputs
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.image_training import build_on_machine, count_trained, num_workers, standardize
from tl.trainer.fit.loop import Figures, best_epoch, fit
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.steps import Objective, TrainableModel
from tl.trainer.fit.trainables import fit_options, settle_lr
from tl.trainer.landmarks.network import (
    SIGMA,
    Heatmapper,
    LandmarkNetwork,
    Regressor,
    SoftArgmax,
    build_landmark_network,
    deployed,
)
from tl.trainer.landmarks.task import LandmarkTask
from tl.trainer.models.freezing import parameter_groups, thaw_trunk
from tl.trainer.options import settled
from tl.trainer.run_folder.checkpoints import RunCheckpoints
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run

# Source: Feng et al. 2018, "Wing Loss for Robust Facial Landmark Localisation": w = 10, epsilon = 2, in pixels of 256.
_WING, _EPSILON = 10.0, 2.0


@dataclass(frozen=True)
class RegressedPoints:
    """Coordinate loss, averaged over present coordinates. Outputs: points (n, K, 2)."""

    loss: PointLoss
    score_name = "error_input_px"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each image's present coordinates (n,)."""
        has, wanted = _present(targets)
        away = (outputs.float() - wanted).abs()
        if self.loss == "mse":
            values = away.square()
        elif self.loss == "smooth_l1":
            values = torch.where(away < 1, 0.5 * away.square(), away - 0.5)
        else:
            beyond = _WING - _WING * math.log(1 + _WING / _EPSILON)
            values = torch.where(away < _WING, _WING * torch.log(1 + away / _EPSILON), away - beyond)
        return _mean_of_present(values.mean(dim=2), has)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean distance of each image's present points in input pixels (n,)."""
        return _distances(outputs, targets)

    def describe(self, targets: Tensor) -> str:
        """The number of points."""
        return _described(targets)


@dataclass(frozen=True)
class HeatmapPoints:
    """KL divergence from a Gaussian at each present point, plus the distance of the decoded position in cells.

    The first term finds the position from anywhere; the second has subcell precision. Outputs: points (n, K, 2) and
    log-probabilities (n, K, h, w).
    """

    decode: SoftArgmax
    score_name = "error_input_px"

    def losses(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """The mean loss of each image's present points (n,)."""
        points, logs = outputs
        has, wanted = _present(targets)
        gaussians = self.decode.gaussians(wanted, SIGMA)
        shares = gaussians / gaussians.sum(dim=(2, 3), keepdim=True).clamp_min(1e-12)
        divergence = (shares * (shares.clamp_min(1e-12).log() - logs)).sum(dim=(2, 3))
        cells = torch.tensor(self.decode.cell_wh, device=points.device)
        return _mean_of_present(divergence + ((points - wanted) / cells).abs().sum(dim=2), has)

    def scores(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """The mean distance of each image's present points in input pixels (n,)."""
        return _distances(outputs[0], targets)

    def describe(self, targets: Tensor) -> str:
        """The number of points."""
        return _described(targets)


def _present(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mask of present points (n, K), and points with missing ones set to 0: NaN would spoil even a zero gradient."""
    has = ~targets.isnan().any(dim=2)
    return has, torch.where(has[..., None], targets, torch.zeros_like(targets))


def _mean_of_present(values: Tensor, has: Tensor) -> Tensor:
    """Mean (n,) of values (n, K) where `has`; 0 for an image without points."""
    return torch.where(has, values, torch.zeros_like(values)).sum(dim=1) / has.sum(dim=1).clamp_min(1)


def _distances(points: Tensor, targets: Tensor) -> Tensor:
    has, wanted = _present(targets)
    return _mean_of_present((points.float() - wanted).norm(dim=2), has)


def _described(targets: Tensor) -> str:
    return f"with {int((~targets.isnan().any(dim=2)).sum())} points"


@dataclass(frozen=True)
class AnnotatedItems:
    """Images of the input size and their points (K, 2) in pixels of that image, NaN where missing.

    `points`: of the whole store, (N, K, 2). `partners`: index of each point in a mirror image.
    """

    store: ImageStore
    points: NDArray[np.float32]
    partners: Sequence[int]
    augment: Augment | None
    seed: int

    def __call__(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """One image and its points."""
        working = self.store.input(index)
        if self.augment is None:
            return working, self.points[index]
        return self.augment.with_points(working, self.points[index], item_seed(self.seed, epoch, index), self.partners)


_EVAL_BATCH = 16


@dataclass(frozen=True)
class FoundPoints:
    """Points (N, K, 2) in input pixels, and their confidence (N, K), None for a head without confidence."""

    points_xy: NDArray[np.float32]
    confidence: NDArray[np.float32] | None


@dataclass(frozen=True)
class LandmarkOutcome:
    """A trained network. `find`: split -> predicted points in the store's order. `save` writes `best.safetensors`."""

    find: Callable[[str], FoundPoints]
    save: Callable[[], None]
    trained_parameters: int
    best_epoch: int
    train_seconds: float | None


LandmarkTraining = Callable[[Run, Progress, bool], LandmarkOutcome]


def prepare_landmark_training(task: LandmarkTask, ranks: Ranks) -> LandmarkTraining:
    """Build the network of a task, so that invalid options and weights are detected before any long computation.

    Raises `DeviceError`, `ConfigError` or `WeightsError`.
    """
    network, machine = build_on_machine(
        task, ranks, lambda weights: build_landmark_network(task.config, task.info, len(task.keypoint_names), weights)
    )
    return partial(_train, task, network, machine, ranks)


def landmark_card(task: LandmarkTask) -> NetworkCard:
    """The network's description, stored in `best.safetensors`."""
    weights = task.weights.description if task.weights else "none"
    return NetworkCard((), task.keypoint_names, task.preprocessing, weights, 1.0)


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
            standardize(network, store, machine)
        network.place(torch.from_numpy(task.input_points(train)).to(machine.device))
    trainable = _build_trainable(config, network)
    points = task.input_points(range(len(store.images)))
    batches = ImageBatches(
        AnnotatedItems(store, points, task.partners, task.augment, config.seed),
        train,
        batch_size=settled(config.batch_size),
        seed=config.seed,
        workers=num_workers(config, machine),
        epochs=settled(config.epochs),
        pin_memory=machine.device.type == "cuda",
        ranks=ranks,
    )
    judge = partial(_validate, task, trainable.objective, machine, ranks)
    config = settle_lr(config, run, trainable, batches, machine, progress)
    checkpoints = RunCheckpoints(run, config.log, writes=ranks.is_first)
    history = fit(trainable, batches, judge, fit_options(config), machine, checkpoints, progress, ranks)

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


def _build_trainable(config: TrainConfig, network: LandmarkNetwork) -> TrainableModel:
    objective: Objective
    if isinstance(network, Heatmapper):
        objective = HeatmapPoints(network.decode)
    else:
        objective = RegressedPoints(config.point_loss)
    groups = parameter_groups(network.trunk, [network.head], settled(config.layer_lr_decay))
    every = config.unfreeze_every
    if every is None:
        return TrainableModel(network, groups, objective)
    return TrainableModel(network, groups, objective, begin_epoch=lambda epoch: thaw_trunk(network.trunk, epoch, every))


@torch.no_grad()
def find_points(network: LandmarkNetwork, task: LandmarkTask, indices: Sequence[int], machine: Machine) -> FoundPoints:
    """The trainer's evaluation path: images as seen in deployment -> points."""
    module = deployed(network)[0].eval()
    rows = [module(batch.to(machine.device)) for batch in iter_inputs(task.store, indices, _EVAL_BATCH)]
    points, *confidence = (torch.cat(parts).float().cpu().numpy() for parts in zip(*rows, strict=True))
    return FoundPoints(points, confidence[0] if confidence else None)


@torch.no_grad()
def _validate(task: LandmarkTask, objective: Objective, machine: Machine, ranks: Ranks, module: nn.Module) -> Figures:
    """Loss and errors on the validation split; all NaN if any predicted point is not finite."""
    val = task.store.indices("val")
    share = list(ranks.shard(val)) or val[:1]  # a process without images must still take part in collective operations
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
    count = len(ranks.shard(val))
    all_losses = ranks.gather(torch.cat(losses)[:count])
    return _figures(task, val, all_losses, ranks.gather(torch.cat(found)[:count]).numpy())


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
