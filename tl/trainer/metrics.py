"""Figures of merit for classification, from labels and probabilities. Pure numpy, no torch.

Knows arrays. Does not know models or pictures.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15


def classification_metrics(
    true_ids: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    class_names: tuple[str, ...],
    label_ids: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """The metrics of `metrics.json` and `tl evaluate --json`.

    `true_ids` int64 (N,); `probabilities` float32 (N, C); `label_ids` int64 (N,) decided labels, None for argmax.
    Returns n, top1_accuracy with its 95% interval ci_low and ci_high, macro_f1, ece, and per_class precision, recall,
    f1 and n. Raises ValueError without pictures.
    """
    if len(true_ids) == 0:
        raise ValueError("no pictures to score")
    decided = probabilities.argmax(axis=1) if label_ids is None else label_ids
    correct = decided == true_ids
    low, high = wilson_interval(int(correct.sum()), len(correct))
    per_class = _per_class(true_ids, decided, class_names)
    present = [scores["f1"] for scores in per_class.values() if scores["n"] > 0]
    confidence = np.take_along_axis(probabilities, decided[:, None], axis=1)[:, 0]
    return {
        "n": len(true_ids),
        "top1_accuracy": float(correct.mean()),
        "ci_low": low,
        "ci_high": high,
        "macro_f1": float(np.mean(present)),
        "ece": expected_calibration_error(correct, confidence),
        "per_class": per_class,
    }


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95% by default; stays within [0, 1].

    Source: Wilson 1927; recommended for small n by Brown, Cai, DasGupta 2001.
    """
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(
    correct: NDArray[np.bool_], confidence: NDArray[np.float32], bins: int = ECE_BINS
) -> float:
    """Mean |accuracy - confidence| over equal-width confidence bins, weighted by their pictures.

    Source: Naeini et al. 2015; 15 bins as in Guo et al. 2017.
    """
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    total = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].astype(np.float64).mean())
    return float(total)


def _per_class(
    true_ids: NDArray[np.int64], decided: NDArray[np.int64], class_names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    scores = {}
    for class_id, name in enumerate(class_names):
        is_true, is_decided = true_ids == class_id, decided == class_id
        hits, true, found = int((is_true & is_decided).sum()), int(is_true.sum()), int(is_decided.sum())
        scores[name] = {
            "precision": hits / found if found else 0.0,
            "recall": hits / true if true else 0.0,
            "f1": 2 * hits / (true + found) if true + found else 0.0,
            "n": true,
        }
    return scores
