"""Networks that output points: coordinates regressed from an embedding, or decoded from one heatmap per point.

Contains no file access and no losses. Points are (x, y) in pixels of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl.errors import ConfigError
from tl.trainer.config import TrainConfig
from tl.trainer.models.backbone_info import BackboneInfo, with_channels
from tl.trainer.models.backbones import Trunk, find_backbone_info, pyramid_shapes
from tl.trainer.models.build import build_run_trunk, head_input
from tl.trainer.models.network import FeaturePooling, Normalize, OnFeatures, OnTrunk, Standardize, build_head
from tl.trainer.models.weights import Weights, load_into
from tl.trainer.options import settled
from tl.trainer.run_folder.checkpoints import load_best
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run

# Sigma of a heatmap's target Gaussian, in cells; confidence weights a heatmap by a Gaussian of twice that sigma.
SIGMA = 1.5
# A Gaussian of SIGMA weighted by one of twice that: 4 / (4 + 1).
_TAUGHT = 0.8


class Regressor(OnFeatures):
    """Embedding -> coordinates: each point's mean training position plus the head's output times its deviation."""

    mean: Tensor
    spread: Tensor

    def __init__(
        self, normalize: Normalize, trunk: Trunk, standardize: Standardize, head: nn.Module, pooling: FeaturePooling
    ) -> None:
        super().__init__(normalize, trunk, standardize, head, pooling)
        points = [module.out_features for module in head.modules() if isinstance(module, nn.Linear)][-1] // 2
        self.register_buffer("mean", torch.zeros(points, 2))
        self.register_buffer("spread", torch.ones(points, 2))

    def place(self, points_xy: Tensor) -> None:
        """Fit mean and spread to the training points (N, K, 2) in input pixels; NaN points are ignored."""
        for k in range(points_xy.shape[1]):
            own = points_xy[:, k][~points_xy[:, k].isnan().any(dim=1)]
            if len(own):
                self.mean[k] = own.mean(dim=0)
                self.spread[k] = own.std(dim=0, correction=0).clamp_min(1.0)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> points (N, K, 2)."""
        offsets = self.head(self.standardize(self.features(images))).float()
        points: Tensor = self.mean + self.spread * offsets.unflatten(1, self.mean.shape)
        return points


class Heatmapper(OnTrunk):
    """Multi-scale maps -> one heatmap per point, at a quarter of the input size or the nearest available size."""

    def __init__(
        self, normalize: Normalize, trunk: Trunk, head: PyramidHead, input_hw: tuple[int, int], heat_hw: tuple[int, int]
    ) -> None:
        super().__init__(normalize, trunk)
        self.head = head
        self.decode = SoftArgmax(input_hw, heat_hw)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, 3) -> points (N, K, 2) and log-probabilities of heatmap cells (N, K, h, w)."""
        heat = self.head(self.trunk.pyramid(self.normalize(images)))
        logs = heat.float().flatten(2).log_softmax(dim=2).view(heat.shape)
        return self.decode(logs), logs


class PyramidHead(nn.Module):
    """Trunk maps, fine to coarse -> heatmaps (N, K, h, w) with the size of the finest map.

    Each map is projected to `width` channels, coarse maps are upsampled and added to finer ones, and a 3x3 convolution
    refines each sum. Source: Lin et al. 2017, "Feature Pyramid Networks"; Xiao et al. 2018 for heatmaps from plain
    heads.
    """

    def __init__(self, channels: list[int], num_keypoints: int, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.mends = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for _ in channels
        )
        self.last = nn.Conv2d(width, num_keypoints, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Uses the last `len(laterals)` maps; finer maps before them are ignored."""
        used = maps[-len(self.laterals) :]
        found: Tensor | None = None
        for level in range(len(used) - 1, -1, -1):
            lateral = self.laterals[level](used[level])
            if found is not None:
                lateral = lateral + functional.interpolate(found, size=lateral.shape[2:], mode="nearest")
            found = self.mends[level](lateral)
        heat: Tensor = self.last(found)
        return heat


class SoftArgmax(nn.Module):
    """Log-probabilities of cells (N, K, h, w) -> expected position (N, K, 2) in input pixels, with subcell precision.

    Source: Nibali et al. 2018, "Numerical Coordinate Regression with Convolutional Neural Networks".
    """

    xs: Tensor
    ys: Tensor

    def __init__(self, input_hw: tuple[int, int], heat_hw: tuple[int, int]) -> None:
        super().__init__()
        (height, width), (rows, columns) = input_hw, heat_hw
        self.cell_wh = (width / columns, height / rows)
        self.register_buffer("xs", (torch.arange(columns) + 0.5) * self.cell_wh[0] - 0.5, persistent=False)
        self.register_buffer("ys", (torch.arange(rows) + 0.5) * self.cell_wh[1] - 0.5, persistent=False)

    def forward(self, logs: Tensor) -> Tensor:
        """The expected position."""
        shares = logs.exp()
        return torch.stack([(shares.sum(dim=2) * self.xs).sum(dim=2), (shares.sum(dim=3) * self.ys).sum(dim=2)], dim=2)

    def gaussians(self, points_xy: Tensor, sigma: float) -> Tensor:
        """exp(-d^2 / 2 sigma^2) with d in cells from each point (N, K, 2) -> (N, K, h, w), 1 at the point."""
        dx = (self.xs - points_xy[..., :1]) / self.cell_wh[0]
        dy = (self.ys - points_xy[..., 1:]) / self.cell_wh[1]
        squared = dy.square().unsqueeze(3) + dx.square().unsqueeze(2)
        return torch.exp(squared / (-2 * sigma**2))


class DeployedRegressor(nn.Module):
    """The computation of a model file: points (N, K, 2) in input pixels."""

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """uint8 (N, H, W, 3) -> points float32 (N, K, 2)."""
        return (self.network(images),)


class DeployedHeatmapper(nn.Module):
    """The computation of a model file: points (N, K, 2) in input pixels, and the confidence of each (N, K).

    Confidence is the share of a point's heatmap that lies around the point, 1 if it is as sharp as the training target.
    It is near 0 if the heatmap is spread out, or has distant peaks, so that their mean position is at none of them.
    """

    def __init__(self, network: Heatmapper) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, 3) -> points float32 (N, K, 2), confidence float32 (N, K) in [0, 1]."""
        points, logs = self.network(images)
        around = (logs.exp() * self.network.decode.gaussians(points, 2 * SIGMA)).sum(dim=(2, 3))
        return points, (around / _TAUGHT).clamp_max(1.0)


LandmarkNetwork = Regressor | Heatmapper
# Maps finer than this fraction of the input cost much and add little.
_FINEST = 4


def build_landmark_network(
    config: TrainConfig, info: BackboneInfo, num_keypoints: int, weights: Weights | None
) -> LandmarkNetwork:
    """The network of a resolved config, initialized from the seed and the weights, and frozen as configured.

    Raises `ConfigError` or `WeightsError`.
    """
    trunk = build_run_trunk(config, weights)
    side = config.image_size or info.image_size
    normalize = Normalize(info.mean, info.std)
    network: LandmarkNetwork
    if config.head == "heatmap":
        shapes = [shape for shape in pyramid_shapes(trunk, (side, side)) if len(shape) == 3]
        if not shapes:
            raise ConfigError(f"head heatmap requires feature maps, but {config.backbone} outputs a pooled embedding")
        used = [shape for shape in shapes if shape[1] * _FINEST <= side] or shapes[-1:]
        torch.manual_seed(config.seed)
        head = PyramidHead([shape[0] for shape in used], num_keypoints, settled(config.head_sizes)[0])
        network = Heatmapper(normalize, trunk, head, (side, side), (used[0][1], used[0][2]))
    else:
        shape, pooling = head_input(config, trunk, side)
        torch.manual_seed(config.seed)
        sizes = settled(config.head_sizes)
        plain = build_head(settled(config.head), shape, 2 * num_keypoints, sizes=sizes, dropout=config.dropout)
        network = Regressor(normalize, trunk, Standardize(shape), plain, pooling)
    return network.to(memory_format=torch.channels_last)


def load_landmark_network(run: Run) -> tuple[LandmarkNetwork, NetworkCard, TrainConfig]:
    """A run's best network in evaluation mode on the CPU, its card and its config. Raises `RunError`."""
    config = run.load_config()
    tensors, card = load_best(run)
    info = with_channels(find_backbone_info(config.backbone), card.preprocessing.num_channels)
    network = build_landmark_network(config, info, len(card.keypoint_names), None)
    load_into(network, Weights(tensors, str(run.best_path)))
    return network.eval(), card, config


def deployed(network: LandmarkNetwork) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that a model file computes, and its output names."""
    if isinstance(network, Heatmapper):
        return DeployedHeatmapper(network), ("keypoints", "keypoint_confidence")
    return DeployedRegressor(network), ("keypoints",)
