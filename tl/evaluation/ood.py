"""Fit the out-of-distribution score: the distance of an embedding to the classes of the training images, and its limit.

Works on embeddings and class ids, independently of models and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.features import unit_length
from tl.data.splits import find_folds
from tl.runtime.ensembles.selective import conformal_limit
from tl.runtime.model_file.contract import OodFacts

# Images of each kind: more add no information and make fitting slower.
MAX_KNOWN = 2000
# The directions of a larger embedding, such as a flattened map, would be larger than the backbone.
MAX_EMBEDDING = 8192
# Share of the mean embedding that is subtracted, share of the shrinkage target in the covariance, and number of
# directions in which the covariance differs from the target. Source: `benchmarks/ood.py`; 0.7 to 0.9, 0.9 to 0.98 and
# 16 to 128 give nearly the same.
_CENTERED, _SHRUNK, _DIRECTIONS = 0.75, 0.95, 32
_FOLDS = 10
# Rounding differences between machines, relative to the largest value, and the score change accepted for them.
_ROUNDING, _STEADY = 1e-6, 5e-5


@dataclass(frozen=True)
class Known:
    """Embeddings (n, D) of training images, and their classes (n,).

    `held_out`: embeddings (m, D) of images that set the limit, by statistics of the training images. None to cross-fit,
    for a trunk that was not trained on any of these images: each sets the limit by the statistics of the others.
    `held_out_ids`: classes (m,) of `held_out`, if the final statistics are to include these images too. `hashes`,
    `groups`: of the training images; equal ones stay in one fold.
    """

    embeddings: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    hashes: Sequence[str] = ()
    groups: Sequence[str] = ()
    held_out: NDArray[np.float32] | None = None
    held_out_ids: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class OodFit:
    """Parameters of the score, float32: `center` (D,), `directions` (D, K), `templates` (D, C), `offsets` (C,).

    The score is the Mahalanobis distance to the nearest class mean, with a covariance that the classes share, of
    embeddings that were scaled to unit length before and after `center` was subtracted. The covariance is shrunk
    towards a multiple of the identity, so that it covers all D dimensions: images unlike the training images differ in
    those in which training images do not. The score is scaled so that this multiple is 1.

    Source: Lee et al. 2018 (shared covariance); Mueller & Hein 2025 (unit length); Wang et al. 2019, SimpleShot
    (centered before scaling); Ledoit & Wolf 2004 (shrinkage target).
    """

    center: NDArray[np.float32]
    directions: NDArray[np.float32]
    templates: NDArray[np.float32]
    offsets: NDArray[np.float32]

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map embeddings (N, D) to distances (N,); in float32, like the graph."""
        unit = unit_length(unit_length(embeddings) - self.center)
        along = unit @ self.directions
        length = np.square(unit).sum(axis=1) - np.square(along).sum(axis=1)
        squares = length + (self.offsets - 2 * (unit @ self.templates)).min(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float32)


def fit_ood(embeddings: NDArray[np.float32], class_ids: NDArray[np.int64], num_classes: int) -> OodFit:
    """Fit the score to embeddings (n, D) of images of all classes, ids (n,)."""
    from sklearn.utils.extmath import randomized_svd

    unit = unit_length(embeddings.astype(np.float64))
    center = _CENTERED * unit.mean(axis=0)
    unit = unit_length(unit - center)
    means = np.stack([unit[class_ids == c].mean(axis=0) for c in range(num_classes)])
    within = unit - means[class_ids]
    freedom = max(1, len(unit) - num_classes)
    kept = min(_DIRECTIONS, freedom, *within.shape)
    _, scales, directions = randomized_svd(within, kept, random_state=0)
    target = _SHRUNK * np.square(within).sum() / freedom / unit.shape[1]
    # Along a direction, a squared distance counts target / (target + own variance), so this share of it is taken away.
    own = (1 - _SHRUNK) * np.square(scales) / freedom
    shares = own / np.maximum(own + target, np.finfo(float).tiny)
    scaled = directions.T * np.sqrt(shares)
    along = means @ scaled
    templates = means.T - scaled @ along.T
    offsets = np.square(means).sum(axis=1) - np.square(along).sum(axis=1)
    return OodFit(*(np.ascontiguousarray(values, np.float32) for values in (center, scaled, templates, offsets)))


def measure_ood(known: Known, num_classes: int, false_alarm: float) -> tuple[OodFit, OodFacts] | str:
    """Fit the score, and set its limit so that a `false_alarm` share of held-out images exceeds it.

    Returns the reason if that is not possible.
    """
    counts = np.bincount(known.class_ids, minlength=num_classes)
    if counts.min() < 2:
        return "a class has fewer than two training images"
    if known.embeddings.shape[1] > MAX_EMBEDDING:
        return f"the embedding has more than {MAX_EMBEDDING} values"
    fit = fit_ood(known.embeddings, known.class_ids, num_classes)
    held_out = known.embeddings if known.held_out is None else known.held_out
    scores = _cross_fitted(known, num_classes) if known.held_out is None else fit.scores(held_out).astype(np.float64)
    if len(scores) < (least := math.ceil(1 / false_alarm - 1e-9) - 1):
        return f"its limit requires at least {least} images that were not used to fit it, found {len(scores)}"
    if not np.abs(fit.scores(_shake(held_out)) - fit.scores(held_out)).max() < _STEADY:
        return "the embeddings of all images are nearly equal"
    limit = conformal_limit(scores.tolist(), 1 - false_alarm)
    count = len(known.embeddings)
    if known.held_out_ids is not None:
        every = np.concatenate([known.embeddings, held_out]), np.concatenate([known.class_ids, known.held_out_ids])
        fit, count = fit_ood(*every, num_classes), count + len(held_out)
    facts = OodFacts(count, fit.directions.shape[1], limit, float((scores > limit).mean()), len(scores))
    return fit, facts


def _cross_fitted(known: Known, num_classes: int) -> NDArray[np.float64]:
    """Scores of the training images, each by the statistics of the other folds; none if there are no two folds."""
    embeddings, ids, count = known.embeddings, known.class_ids, len(known.class_ids)
    hashes, groups = known.hashes or [str(i) for i in range(count)], known.groups or [""] * count
    folds = find_folds(ids, hashes, groups, _FOLDS, seed=0)
    if folds is None:
        return np.empty(0)
    scores = np.empty(count)
    for rest, held in folds:
        scores[held] = fit_ood(embeddings[rest], ids[rest], num_classes).scores(embeddings[held])
    return scores


def _shake(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Perturb the embeddings as rounding on another machine might."""
    noise = np.random.default_rng(0).choice((-_ROUNDING, _ROUNDING), embeddings.shape)
    return np.asarray(embeddings + noise * np.abs(embeddings).max(axis=1, keepdims=True), np.float32)
