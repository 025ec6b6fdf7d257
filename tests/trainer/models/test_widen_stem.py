"""Backbones for more than three channels, compared with timm's `adapt_input_conv`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models import adapt_input_conv

from tests.trainer.make import make_config
from tl.errors import ConfigError
from tl.trainer.models.backbone_info import with_channels
from tl.trainer.models.backbones import build_trunk, feature_shape, find_backbone_info, first_convolution, widen_stem
from tl.trainer.models.build import build_network
from tl.trainer.models.weights import Weights
from tl.trainer.options import resolve


@pytest.mark.parametrize("name", ["smallcnn", "efficientnet_lite0", "resnet18", "vit_b_32", "swin_t", "timm:resnet10t"])
@pytest.mark.parametrize("channels", [4, 7])
def test_widen_stem__as_timm(name: str, channels: int) -> None:
    trunk = build_trunk(name)
    layer, stem = first_convolution(trunk) or pytest.fail("no stem")
    before = stem.weight.detach().clone()
    names = set(trunk.state_dict())
    widen_stem(trunk, channels)
    assert set(trunk.state_dict()) == names
    assert (trunk.state_dict()[f"{layer}.weight"] == adapt_input_conv(channels, before)).all()
    assert stem.in_channels == trunk.num_channels == channels
    if not name.startswith("vit"):  # which takes 224 px only
        assert len(feature_shape(trunk, (64, 64))) in (1, 3)


def test_widen_stem__equal_channels_give_the_same_features() -> None:
    trunk = build_trunk("resnet18").eval()
    gray = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight = first_convolution(trunk)[1].weight  # type: ignore[index]
        weight.copy_(weight.mean(dim=1, keepdim=True).expand_as(weight))  # then all channels have the same weights
        before = trunk(gray.expand(-1, 3, -1, -1))
        widen_stem(trunk, 5)
        after = trunk(gray.expand(-1, 5, -1, -1))
    assert torch.allclose(before, after, atol=1e-4)  # other order of sums


def test_widen_stem__twice_is_refused() -> None:
    trunk = build_trunk("smallcnn")
    widen_stem(trunk, 4)
    with pytest.raises(ConfigError, match="does not begin with a convolution of RGB"):
        widen_stem(trunk, 5)


def test_with_channels__repeats_like_the_weights() -> None:
    info = with_channels(find_backbone_info("resnet18"), 5)
    assert info.mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    assert info.std == (0.229, 0.224, 0.225, 0.229, 0.224)


def test_build_network__from_weights_of_a_run_with_as_many_channels() -> None:
    config = resolve(make_config("x", "y", method="scratch", backbone="smallcnn", channels="0,1,2,3", image_size=32))
    info = with_channels(find_backbone_info("smallcnn"), 4)
    first = build_network(config, info, 3, None)
    tensors = {name.removeprefix("trunk."): t for name, t in first.state_dict().items() if name.startswith("trunk.")}
    again = build_network(config, info, 3, Weights({k: v + 1 for k, v in tensors.items()}, "run"))
    assert torch.equal(again.trunk.state_dict()["block1.0.weight"], tensors["block1.0.weight"] + 1)
    rgb = resolve(make_config("x", "y", method="scratch", backbone="smallcnn", image_size=32))
    colors = build_network(rgb, find_backbone_info("smallcnn"), 3, None)
    given = {n.removeprefix("trunk."): t for n, t in colors.state_dict().items() if n.startswith("trunk.")}
    wide = build_network(config, info, 3, Weights(given, "file"))
    assert torch.equal(wide.trunk.state_dict()["block1.0.weight"], adapt_input_conv(4, given["block1.0.weight"]))
    images = torch.from_numpy(np.zeros((2, 32, 32, 4), np.uint8))
    assert wide.eval()(images).shape == (2, 3)
