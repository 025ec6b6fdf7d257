"""What is trained on top of a backbone: pooled embedding (N, D) -> logits (N, C).

Knows layers. Does not know pictures or backbones.
"""

from __future__ import annotations

from torch import nn

from tl.trainer.config import Head


def build_head(head: Head, in_features: int, num_classes: int, *, sizes: tuple[int, ...], dropout: float) -> nn.Module:
    """A head by name. `mlp`: linear + ReLU for each of `sizes`, dropout after the first, then linear.

    The order dense 512, ReLU, dropout 0.2, dense 256, ReLU of the default is that of Klimack & Recio's study.
    """
    if head == "linear":
        return nn.Linear(in_features, num_classes)
    layers: list[nn.Module] = []
    for i, size in enumerate(sizes):
        layers += [nn.Linear(in_features, size), nn.ReLU(inplace=True)]
        if i == 0 and dropout > 0:
            layers.append(nn.Dropout(dropout))
        in_features = size
    return nn.Sequential(*layers, nn.Linear(in_features, num_classes))
