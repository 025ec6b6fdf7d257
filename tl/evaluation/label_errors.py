"""Find labels that held-out predictions contradict: confident learning, in numpy.

Works on probabilities and class ids, independently of models and images.

Source: Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of
Artificial Intelligence Research 70, 1373-1411.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Rounding of probabilities must not decide whether one reaches the threshold of its class.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LabelErrors:
    """The labels that are probably wrong. N images, C classes.

    `ranked` intp (K,): places of these labels, most doubtful first. `quality` float64 (N,): the label quality of every
    image, 0 to 1, low for a doubtful label. `suggested` int64 (N,): the most probable class of every image.
    `noise_rate`: estimated share of wrong labels.
    """

    ranked: NDArray[np.intp]
    quality: NDArray[np.float64]
    suggested: NDArray[np.int64]
    noise_rate: float


def find_label_errors(probabilities: NDArray[np.floating], ids: NDArray[np.int64]) -> LabelErrors:
    """Find wrong labels by held-out `probabilities` (N, C) and the given labels `ids` int64 (N,).

    The confident joint estimates how many of the images labeled as a class are wrong. As many of them, those whose
    label is the least probable, are named ("prune by class"), unless their label is the most probable class. They are
    ranked by `self_confidence`. benchmarks/RESULTS.md, "Wrong labels", has other rankings and ways to prune.
    Raises ValueError for probabilities that are not finite, or ids that are no classes.
    """
    _check(probabilities, ids)
    values = probabilities.astype(np.float64)
    joint = calibrated_joint(confident_joint(values, ids), ids)
    suggested = values.argmax(axis=1)
    quality = self_confidence(values, ids)
    named = _prune_by_class(quality, ids, joint) & (suggested != ids)
    places = np.flatnonzero(named)
    ranked = places[np.argsort(quality[places], kind="stable")]
    noise_rate = 1 - float(np.trace(joint)) / len(ids) if len(ids) else 0.0
    return LabelErrors(ranked, quality, suggested, noise_rate)


def class_thresholds(probabilities: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean probability of each class (C,) over the images labeled as that class; infinite for a class without any.

    An image counts as one of a class from this probability on, so that classes that a model is unsure of are not at a
    disadvantage (equation 2 of the source).
    """
    counts = np.bincount(ids, minlength=probabilities.shape[1])
    sums = np.bincount(ids, weights=self_confidence(probabilities, ids), minlength=probabilities.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def confident_joint(probabilities: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts (C, C) of images by their label and the class that they confidently belong to.

    That is the most probable one of the classes whose threshold the image reaches; images that reach none are not
    counted (equation 1 of the source).
    """
    classes = probabilities.shape[1]
    reached = probabilities >= class_thresholds(probabilities, ids) - _ROUNDING
    likely = np.where(reached, probabilities, -1.0).argmax(axis=1)
    counted = reached.any(axis=1)
    pairs = ids[counted] * classes + likely[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def calibrated_joint(joint: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The confident joint (C, C), each row scaled to the number of images with that label (equation 3 of the source).

    A row without counts is taken to be free of errors.
    """
    shares = joint.astype(np.float64)
    empty = shares.sum(axis=1) == 0
    shares[empty, empty] = 1.0
    counts = np.bincount(ids, minlength=len(joint))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True) * counts[:, None])


def self_confidence(probabilities: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability of each image's label (N,)."""
    return probabilities[np.arange(len(ids)), ids].astype(np.float64)


def normalized_margin(probabilities: NDArray[np.floating], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability of each image's label minus that of the most probable other class (N,), scaled to 0 to 1."""
    others = probabilities.astype(np.float64)
    others[np.arange(len(ids)), ids] = -np.inf
    return np.asarray((self_confidence(probabilities, ids) - others.max(axis=1) + 1) / 2)


def _prune_by_class(
    quality: NDArray[np.float64], ids: NDArray[np.int64], joint: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """For each label, mark as many images of the lowest quality as the joint expects to be wrong (section 3.2)."""
    named = np.zeros(len(ids), np.bool_)
    counts = np.rint(joint.sum(axis=1) - joint.diagonal()).astype(int)
    for given, count in enumerate(counts.tolist()):
        places = np.flatnonzero(ids == given)
        named[places[np.argsort(quality[places], kind="stable")[:count]]] = True
    return named


def _check(probabilities: NDArray[np.floating], ids: NDArray[np.int64]) -> None:
    if probabilities.ndim != 2 or ids.shape != probabilities.shape[:1] or probabilities.shape[1] < 2:
        shapes = f"{probabilities.shape} and {ids.shape}"
        raise ValueError(f"expected probabilities (N, C) of two or more classes and ids (N,), found {shapes}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    if len(ids) and not (ids.min() >= 0 and ids.max() < probabilities.shape[1]):
        raise ValueError(f"ids must be 0 to {probabilities.shape[1] - 1}, found {ids.min()} to {ids.max()}")
