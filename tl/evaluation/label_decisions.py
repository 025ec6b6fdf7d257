"""What turns the logits of several labels into decisions: temperatures, thresholds, and the curve of missed labels.

All are fitted to held-out images: labels float (N, C) are 1, 0 or NaN where unknown. Depends on numpy and scipy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.calibration import MAX_SCORES, fit_useful_temperature
from tl.runtime.model_file.label_facts import RiskCurve

# Fewer images than this with, or without, a label share a temperature with the other labels.
_SCARCE = 20
_FOLDS = 5


def fit_temperatures(logits: NDArray[np.floating], labels: NDArray[np.floating]) -> tuple[float, ...]:
    """A temperature for each label that divides its logits (N, C); 1 where none lowers the loss of other images.

    Labels that few images have, or that few lack, share one temperature, fitted to all decisions together.
    """
    known = ~np.isnan(labels)
    shared = None
    found = []
    for logit, label, has in zip(logits.T, labels.T, known.T, strict=True):
        if min((label == 1).sum(), (label == 0).sum()) >= _SCARCE:
            found.append(_temperature(logit[has], label[has]))
            continue
        shared = _temperature(logits[known], labels[known]) if shared is None else shared
        found.append(shared)
    return tuple(found)


def _temperature(logits: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    """Of logits and labels (n,). The sigmoid of z is the softmax of (0, z)."""
    return fit_useful_temperature(np.stack([np.zeros_like(logits), logits], axis=1), labels.astype(np.int64))


def fit_thresholds(
    probabilities: NDArray[np.floating], labels: NDArray[np.floating], min_precision: float | None = None
) -> tuple[float, ...]:
    """The threshold of each label, from probabilities (N, C): the one with the highest F1, or with `min_precision` the
    lowest one that reaches this precision. Where none does, the one with the highest precision.

    Thresholds lie halfway between two probabilities. Of equally good ones the highest counts. A label that no image has
    gets 0.5.

    Source: Lipton, Elkan & Naryanaswamy 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure".
    """
    thresholds = []
    for column, label in zip(np.asarray(probabilities, np.float64).T, labels.T, strict=True):
        known = ~np.isnan(label)
        thresholds.append(_threshold(column[known], label[known] == 1, min_precision))
    return tuple(thresholds)


def _threshold(probabilities: NDArray[np.float64], present: NDArray[np.bool_], min_precision: float | None) -> float:
    if not present.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(present[order])
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # equal probabilities are decided together
    count, right = ends + 1, hits[ends]
    precision, f1 = right / count, 2 * right / (count + present.sum())
    if min_precision is None:
        best = int(f1.argmax())
    elif (reached := np.flatnonzero(precision >= min_precision)).size:
        best = int(reached[-1])
    else:
        best = int(np.flatnonzero(precision == precision.max())[-1])
    last = ends[best]
    return float(ranked[last] / 2 if last + 1 == len(ranked) else (ranked[last] + ranked[last + 1]) / 2)


def held_out_decisions(probabilities: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which labels the images have (N, C) by thresholds that were each fitted to other images, of four fifths."""
    fold = np.random.default_rng(0).permutation(len(labels)) % _FOLDS
    decided = np.zeros(labels.shape, bool)
    for k in range(_FOLDS):
        held = fold == k
        thresholds = fit_thresholds(probabilities[~held], labels[~held]) if held.any() else ()
        if held.any():
            decided[held] = probabilities[held] >= np.array(thresholds)
    return decided


def build_risk_curve(
    probabilities: NDArray[np.floating], labels: NDArray[np.floating], source: str
) -> RiskCurve | None:
    """How many of an image's known labels a threshold misses, from probabilities (N, C) of held-out images; None if no
    image has a label. Images without a label, which no set can miss, do not count.
    """
    present = labels == 1
    has_any = present.any(axis=1)
    if not has_any.any():
        return None
    shares = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
    found, weights = np.asarray(probabilities, np.float64)[present], shares[present]
    order = np.argsort(found, kind="stable")
    thresholds, first = np.unique(found[order], return_index=True)
    missed = np.concatenate([[0.0], np.cumsum(weights[order])])[first] / has_any.sum()
    if len(thresholds) > MAX_SCORES:
        kept = np.unique(np.linspace(0, len(thresholds) - 1, MAX_SCORES).round().astype(int))
        thresholds, missed = thresholds[kept], missed[kept]
    return RiskCurve(tuple(thresholds.tolist()), tuple(missed.tolist()), int(has_any.sum()), source)
