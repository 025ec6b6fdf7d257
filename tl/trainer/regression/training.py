"""Train a network that predicts numbers: ridge regression, or steps on cached features or on images.

The head learns standardized numbers; its last layer is then rescaled, so that the network answers in the user's unit.
Does not read data sets or write metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tl.progress import Progress
from tl.trainer.config import NumberLoss, TrainConfig
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
from tl.trainer.fit.machine import build_machine
from tl.trainer.fit.trainables import build_trainable, fit_options, settle_lr
from tl.trainer.heads.stepped_head import build_stepped_head, fit_stepped_head
from tl.trainer.heads.training import save_head
from tl.trainer.models.build import build_network
from tl.trainer.options import settled
from tl.trainer.regression.ridge import solve_for_run
from tl.trainer.regression.task import RegressionTask
from tl.trainer.run_folder.checkpoints import RunCheckpoints
from tl.trainer.run_folder.run import Run
from tl.trainer.task import Outcome, Training


@dataclass(frozen=True)
class RegressedNumbers:
    """Loss of standardized numbers (n, T), averaged over the known ones; NaN targets are missing."""

    loss: NumberLoss
    quantile: float = 0.5
    score_name = "scaled_mae"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each image's known numbers (n,)."""
        outputs, wanted = outputs.float(), targets.nan_to_num()
        if self.loss == "quantile":  # Source: Koenker & Bassett 1978, the pinball loss
            away = wanted - outputs
            values = torch.maximum(self.quantile * away, (self.quantile - 1) * away)
        else:
            function = functional.mse_loss if self.loss == "mse" else functional.smooth_l1_loss
            values = function(outputs, wanted, reduction="none")
        return _mean_of_known(values, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean absolute error of each image's known numbers, in standard deviations (n,)."""
        return _mean_of_known((outputs.float() - targets.nan_to_num()).abs(), targets)

    def describe(self, targets: Tensor) -> str:
        """The number of images."""
        return f"standardized numbers from {targets.nan_to_num().min():.2g} to {targets.nan_to_num().max():.2g}"

    def figures(self, outputs: NDArray[np.floating], targets: NDArray[np.floating]) -> Figures:
        """Mean loss and score of validation images; NaN if an output is not finite."""
        found, wanted = torch.from_numpy(np.asarray(outputs, np.float32)), torch.from_numpy(targets)
        if not torch.isfinite(found).all():
            return dict.fromkeys(("loss", self.score_name), float("nan"))
        return {
            "loss": float(self.losses(found, wanted).mean()),
            self.score_name: float(self.scores(found, wanted).mean()),
        }


def _mean_of_known(values: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    return (values * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)


def build_objective(config: TrainConfig) -> RegressedNumbers:
    """The objective of a resolved config."""
    return RegressedNumbers(config.number_loss, config.quantile)


def train_head_by_steps(task: RegressionTask, run: Run, progress: Progress, is_resumed: bool) -> Outcome:
    """Train a head by steps on cached features."""
    config = task.config
    machine, objective = build_machine(config.device, config.precision, config.threads), build_objective(config)
    targets = task.standardized.astype(np.float32)
    train, val = ((task.split_features(split), targets[task.store.indices(split)]) for split in ("train", "val"))
    stepped = build_stepped_head(config, train, len(task.outputs), objective, machine)
    config = settle_lr(config, run, stepped.trainable, stepped.batches, machine, progress)
    checkpoints = RunCheckpoints(run, config.log)
    history = fit_stepped_head(stepped, config, val, checkpoints, progress, score=objective.figures)
    rescale_output(stepped.head, task)
    return Outcome(
        logits=lambda split: stepped.logits(task.split_features(split)),
        save=lambda temperature: save_head(task, run, stepped.tensors(), task.card),
        trained_parameters=sum(t.size for name, t in stepped.tensors().items() if name.startswith("head.")),
        best_epoch=best_epoch(history, settled(config.monitor)),
        train_seconds=sum(row.seconds for row in history) if is_resumed else None,
    )


def prepare_number_training(task: RegressionTask, ranks: Ranks) -> Training:
    """Build the network of a task that is trained on images. Raises `DeviceError`, `ConfigError` or `WeightsError`."""
    network, machine = build_on_machine(
        task, ranks, lambda weights: build_network(task.config, task.info, len(task.outputs), weights)
    )

    def train(run: Run, progress: Progress, is_resumed: bool) -> Outcome:
        config, store, objective = task.config, task.store, build_objective(task.config)
        targets = task.standardized.astype(np.float32)
        if task.weights is not None:
            standardize(network, store, machine)
        if config.head_init == "solved":
            solved = solve_for_run(task, store.indices("train"), run, progress).head if ranks.is_first else None
            start_head(network, ranks.broadcast(solved))
        batches = ImageBatches(
            LabeledItems(store, targets, task.augment, config.seed),  # type: ignore[arg-type]  # rows of an array
            store.indices("train"),
            batch_size=settled(config.batch_size),
            seed=config.seed,
            workers=num_workers(config, machine),
            epochs=settled(config.epochs),
            pin_memory=machine.device.type == "cuda",
            ranks=ranks,
        )
        val = store.indices("val")
        share = ranks.shard(val)

        def judge(module: nn.Module) -> Figures:
            # A process without images of its own must still take part in collective operations.
            own = predict_logits(module.eval(), store, list(share) or val[:1], machine)[: len(share)]
            return objective.figures(ranks.gather(own).numpy(), targets[val])

        trainable = build_trainable(config, network, objective)
        config = settle_lr(config, run, trainable, batches, machine, progress)
        checkpoints = RunCheckpoints(run, config.log, writes=ranks.is_first)
        history = fit(trainable, batches, judge, fit_options(config), machine, checkpoints, progress, ranks)
        rescale_output(network.head, task)
        return Outcome(
            logits=lambda split: predict_logits(network.eval(), store, store.indices(split), machine).numpy(),
            save=lambda temperature: run.save_best(
                {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}, task.card
            ),
            trained_parameters=count_trained(network),
            best_epoch=best_epoch(history, settled(config.monitor)),
            train_seconds=sum(row.seconds for row in history) if is_resumed else None,
        )

    return train


@torch.no_grad()
def rescale_output(head: nn.Module, task: RegressionTask) -> None:
    """Rescale a head's last layer, from standardized numbers to the unit of the targets."""
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    std, mean = (torch.from_numpy(values).to(last.weight) for values in (task.std, task.mean))
    last.weight.mul_(std[:, None])
    last.bias.mul_(std).add_(mean)
