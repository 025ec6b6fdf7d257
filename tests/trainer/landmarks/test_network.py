from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.landmarks.make import make_landmark_config
from tl.errors import ConfigError
from tl.trainer.landmarks.network import (
    DeployedHeatmapper,
    Heatmapper,
    LandmarkNetwork,
    Regressor,
    SoftArgmax,
    build_landmark_network,
    deployed,
)
from tl.trainer.models.backbones import build_trunk, find_backbone_info, pyramid_shapes
from tl.trainer.options import resolve


def build(backbone: str = "smallcnn", **changes: Any) -> LandmarkNetwork:
    config = resolve(make_landmark_config(Path("d"), Path("r"), backbone=backbone, **changes))
    return build_landmark_network(config, find_backbone_info(backbone), 3, None)


def images(side: int = 32, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def test_soft_argmax__one_cell_is_its_middle() -> None:
    decode = SoftArgmax((40, 80), (10, 10))  # cells of 8 x 4 pixels
    logs = torch.full((1, 1, 10, 10), -1e9)
    logs[0, 0, 2, 3] = 0
    # Cell 3 spans pixels 24 to 31, with center 27.5; cell 2 spans 8 to 11.
    assert decode(logs).tolist() == [[[27.5, 9.5]]]


def test_soft_argmax__between_two_cells() -> None:
    decode = SoftArgmax((8, 8), (8, 8))
    logs = torch.full((1, 1, 8, 8), -1e9)
    logs[0, 0, 4, 2], logs[0, 0, 4, 3] = torch.tensor([0.25, 0.75]).log()
    torch.testing.assert_close(decode(logs), torch.tensor([[[2.75, 4.0]]]))


@pytest.mark.parametrize(
    ("backbone", "side", "wanted"),
    [
        ("smallcnn", 32, [(32, 32), (64, 16), (128, 8), (128, 4)]),
        ("mobilenet_v2", 64, [(16, 32), (24, 16), (32, 8), (96, 4), (1280, 2)]),
        ("resnet18", 64, [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)]),
        ("vgg11", 64, [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4), (512, 2)]),
        ("swin_t", 64, [(768, 2)]),
    ],
)
def test_pyramid_shapes(backbone: str, side: int, wanted: list[tuple[int, int]]) -> None:
    assert pyramid_shapes(build_trunk(backbone), (side, side)) == [(d, hw, hw) for d, hw in wanted]


@pytest.mark.parametrize("backbone", ["smallcnn", "mobilenet_v2", "resnet18", "squeezenet1_0", "vgg_cnn_s"])
def test_pyramid__last_map_is_the_trunks(backbone: str) -> None:
    trunk = build_trunk(backbone).eval()
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(trunk.pyramid(pixels)[-1], trunk(pixels))


def test_build__heatmaps_at_a_quarter_of_the_input() -> None:
    network = build("mobilenet_v2", image_size=64)
    assert isinstance(network, Heatmapper)
    points, logs = network.eval()(images(64))
    assert (points.shape, logs.shape) == ((2, 3, 2), (2, 3, 16, 16))
    torch.testing.assert_close(logs.exp().sum(dim=(2, 3)), torch.ones(2, 3))


def test_build__an_embedding_has_no_heatmaps() -> None:
    with pytest.raises(
        ConfigError, match="head heatmap requires feature maps, but vit_b_32 outputs a pooled embedding"
    ):
        build("vit_b_32", image_size=224)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_regressor__begins_at_the_mean_place(head: str) -> None:
    network = build(head=head)
    assert isinstance(network, Regressor)
    places = torch.tensor([[[10.0, 10], [20, 5], [float("nan")] * 2], [[14, 10], [20, 9], [8, 8]]])
    network.place(places)
    assert network.mean.tolist() == [[12, 10], [20, 7], [8, 8]]
    assert network.spread.tolist() == [[2, 1], [1, 2], [1, 1]]  # never less than a pixel
    points = network.eval()(images())
    assert points.shape == (2, 3, 2)


def test_frozen_trunk__stays_as_it_is() -> None:
    network = build(freeze="all").train()
    before = {name: tensor.clone() for name, tensor in network.trunk.state_dict().items()}
    network(images())[0].sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.trunk.state_dict().items())
    assert all(parameter.grad is None for parameter in network.trunk.parameters())
    assert any(parameter.grad is not None for parameter in network.head.parameters())


def test_deployed__confidence_is_one_where_heatmaps_are_as_taught() -> None:
    network = build(image_size=96)
    assert isinstance(network, Heatmapper)
    points = torch.tensor([[[40.0, 40.0], [50.0, 45.5], [47.5, 60.0]]])
    shown = network.decode.gaussians(points, 1.5)
    logs = (shown / shown.sum(dim=(2, 3), keepdim=True)).clamp_min(1e-30).log()
    network.forward = lambda images: (network.decode(logs), logs)  # type: ignore[method-assign]
    confidence = DeployedHeatmapper(network)(images(count=1))[1]
    torch.testing.assert_close(confidence, torch.ones(1, 3), rtol=0, atol=0.01)  # sampled at whole cells


def test_deployed__confidence_tells_a_peak_from_two() -> None:
    network = build()
    assert isinstance(network, Heatmapper)
    module, names = deployed(network)
    assert names == ("keypoints", "keypoint_confidence")
    assert isinstance(module, DeployedHeatmapper)
    logs = torch.full((1, 3, 8, 8), -1e9)
    logs[0, 0, 4, 4] = 0  # one sharp peak
    logs[0, 1, 0, 0] = logs[0, 1, 7, 7] = -0.6931472  # two peaks, whose mean position is at neither
    logs[0, 2] = -4.158883  # uniform
    network.forward = lambda images: (network.decode(logs), logs)  # type: ignore[method-assign]
    confidence = module(images(count=1))[1][0]
    assert confidence[0] == 1
    # Both peaks are 3.5 cells from the center in x and y, weighted by a Gaussian of 3.
    assert float(confidence[1]) == pytest.approx(math.exp(-2 * 3.5**2 / 18) / 0.8, rel=1e-5)  # float32
    assert confidence[2] < 0.75  # with 8 cells per side, a sixth lies within 3 cells of any
