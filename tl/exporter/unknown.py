"""How unlike the training pictures a picture is: a distance between embeddings, inside the graph as `unknown_score`.

Knows embeddings and labels. Does not read pictures or know runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.runtime.caution import conformal_limit
from tl.runtime.contract import UnknownFacts

MAX_DIMENSIONS = 256
# A larger embedding, such as a flattened map, would make its projection larger than the backbone.
MAX_EMBEDDING = 8192
# Of an embedding of length 1 in any direction; those of MobileNetV2 have 0.0003 and more. With less, the distance would
# be made of rounding.
_LEAST_VARIANCE = 3e-5
# What other machines' sums differ by, as a share of the largest value, and what a score may change by for it.
_ROUNDING, _STEADY = 1e-6, 5e-5


@dataclass(frozen=True)
class Known:
    """What is known: embeddings of training pictures (n, D), their classes (n,), and embeddings of validation ones."""

    embeddings: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    held_out: NDArray[np.float32]


class UnknownScore(nn.Module):
    """Embeddings (N, D) -> distance of each to the nearest class's mean, (N,), about 1 for a picture of training.

    Embeddings are brought to length 1, projected to their principal components and measured by the covariance that
    classes share. Source: Lee et al. 2018 (Mahalanobis distance); Mueller & Hein 2025 (length 1).
    """

    mean: Tensor
    whitening: Tensor
    class_means: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor, class_means: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)  # (D,)
        self.register_buffer("whitening", whitening)  # (D, K), K components of variance 1 within classes
        self.register_buffer("class_means", class_means)  # (C, K)

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, D) -> (N,)."""
        place = (_to_length_one(embedding) - self.mean) @ self.whitening
        squares = (place[:, None] - self.class_means[None]).square().mean(dim=2)
        return squares.min(dim=1).values.sqrt()


def fit_unknown(known: Known, num_classes: int, false_alarm: float) -> tuple[UnknownScore, UnknownFacts] | None:
    """Measure classes, and set the limit on held-out pictures. None where that cannot be done: too few pictures,
    an embedding that is too large, or one whose differences are hardly more than rounding.
    """
    counts = np.bincount(known.class_ids, minlength=num_classes)
    wide = known.embeddings.shape[1]
    if counts.min() < 2 or wide > MAX_EMBEDDING or not len(known.held_out):
        return None
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    tensors = torch.from_numpy(known.embeddings).double()
    unit = _to_length_one(tensors).numpy()
    # Half as many components as pictures tell of classes: with more, the covariance is mostly guessed.
    size = int(min(MAX_DIMENSIONS, wide, max(1, (len(unit) - num_classes) // 2)))
    projection = PCA(size, random_state=0).fit(unit)
    places = projection.transform(unit)
    means = np.stack([places[known.class_ids == c].mean(axis=0) for c in range(num_classes)])
    covariance = LedoitWolf(assume_centered=True).fit(places - means[known.class_ids]).covariance_
    factor = np.linalg.cholesky(np.linalg.inv(covariance + _LEAST_VARIANCE * np.eye(size)))
    score = UnknownScore(
        *(
            torch.from_numpy(np.ascontiguousarray(values, np.float32))
            for values in (projection.mean_, projection.components_.T @ factor, means @ factor)
        )
    )
    with torch.no_grad():
        scores = score(torch.from_numpy(known.held_out)).double().numpy()
        shaken = score(torch.from_numpy(_shake(known.held_out))).double().numpy()
    if not np.abs(shaken - scores).max() < _STEADY:
        return None
    limit = conformal_limit(scores.tolist(), 1 - false_alarm)
    limit = float(scores.max()) if limit == np.inf else limit
    facts = UnknownFacts(len(unit), size, limit, float((scores > limit).mean()), len(scores))
    return score, facts


def _shake(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same as another machine may round them."""
    noise = np.random.default_rng(0).choice((-_ROUNDING, _ROUNDING), embeddings.shape)
    return np.asarray(embeddings + noise * np.abs(embeddings).max(axis=1, keepdims=True), np.float32)


def _to_length_one(embedding: Tensor) -> Tensor:
    return nn.functional.normalize(embedding, dim=1)


def class_ids_of(labels: Sequence[str], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Labels -> places in `class_names`."""
    return np.array([class_names.index(label) for label in labels], np.int64)
