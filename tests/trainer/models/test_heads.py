from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tl.errors import ConfigError
from tl.trainer.config import Head
from tl.trainer.models.network import GlobalAverage, build_head


def kinds(head: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in head.children()]


@pytest.mark.parametrize("kind", ["linear", "svm"])
def test_build_head__linear(kind: Head) -> None:
    head = build_head(kind, (7,), 3, sizes=(5,), dropout=0.5)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (7, 3)


def test_build_head__mlp_is_that_of_the_study() -> None:
    head = build_head("mlp", (1280,), 15, sizes=(512, 256), dropout=0.2)
    assert kinds(head) == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    linear = [layer for layer in head.children() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(1280, 512), (512, 256), (256, 15)]
    (dropout,) = (layer for layer in head.children() if isinstance(layer, nn.Dropout))
    assert dropout.p == 0.2


@pytest.mark.parametrize(
    ("sizes", "dropout", "wanted"),
    [
        ((4,), 0.0, ["Linear", "ReLU", "Linear"]),
        ((4,), 0.1, ["Linear", "ReLU", "Dropout", "Linear"]),
        ((), 0.1, ["Linear"]),
    ],
)
def test_build_head__mlp_of_other_sizes(sizes: tuple[int, ...], dropout: float, wanted: list[str]) -> None:
    assert kinds(build_head("mlp", (6,), 2, sizes=sizes, dropout=dropout)) == wanted


@pytest.mark.parametrize("kind", ["linear", "mlp", "svm"])
def test_build_head__embedding_to_logits(kind: Head) -> None:
    head = build_head(kind, (6,), 3, sizes=(8, 4), dropout=0.2).eval()
    embedding = torch.randn(5, 6)
    kept = embedding.clone()
    assert head(embedding).shape == (5, 3)
    assert torch.equal(embedding, kept)  # cached features are reused in the next epoch


def test_build_head__mlp_by_hand() -> None:
    head = build_head("mlp", (2,), 2, sizes=(2,), dropout=0.0)
    first, _, last = head.children()
    weights = {first: ([[1.0, -1.0], [2.0, 0.0]], [0.0, -1.0]), last: ([[1.0, 1.0], [0.0, -2.0]], [0.5, 0.0])}
    with torch.no_grad():
        for layer, (weight, bias) in weights.items():
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    # (1, 3) -> (-2, 1) -> relu (0, 1) -> (0 + 1 + 0.5, -2)
    assert head(torch.tensor([[1.0, 3.0]])).tolist() == [[1.5, -2.0]]


def test_build_head__conv_is_that_of_the_study() -> None:
    head = build_head("conv", (1280, 7, 7), 15, sizes=(32, 1024), dropout=0.2)
    assert kinds(head) == ["Conv2d", "ReLU", "GlobalAverage", "Dropout", "Linear", "ReLU", "Linear"]
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        "0.weight": (32, 1280, 3, 3),
        "0.bias": (32,),
        "4.weight": (1024, 32),
        "4.bias": (1024,),
        "6.weight": (15, 1024),
        "6.bias": (15,),
    }
    assert head[3].p == 0.2


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((4,), ["Conv2d", "ReLU", "GlobalAverage", "Dropout", "Linear"]),
        ((4, 5, 6), ["Conv2d", "ReLU", "GlobalAverage", "Dropout", "Linear", "ReLU", "Linear", "ReLU", "Linear"]),
    ],
)
@pytest.mark.parametrize("hw", [(1, 1), (2, 5), (7, 7)])
def test_build_head__conv_maps_to_logits(sizes: tuple[int, ...], wanted: list[str], hw: tuple[int, int]) -> None:
    head = build_head("conv", (6, *hw), 2, sizes=sizes, dropout=0.0).eval()
    assert kinds(head) == wanted
    maps = torch.randn(5, 6, *hw)
    kept = maps.clone()
    logits = head(maps)
    assert logits.shape == (5, 2)
    assert torch.equal(maps, kept)
    # The same by hand: same-padded 3x3 convolution, ReLU, mean over the image, dense layers.
    values = functional.conv2d(functional.pad(maps, (1, 1, 1, 1)), head[0].weight, head[0].bias).clamp_min(0)
    values = values.sum(dim=(2, 3)) / (hw[0] * hw[1])
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        values = values @ layer.weight.T + layer.bias
        values = values.clamp_min(0) if i < len(linear) - 1 else values
    torch.testing.assert_close(logits, values, rtol=0, atol=1e-5)  # float32 sums of about 50 terms in a different order


def test_build_head__conv_needs_a_map() -> None:
    with pytest.raises(
        ConfigError, match="head conv requires a feature map, but this backbone outputs a pooled embedding"
    ):
        build_head("conv", (768,), 3, sizes=(32, 1024), dropout=0.2)


def test_global_average__by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -4.0]]]])
    assert GlobalAverage()(maps).tolist() == [[3.0, -1.0]]
