from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tl.trainer.config import PointLoss
from tl.trainer.landmarks.network import SoftArgmax
from tl.trainer.landmarks.training import HeatmapPoints, RegressedPoints

NAN = float("nan")
TARGETS = torch.tensor([[[10.0, 10.0], [NAN, NAN]], [[0.0, 0.0], [4.0, 4.0]]])


@pytest.mark.parametrize(
    ("loss", "far", "near"),
    [
        ("mse", (9 + 16) / 2, 0.25),
        ("smooth_l1", (2.5 + 3.5) / 2, 0.5 * 0.25),
        # w = 10, epsilon = 2, below and above w: 14 px is 14 - (10 - 10 ln 6).
        ("wing", (10 * math.log(1 + 1.5) + 10 * math.log(1 + 2)) / 2, 10 * math.log(1.25)),
    ],
)
def test_regressed_points__losses_by_hand(loss: PointLoss, far: float, near: float) -> None:
    outputs = torch.tensor([[[13.0, 14.0], [99.0, 99.0]], [[0.5, 0.5], [4.5, 4.5]]])
    objective = RegressedPoints(loss)
    torch.testing.assert_close(objective.losses(outputs, TARGETS), torch.tensor([far, near]))
    torch.testing.assert_close(objective.scores(outputs, TARGETS), torch.tensor([5.0, math.sqrt(0.5)]))


def test_regressed_points__wing_is_linear_far_away() -> None:
    outputs = torch.tensor([[[24.0, 10.0], [0.0, 0.0]]])
    found = RegressedPoints("wing").losses(outputs, TARGETS[:1])
    assert float(found) == pytest.approx((14 - (10 - 10 * math.log(6))) / 2, rel=1e-6)  # float32


def heat(decode: SoftArgmax, points: Tensor, sigma: float = 1.5) -> Tensor:
    """Log-probabilities of a Gaussian around each point."""
    shown = decode.gaussians(points, sigma)
    return (shown / shown.sum(dim=(2, 3), keepdim=True)).clamp_min(1e-30).log()


def test_heatmap_points__perfect_heatmaps_cost_nothing() -> None:
    decode = SoftArgmax((64, 64), (32, 32))
    targets = torch.tensor([[[30.0, 22.0], [40.5, 31.25]]])
    logs = heat(decode, targets)
    found = decode(logs)
    # A Gaussian of 1.5 cells, sampled at whole cells, has its mean position within a hundredth of a cell.
    torch.testing.assert_close(found, targets, rtol=0, atol=0.02)
    losses = HeatmapPoints(decode).losses((found, logs), targets)
    assert 0 <= float(losses) < 0.03


@pytest.mark.parametrize("kind", ["heatmap", "mse", "smooth_l1", "wing"])
def test_losses__a_missing_point_has_no_influence(kind: PointLoss | str) -> None:
    decode = SoftArgmax((16, 16), (8, 8))
    logits = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    points = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    if kind == "heatmap":
        logs = logits.flatten(2).log_softmax(dim=2).view_as(logits)
        losses = HeatmapPoints(decode).losses((decode(logs), logs), TARGETS)
        given = logits
    else:
        losses = RegressedPoints(kind).losses(points, TARGETS)  # type: ignore[arg-type]
        given = points
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert given.grad is not None
    assert not given.grad[0, 1].any()  # not annotated in the first image
    assert all(given.grad[i, k].any() for i, k in ((0, 0), (1, 0), (1, 1)))


def test_losses__a_image_without_points_costs_nothing() -> None:
    targets = torch.full((1, 2, 2), NAN)
    objective = RegressedPoints("mse")
    assert objective.losses(torch.ones(1, 2, 2), targets).tolist() == [0]
    assert objective.scores(torch.ones(1, 2, 2), targets).tolist() == [0]
    assert objective.describe(TARGETS[0][None]) == "with 1 points"
