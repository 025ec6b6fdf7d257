"""What is trained on top of a backbone: features -> logits (N, C).

Knows layers. Does not know pictures or backbones.
"""

from __future__ import annotations

from torch import Tensor, nn

from tl.errors import ConfigError
from tl.trainer.config import Head


class GlobalAverage(nn.Module):
    """Maps (N, D, h, w) -> (N, D)."""

    def forward(self, maps: Tensor) -> Tensor:
        """The mean over the picture."""
        return maps.mean(dim=(2, 3))


def build_head(
    head: Head, in_shape: tuple[int, ...], num_classes: int, *, sizes: tuple[int, ...], dropout: float
) -> nn.Module:
    """A head by name for features of `in_shape`: (D,), or (D, h, w) for `conv`.

    `linear` and `svm`: one linear layer. `mlp`: linear + ReLU for each of `sizes`, dropout after the first, linear.
    `conv`: 3x3 convolution to `sizes[0]` channels + ReLU, global average, dropout, linear + ReLU for the other sizes,
    then linear. Raises `ConfigError` for a conv head on features without a map.

    Source: dense 512, ReLU, dropout 0.2, dense 256, ReLU is Klimack & Recio's head; 32 channels, dropout 0.2, dense
    1024 is Ahmed's (2021).
    """
    layers: list[nn.Module] = []
    width = in_shape[0]
    if head in ("linear", "svm"):
        return nn.Linear(width, num_classes)
    if head == "conv":
        if len(in_shape) != 3:
            raise ConfigError("head conv needs a feature map, and this backbone gives a pooled embedding")
        layers = [nn.Conv2d(width, sizes[0], 3, padding=1), nn.ReLU(inplace=True), GlobalAverage(), nn.Dropout(dropout)]
        width, sizes = sizes[0], sizes[1:]
    for i, size in enumerate(sizes):
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        if head == "mlp" and i == 0 and dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
