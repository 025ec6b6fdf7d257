"""The network as it trains and as it deploys: uint8 NHWC in; normalisation, trunk, pooling and head inside.

Knows trunks, heads and freezing. Does not know files, batches or losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tl.trainer.backbones import Trunk
from tl.trainer.config import Pooling


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) in 0..255 -> float (N, 3, H, W), (x / 255 - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Cast and normalise."""
        # Permuting NHWC gives a channels-last tensor without a copy, the fastest layout for convolutions here.
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (pixels - self.mean) / self.std


class Standardise(nn.Module):
    """Embeddings (N, D) -> zero mean and unit spread, as measured once on training pictures; the identity before that.

    Backbones differ by orders of magnitude in the size of their features. On standardised ones, one learning rate
    suits a new head on any of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def fit(self, embeddings: Tensor) -> None:
        """Measure on embeddings (N, D). Nearly constant features are not blown up."""
        std = embeddings.std(dim=0, correction=0)
        self.mean.copy_(embeddings.mean(dim=0))
        self.std.copy_(std.clamp_min(0.1 * float(std.mean())).clamp_min(1e-6))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scale and shift."""
        return (embeddings - self.mean) / self.std


class Network(nn.Module):
    """A classifier on a trunk. `frozen_trunk` keeps the trunk's parameters and batch-norm statistics as they are."""

    def __init__(
        self,
        normalise: Normalise,
        trunk: Trunk,
        standardise: Standardise,
        head: nn.Module,
        *,
        pooling: Pooling,
        frozen_trunk: bool,
    ) -> None:
        super().__init__()
        self.normalise, self.trunk, self.standardise, self.head = normalise, trunk, standardise, head
        self.pooling, self.frozen_trunk = pooling, frozen_trunk
        if frozen_trunk:
            trunk.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Network:
        """As torch's, but a frozen trunk stays in evaluation mode, so that its batch norm does not drift."""
        super().train(mode)
        if self.frozen_trunk:
            self.trunk.eval()
        return self

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> pooled features (N, D)."""
        features: Tensor = self.trunk(self.normalise(images))
        if self.trunk.kind == "embedding":
            return features
        return features.mean(dim=(2, 3)) if self.pooling == "gap" else features.flatten(1)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Pooled features (N, D) -> logits (N, C)."""
        logits: Tensor = self.head(self.standardise(embeddings))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> logits (N, C)."""
        return self.classify(self.embed(images))


class Deployed(nn.Module):
    """What a model file computes from a trained network: probabilities (N, C) and embedding (N, D)."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, 3) -> probabilities float32 (N, C), embedding float32 (N, D)."""
        embedding = self.network.embed(images)
        return torch.softmax(self.network.classify(embedding) / self.temperature, dim=1), embedding


class DeployedClassifier(nn.Module):
    """What a model file computes from a whole pretrained classifier: probabilities (N, C)."""

    def __init__(self, normalise: Normalise, classifier: nn.Module) -> None:
        super().__init__()
        self.normalise, self.classifier = normalise, classifier

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """uint8 (N, H, W, 3) -> probabilities float32 (N, C)."""
        return (torch.softmax(self.classifier(self.normalise(images)), dim=1),)


def feature_length(shape: tuple[int, ...], pooling: Pooling) -> int:
    """Length of the embedding for features of `shape` (D, h, w) or (D,)."""
    if len(shape) == 1 or pooling == "gap":
        return shape[0]
    return shape[0] * shape[1] * shape[2]
