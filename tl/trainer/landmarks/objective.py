"""What landmark networks are trained for: losses of points, in which a missing point has no part.

Knows outputs and true points (n, K, 2) in input pixels, NaN where missing. Does not know networks or pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tl.trainer.config import PointLoss
from tl.trainer.landmarks.network import SIGMA, SoftArgmax

# Source: Feng et al. 2018, "Wing Loss for Robust Facial Landmark Localisation": w = 10, epsilon = 2, in pixels of 256.
_WING, _EPSILON = 10.0, 2.0


@dataclass(frozen=True)
class RegressedPoints:
    """Losses of coordinates, averaged over those present. Outputs: points (n, K, 2)."""

    loss: PointLoss
    score_name = "error_input_px"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each picture's present coordinates (n,)."""
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
        """The mean distance of each picture's present points in input pixels (n,)."""
        return _distances(outputs, targets)

    def describe(self, targets: Tensor) -> str:
        """How many points they have."""
        return _described(targets)


@dataclass(frozen=True)
class HeatmapPoints:
    """Kullback-Leibler divergence from a Gaussian at each present point, plus the found place's distance in cells.

    The first finds the place from anywhere, the second is finer than a cell. Outputs: points (n, K, 2) and
    log-probabilities (n, K, h, w).
    """

    decode: SoftArgmax
    score_name = "error_input_px"

    def losses(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """The mean loss of each picture's present points (n,)."""
        points, logs = outputs
        has, wanted = _present(targets)
        gaussians = self.decode.gaussians(wanted, SIGMA)
        shares = gaussians / gaussians.sum(dim=(2, 3), keepdim=True).clamp_min(1e-12)
        divergence = (shares * (shares.clamp_min(1e-12).log() - logs)).sum(dim=(2, 3))
        cells = torch.tensor(self.decode.cell_wh, device=points.device)
        return _mean_of_present(divergence + ((points - wanted) / cells).abs().sum(dim=2), has)

    def scores(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """The mean distance of each picture's present points in input pixels (n,)."""
        return _distances(outputs[0], targets)

    def describe(self, targets: Tensor) -> str:
        """How many points they have."""
        return _described(targets)


def _present(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which points are there (n, K), and the points with zeros for the others: NaN would spoil even a zero gradient."""
    has = ~targets.isnan().any(dim=2)
    return has, torch.where(has[..., None], targets, torch.zeros_like(targets))


def _mean_of_present(values: Tensor, has: Tensor) -> Tensor:
    """Mean (n,) of values (n, K) where `has`; 0 for a picture without points."""
    return torch.where(has, values, torch.zeros_like(values)).sum(dim=1) / has.sum(dim=1).clamp_min(1)


def _distances(points: Tensor, targets: Tensor) -> Tensor:
    has, wanted = _present(targets)
    return _mean_of_present((points.float() - wanted).norm(dim=2), has)


def _described(targets: Tensor) -> str:
    return f"with {int((~targets.isnan().any(dim=2)).sum())} points"
