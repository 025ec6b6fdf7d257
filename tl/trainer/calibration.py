"""Temperature scaling: one number that makes probabilities as sure as they deserve, fitted on validation data.

Knows logits and labels. Does not know models. Pure numpy and scipy.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LOG_RANGE = (math.log(1e-3), math.log(1e3))


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Logits (N, C) -> probabilities float32 (N, C)."""
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def fit_temperature(logits: NDArray[np.floating], true_ids: NDArray[np.int64]) -> float:
    """The temperature with the least cross-entropy. `logits` (N, C), `true_ids` int64 (N,).

    Targets are (N + 1) / (N + 2) for the true class, the rest spread over the others: without that, a validation set
    without a mistake would ask for absolute certainty.

    Source: Guo et al. 2017 for the temperature, Platt 1999 for the targets.
    """
    from scipy.optimize import minimize_scalar

    count, classes = logits.shape
    values = logits.astype(np.float64)
    targets = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), true_ids] = (count + 1) / (count + 2)

    def cross_entropy(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        log_shares = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return float(-(targets * log_shares).sum(axis=1).mean())

    return math.exp(minimize_scalar(cross_entropy, bounds=_LOG_RANGE, method="bounded").x)
