"""The network in training and deployment: uint8 NHWC in; includes normalization, trunk, pooling and head.

Contains no file access, no batching and no losses.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.errors import ConfigError
from tl.trainer.config import Head
from tl.trainer.models.backbones import Trunk

FeaturePooling = Literal["gap", "flatten", "map"]
Activation = Literal["softmax", "sigmoid", "none"]


class Normalize(nn.Module):
    """uint8 (N, H, W, C) in 0..255 -> float (N, C, H, W), (x / 255 - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Cast and normalize."""
        # Permuting NHWC gives a channels-last tensor without a copy, the fastest layout for convolutions here.
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (pixels - self.mean) / self.std


class Standardize(nn.Module):
    """Standardize features to zero mean and unit standard deviation, fitted on training images; initially the identity.

    Statistics are per entry of an embedding (N, D) or per channel of a map (N, D, h, w). Backbones' feature sizes
    differ by orders of magnitude; standardization makes one learning rate suit a new head on any of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._over = (0, *range(2, len(shape) + 1))
        size = (shape[0], *(1 for _ in shape[1:]))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, features: Tensor) -> None:
        """Fit the statistics. Nearly constant features are not amplified."""
        std, mean = torch.std_mean(features, dim=self._over, correction=0)
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.clamp_min(0.1 * float(std.mean())).clamp_min(1e-6).view_as(self.std))

    def fit_scale(self, features: Tensor) -> None:
        """Fit one scale for all entries, for a trunk that is trained further.

        Features larger than 1, as in trunks without batch norm, are scaled down to a mean square of 1. Small features
        are not scaled up, because that would distort the trunk.
        """
        self.mean.zero_()
        self.std.fill_(max(1.0, float(features.square().mean().sqrt())))

    def forward(self, features: Tensor) -> Tensor:
        """Shift and scale."""
        return (features - self.mean) / self.std


class OnTrunk(nn.Module):
    """Normalization and trunk. Layers with only frozen parameters do not change, including batch-norm statistics; the
    statistics of all layers are fixed if the trunk says so.
    """

    def __init__(self, normalize: Normalize, trunk: Trunk) -> None:
        super().__init__()
        self.normalize, self.trunk = normalize, trunk

    def train(self, mode: bool = True) -> Self:
        """Like torch's, but frozen layers stay in evaluation mode."""
        super().train(mode)
        if mode:
            _settle_frozen(self.trunk)
            if self.trunk.has_fixed_batch_norm:
                for module in self.trunk.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self


class OnFeatures(OnTrunk):
    """A trunk with pooling, standardization and a head. `pooling`: whether the head takes an embedding or the map."""

    def __init__(
        self, normalize: Normalize, trunk: Trunk, standardize: Standardize, head: nn.Module, pooling: FeaturePooling
    ) -> None:
        super().__init__(normalize, trunk)
        self.standardize, self.head, self.pooling = standardize, head, pooling

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> the head's input: embedding (N, D) or map (N, D, h, w)."""
        return self.pool(self.trunk(self.normalize(images)))

    def pool(self, features: Tensor) -> Tensor:
        """A trunk's features -> the head's input."""
        if self.trunk.kind == "embedding" or self.pooling == "map":
            return features
        return features.mean(dim=(2, 3)) if self.pooling == "gap" else features.flatten(1)


class Network(OnFeatures):
    """A classifier on a trunk. `aux` is an auxiliary classifier on the trunk's layer `aux_layer`, used in training."""

    def __init__(
        self,
        normalize: Normalize,
        trunk: Trunk,
        standardize: Standardize,
        head: nn.Module,
        *,
        pooling: FeaturePooling,
        aux: nn.Module | None = None,
        aux_layer: str = "",
    ) -> None:
        super().__init__(normalize, trunk, standardize, head, pooling)
        self.aux, self.aux_layer = aux, aux_layer
        self.train(self.training)

    def classify(self, features: Tensor) -> Tensor:
        """Features -> logits (N, C)."""
        logits: Tensor = self.head(self.standardize(features))
        return logits

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """uint8 (N, H, W, 3) -> logits (N, C); in training with an auxiliary classifier, also its logits."""
        if self.aux is None or not self.training:
            return self.classify(self.features(images))
        on_the_way, last = self.trunk.tapped(self.normalize(images), self.aux_layer)
        return self.classify(self.pool(last)), self.aux(on_the_way)


class Deployed(nn.Module):
    """The computation of a model file, from a trained network: `outputs` lists its outputs, the main one first.

    `activation`: softmax and sigmoid give the output probabilities, of which `temperature` divides the logits (a tensor
    (C,) for one of each output); none gives the head's own numbers, the output values.
    `unknown`: embedding (N, D) -> score (N,), None to omit the output. `with_cam`: also output class activation maps.
    """

    def __init__(
        self,
        network: Network,
        temperature: float | Tensor,
        *,
        activation: Activation = "softmax",
        unknown: nn.Module | None = None,
        with_cam: bool = False,
    ) -> None:
        super().__init__()
        if with_cam and not has_cam(network):
            raise ValueError("this network has no class activation maps")
        self.network, self.unknown, self.with_cam = network, unknown, with_cam
        if isinstance(temperature, Tensor):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature
        further = ("ood_score",) * (unknown is not None) + ("cam",) * with_cam
        self.activation = activation
        self.outputs = ("values" if activation == "none" else "probabilities", "embedding", *further)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, H, W, 3) -> float32 probabilities or values (N, C) and embedding (N, D) (for a map, its average).

        Optional: ood_score (N,); cam (N, C, h, w), logits at each position of the map, whose mean is the image's.

        Source of the maps: Zhou et al. 2016.
        """
        network = self.network
        last = network.trunk(network.normalize(images))
        features = network.pool(last)
        main = network.classify(features)
        if self.activation == "softmax":
            main = torch.softmax(main / self.temperature, dim=1)
        elif self.activation == "sigmoid":
            main = torch.sigmoid(main / self.temperature)
        embedding = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        outputs = [main, embedding]
        if self.unknown is not None:
            outputs.append(self.unknown(embedding))
        if self.with_cam:
            outputs.append(network.classify(last.movedim(1, -1)).movedim(-1, 1))
        return tuple(outputs)


def has_cam(network: Network) -> bool:
    """Whether logits are the mean over a map: a linear head on global average pooling."""
    return network.trunk.kind == "map" and network.pooling == "gap" and isinstance(network.head, nn.Linear)


class DeployedClassifier(nn.Module):
    """The computation of a model file, from a whole pretrained classifier: probabilities (N, C)."""

    def __init__(self, normalize: Normalize, classifier: nn.Module) -> None:
        super().__init__()
        self.normalize, self.classifier = normalize, classifier

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """uint8 (N, H, W, 3) -> probabilities float32 (N, C)."""
        return (torch.softmax(self.classifier(self.normalize(images)), dim=1),)


def pooled_shape(shape: tuple[int, ...], pooling: FeaturePooling) -> tuple[int, ...]:
    """Shape of one image's features (D, h, w) or (D,) after pooling."""
    if len(shape) == 1 or pooling == "map":
        return shape
    return shape[:1] if pooling == "gap" else (shape[0] * shape[1] * shape[2],)


def _settle_frozen(module: nn.Module) -> None:
    """Set modules that have parameters, but no trainable ones, to evaluation mode."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _settle_frozen(child)


class GlobalAverage(nn.Module):
    """Maps (N, D, h, w) -> (N, D)."""

    def forward(self, maps: Tensor) -> Tensor:
        """The mean over the image."""
        return maps.mean(dim=(2, 3))


def build_head(
    head: Head, in_shape: tuple[int, ...], num_classes: int, *, sizes: tuple[int, ...], dropout: float
) -> nn.Module:
    """Build a head by name for features of `in_shape`: (D,), or (D, h, w) for `conv`.

    `linear` and `svm`: one linear layer. `mlp`: linear + ReLU per `sizes` entry, dropout after the first, then linear.
    `conv`: 3x3 convolution to `sizes[0]` channels + ReLU, global average, dropout, linear + ReLU for the other sizes,
    then linear. Raises `ConfigError` for a conv head on features that are not a map.

    Source: dense 512, ReLU, dropout 0.2, dense 256, ReLU is Klimack & Recio's head; 32 channels, dropout 0.2, dense
    1024 is Ahmed's (2021).
    """
    layers: list[nn.Module] = []
    width = in_shape[0]
    if head in ("linear", "svm"):
        return nn.Linear(width, num_classes)
    if head == "conv":
        if len(in_shape) != 3:
            raise ConfigError("head conv requires a feature map, but this backbone outputs a pooled embedding")
        layers = [nn.Conv2d(width, sizes[0], 3, padding=1), nn.ReLU(inplace=True), GlobalAverage(), nn.Dropout(dropout)]
        width, sizes = sizes[0], sizes[1:]
    for i, size in enumerate(sizes):
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        if head == "mlp" and i == 0 and dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
