"""Fit a linear head to the features of the images labeled so far, again after every few labels.

Knows features and class ids, no images and no files. Depends on scikit-learn, never on torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.calibration import softmax
from tl.trainer.heads.solvers import LinearHead, feature_scale

C = 0.1


@dataclass(frozen=True)
class FittedHead:
    """A linear head on frozen features, and the temperature that its logits are divided by.

    `class_names`: index = class id. `c`: inverse strength of the L2 penalty, for features scaled by `feature_scale`.
    """

    head: LinearHead
    temperature: float
    class_names: tuple[str, ...]
    c: float

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features (N, D) -> probabilities float32 (N, C)."""
        return softmax(self.head.logits(features), self.temperature)


def fit_head(
    features: NDArray[np.float32],
    ids: NDArray[np.int64],
    class_names: tuple[str, ...],
    *,
    seed: int = 0,
    c: float | None = None,
) -> FittedHead:
    """Fit a head to features (n, D) and class ids (n,) with at least one image of each of two or more classes.

    `c`: None to choose it. Deterministic for a seed.
    """
    from sklearn.linear_model import LogisticRegression

    if len(class_names) < 2 or set(ids.tolist()) != set(range(len(class_names))):
        raise ValueError("a head requires two or more classes, each with a labeled image")
    mean, std = feature_scale(features, "logistic")
    scaled = ((features - mean) / std).astype(np.float32)
    used = C if c is None else c
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=used, max_iter=200).fit(scaled, ids)
    weight, bias = model.coef_ / std, model.intercept_ - (model.coef_ / std) @ mean
    if len(weight) == 1:
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    return FittedHead(LinearHead(weight, bias, used), 1.0, tuple(class_names), used)
