"""Landmark networks from configs, weights files and run folders.

Knows how backbone, head and freezing make a network. Does not know pictures or training.
"""

from __future__ import annotations

import torch
from torch import nn

from tl.errors import ConfigError
from tl.trainer.backbone_info import BackboneInfo
from tl.trainer.backbones import find_backbone_info, pyramid_shapes
from tl.trainer.checkpoints import load_best
from tl.trainer.config import TrainConfig
from tl.trainer.heads import build_head
from tl.trainer.landmarks.network import (
    DeployedHeatmapper,
    DeployedRegressor,
    Heatmapper,
    PyramidHead,
    Regressor,
)
from tl.trainer.network import Normalise, Standardise
from tl.trainer.networks import build_run_trunk, head_input
from tl.trainer.options import settled
from tl.trainer.runs import NetworkCard, Run
from tl.trainer.weights import Weights, load_into

LandmarkNetwork = Regressor | Heatmapper
# Finer maps than this share of the input cost much and add little.
_FINEST = 4


def build_landmark_network(
    config: TrainConfig, info: BackboneInfo, num_keypoints: int, weights: Weights | None
) -> LandmarkNetwork:
    """The network of a resolved config, initialised from the seed and the weights, frozen as asked.

    Raises `ConfigError` or `WeightsError`.
    """
    trunk = build_run_trunk(config, weights)
    side = config.image_size or info.image_size
    normalise = Normalise(info.mean, info.std)
    network: LandmarkNetwork
    if config.head == "heatmap":
        shapes = [shape for shape in pyramid_shapes(trunk, (side, side)) if len(shape) == 3]
        if not shapes:
            raise ConfigError(f"head heatmap needs feature maps, and {config.backbone} gives a pooled embedding")
        used = [shape for shape in shapes if shape[1] * _FINEST <= side] or shapes[-1:]
        torch.manual_seed(config.seed)
        head = PyramidHead([shape[0] for shape in used], num_keypoints, settled(config.head_sizes)[0])
        network = Heatmapper(normalise, trunk, head, (side, side), (used[0][1], used[0][2]))
    else:
        shape, pooling = head_input(config, trunk, side)
        torch.manual_seed(config.seed)
        sizes = settled(config.head_sizes)
        plain = build_head(settled(config.head), shape, 2 * num_keypoints, sizes=sizes, dropout=config.dropout)
        network = Regressor(normalise, trunk, Standardise(shape), plain, pooling)
    return network.to(memory_format=torch.channels_last)


def load_landmark_network(run: Run) -> tuple[LandmarkNetwork, NetworkCard, TrainConfig]:
    """A run's best network in evaluation mode on the CPU, its card and its config. Raises `RunError`."""
    config = run.load_config()
    tensors, card = load_best(run)
    network = build_landmark_network(config, find_backbone_info(config.backbone), len(card.keypoint_names), None)
    load_into(network, Weights(tensors, str(run.best_path)))
    return network.eval(), card, config


def deployed(network: LandmarkNetwork) -> tuple[nn.Module, tuple[str, ...]]:
    """What a model file computes, and its outputs' names."""
    if isinstance(network, Heatmapper):
        return DeployedHeatmapper(network), ("keypoints", "keypoint_confidence")
    return DeployedRegressor(network), ("keypoints",)
