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

from tl.trainer.config import NumberLoss, TrainConfig
from tl.trainer.fit.loop import Figures
from tl.trainer.fit.target_training import TargetTraining, mean_of_known
from tl.trainer.regression.ridge import solve_for_run
from tl.trainer.regression.task import RegressionTask


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
        return mean_of_known(values, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean absolute error of each image's known numbers, in standard deviations (n,)."""
        return mean_of_known((outputs.float() - targets.nan_to_num()).abs(), targets)

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


def build_objective(config: TrainConfig) -> RegressedNumbers:
    """The objective of a resolved config."""
    return RegressedNumbers(config.number_loss, config.quantile)


def build_target_training(task: RegressionTask) -> TargetTraining:
    """How a run's network learns standardized numbers, and gives them in the user's unit."""
    return TargetTraining(
        task=task,
        targets=task.standardized.astype(np.float32),
        objective=build_objective(task.config),
        solve=lambda places, run, progress: solve_for_run(task, places, run, progress).head,
        finish=lambda head: rescale_output(head, task),
    )


@torch.no_grad()
def rescale_output(head: nn.Module, task: RegressionTask) -> None:
    """Rescale a head's last layer, from standardized numbers to the unit of the targets."""
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    std, mean = (torch.from_numpy(values).to(last.weight) for values in (task.std, task.mean))
    last.weight.mul_(std[:, None])
    last.bias.mul_(std).add_(mean)
