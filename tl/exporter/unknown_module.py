"""The unknown score as a torch module, for a network's graph.

Knows what `unknown` fits. Does not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tl.exporter.unknown import SHORTEST, UnknownFit


class UnknownScore(nn.Module):
    """Embeddings (N, D) -> distance of each to the nearest class's mean, (N,), as `UnknownFit.scores`."""

    mean: Tensor
    whitening: Tensor
    class_means: Tensor

    def __init__(self, fit: UnknownFit) -> None:
        super().__init__()
        for name, values in vars(fit).items():
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, D) -> (N,)."""
        unit = nn.functional.normalize(embedding, dim=1, eps=SHORTEST)
        place = (unit - self.mean) @ self.whitening
        squares = (place[:, None] - self.class_means[None]).square().mean(dim=2)
        return squares.min(dim=1).values.sqrt()
