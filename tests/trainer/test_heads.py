from __future__ import annotations

import pytest
import torch
from torch import nn

from tl.trainer.heads import build_head


def kinds(head: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in head.children()]


def test_build_head__linear() -> None:
    head = build_head("linear", 7, 3, sizes=(5,), dropout=0.5)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (7, 3)


def test_build_head__mlp_is_that_of_the_study() -> None:
    head = build_head("mlp", 1280, 15, sizes=(512, 256), dropout=0.2)
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
    assert kinds(build_head("mlp", 6, 2, sizes=sizes, dropout=dropout)) == wanted


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_build_head__embedding_to_logits(kind: str) -> None:
    head = build_head(kind, 6, 3, sizes=(8, 4), dropout=0.2).eval()  # type: ignore[arg-type]
    embedding = torch.randn(5, 6)
    kept = embedding.clone()
    assert head(embedding).shape == (5, 3)
    assert torch.equal(embedding, kept)  # cached features are used again in the next epoch


def test_build_head__mlp_by_hand() -> None:
    head = build_head("mlp", 2, 2, sizes=(2,), dropout=0.0)
    first, _, last = head.children()
    weights = {first: ([[1.0, -1.0], [2.0, 0.0]], [0.0, -1.0]), last: ([[1.0, 1.0], [0.0, -2.0]], [0.5, 0.0])}
    with torch.no_grad():
        for layer, (weight, bias) in weights.items():
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    # (1, 3) -> (-2, 1) -> relu (0, 1) -> (0 + 1 + 0.5, -2)
    assert head(torch.tensor([[1.0, 3.0]])).tolist() == [[1.5, -2.0]]
