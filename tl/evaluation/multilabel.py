"""Metrics of several labels, and the evaluation of model files that give them. Depends on numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.data.label_sets import label_matrix
from tl.data.manifests import LabeledImage
from tl.errors import DataError
from tl.evaluation.metrics import Metrics, cluster_ids, expected_calibration_error
from tl.progress import Progress
from tl.runtime.ensembles.multilabel import MultilabelEnsemble
from tl.runtime.model_file.label_facts import set_threshold
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure, Multilabel

_BOOTSTRAP_ROUNDS = 1000
_INTERVAL = (2.5, 97.5)


def sigmoid(logits: NDArray[np.floating], temperatures: Sequence[float] = (1.0,)) -> NDArray[np.float32]:
    """Convert logits (N, C) to probabilities float32 (N, C), each by itself."""
    scaled = np.asarray(logits, np.float64) / np.array(temperatures)
    return np.asarray(np.exp(-np.logaddexp(0, -scaled)), np.float32)


def average_precision(
    probabilities: NDArray[np.floating], present: NDArray[np.bool_], times: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Average precision of one label: sum of the gains in recall, each times the precision there. NaN without presence.

    `probabilities` and `present` (N,). `times` (R, N): how often each image counts, in R rounds; None for once. Returns
    (R,). Source: scikit-learn's average_precision_score.
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, present = probabilities[order], present[order]
    counted = np.ones((1, len(order))) if times is None else times[:, order]
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # equal probabilities are ranked together
    hits, seen = (np.cumsum(each, axis=1)[:, ends] for each in (counted * present, counted))
    gains = np.diff(hits, axis=1, prepend=0)
    total = hits[:, -1]
    scores = (gains * hits / np.maximum(seen, 1)).sum(axis=1) / np.maximum(total, 1)
    return np.where(total > 0, scores, np.nan)


def precision_recall(
    probabilities: NDArray[np.floating], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall of one label at each of its probabilities (K,), the highest first."""
    order = np.argsort(-probabilities, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(probabilities[order]) < 0, True))
    hits = np.cumsum(present[order])[ends]
    return hits / (ends + 1), hits / max(int(present.sum()), 1)


def f1_scores(decided: NDArray[np.bool_], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """F1 of each label (C,) from decisions and labels (N, C); 0 where there is neither."""
    right = (decided & (labels == 1)).sum(axis=0)
    both = (decided & ~np.isnan(labels)).sum(axis=0) + (labels == 1).sum(axis=0)
    return np.asarray(2 * right / np.maximum(both, 1))


def multilabel_metrics(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.floating],
    decided: NDArray[np.bool_],
    class_names: Sequence[str],
    groups: Sequence[str] = (),
) -> Metrics:
    """The metrics of `metrics.json` and `tl evaluate --json` for several labels.

    `probabilities`, `labels` (N, C): unknown labels are NaN and are not counted. `decided` bool (N, C): the labels that
    the images are given. `groups` (N,): images of the same specimen or video, '' for none.

    Returns n images; map, the mean average precision, with ci_low and ci_high (95%, bootstrap over images or whole
    groups); macro_f1 with macro_f1_boot_low and macro_f1_boot_high; micro_f1; subset_accuracy, the share of images of
    which every known label is right; hamming_loss, the share of wrong decisions; ece of all decisions; per_class the
    average precision, precision, recall, f1 and n, the images that have it. Means are over labels that an image has.
    Raises ValueError without a known label.
    """
    known, present = ~np.isnan(labels), labels == 1
    if not known.any():
        raise ValueError("no known labels to evaluate against")
    per_class = {
        name: _scores(probabilities[has, c], present[has, c], decided[has, c])
        for c, (name, has) in enumerate(zip(class_names, known.T, strict=True))
    }
    counted = [scores for scores in per_class.values() if scores["n"]]
    right = (decided & present).sum()
    total = (decided & known).sum() + present.sum()
    is_wrong = (decided != present) & known
    return {
        "n": len(labels),
        "map": _mean([scores["average_precision"] for scores in counted]),
        "macro_f1": _mean([scores["f1"] for scores in counted]),
        "micro_f1": float(2 * right / max(total, 1)),
        "subset_accuracy": float((~is_wrong.any(axis=1))[known.any(axis=1)].mean()),
        "hamming_loss": float(is_wrong.sum() / known.sum()),
        "ece": expected_calibration_error(present[known], np.asarray(probabilities, np.float32)[known]),
        **_intervals(probabilities, labels, decided, cluster_ids(groups, len(labels))),
        "per_class": per_class,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _scores(
    probabilities: NDArray[np.floating], present: NDArray[np.bool_], decided: NDArray[np.bool_]
) -> dict[str, float]:
    right, found, true = int((decided & present).sum()), int(decided.sum()), int(present.sum())
    return {
        "average_precision": float(average_precision(probabilities, present)[0]) if true else 0.0,
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (true + found) if true + found else 0.0,
        "n": true,
    }


def _intervals(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.floating],
    decided: NDArray[np.bool_],
    clusters: NDArray[np.int64],
) -> dict[str, float]:
    """95% percentile intervals of mAP and macro F1 over resampled clusters of images. Deterministic."""
    count = int(clusters.max()) + 1
    drawn = np.random.default_rng(0).integers(0, count, (_BOOTSTRAP_ROUNDS, count))
    times = np.stack([np.bincount(draw, minlength=count) for draw in drawn])[:, clusters].astype(np.float64)
    precisions, f1s = [], []
    for column, label, found in zip(probabilities.T, labels.T, decided.T, strict=True):
        has = ~np.isnan(label)
        own, present, given = times[:, has], label[has] == 1, found[has]
        true = own @ present
        f1 = 2 * (own @ (present & given)) / np.maximum(true + own @ given, 1)
        precisions.append(average_precision(column[has], present, own) if has.any() else np.full(len(own), np.nan))
        f1s.append(np.where(true > 0, f1, np.nan))
    ends = {"ci": np.array(precisions), "macro_f1_boot": np.array(f1s)}
    result: dict[str, float] = {}
    for name, rounds in ends.items():
        usable = rounds[:, ~np.isnan(rounds).all(axis=0)]
        low, high = np.percentile(np.nanmean(usable, axis=0), _INTERVAL) if usable.size else (math.nan, math.nan)
        result |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def missed_share(found: NDArray[np.bool_], labels: NDArray[np.floating]) -> float:
    """The mean share of an image's labels that is not `found`, both (N, C); of images that have a label."""
    present = labels == 1
    has_any = present.any(axis=1)
    missed = (present & ~found).sum(axis=1)[has_any] / present.sum(axis=1)[has_any]
    return float(missed.mean()) if has_any.any() else math.nan


_COLUMNS = (
    *("model", "voting", "n", "map", "ci_low", "ci_high", "macro_f1", "micro_f1", "subset_accuracy", "hamming_loss"),
    *("ece", "coverage_90", "set_size_90"),
)
# The coverage of sets that an evaluation checks.
_COVERAGE = 0.9


@dataclass(frozen=True)
class LabelEvaluation:
    """`rows`: metrics of each model and of the ensemble. `worst`: (path, wrong decisions) of the most wrong first."""

    rows: list[dict[str, Any]]
    failures: list[Failure]
    worst: list[tuple[str, int]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of the rows that `tl evaluate` prints."""
        return tuple(name for name in _COLUMNS if name in self.rows[0])


def evaluate_labels(
    predictor: Predictor[Multilabel], images: Sequence[LabeledImage], progress: Progress
) -> LabelEvaluation:
    """Predict every image once, and score the readable images by the labels that they have.

    Also gives coverage_90 and set_size_90, of a single model with enough held-out images: the mean share of an image's
    labels in its set for a coverage of 90%, and the mean number of labels in these sets. Raises `DataError` if no image
    is readable.
    """
    ensemble = predictor.ensemble
    if not isinstance(ensemble, MultilabelEnsemble):
        raise ValueError("the predictor gives no labels")
    labels = label_matrix(images, ensemble.class_names)
    progress.start("evaluating", len(images), "images")
    found: list[Multilabel] = []
    places: list[int] = []
    failures: list[Failure] = []
    for place, result in enumerate(predictor.predict_iter([image.path for image in images])):
        progress.advance()
        if isinstance(result, Failure):
            failures.append(result)
        else:
            found.append(result)
            places.append(place)
    if not found:
        raise DataError(f"none of the {len(images)} images can be read, first: {failures[0].error}")
    true, groups = labels[places], [images[place].group for place in places]
    together = np.stack([result.probabilities for result in found])

    def row(model: str, voting: str, probabilities: NDArray[np.float32], thresholds: NDArray[Any]) -> dict[str, Any]:
        decided = probabilities >= thresholds
        scores = multilabel_metrics(probabilities, true, decided, ensemble.class_names, groups)
        return {"model": model, "voting": voting, **scores}

    if predictor.with_votes:
        members = np.stack([result.members for result in found if result.members is not None])
        own = zip(predictor.member_names, ensemble.member_thresholds, strict=True)
        rows = [row(name, "", members[:, m], thresholds) for m, (name, thresholds) in enumerate(own)]
        rows.append(row("ensemble", "soft", together, ensemble.thresholds))
    else:
        rows = [row(predictor.member_names[0], "", together, ensemble.thresholds) | _coverage(ensemble, together, true)]
    wrong = (((together >= ensemble.thresholds) != (true == 1)) & ~np.isnan(true)).sum(axis=1)
    worst = [(found[n].path, int(wrong[n])) for n in np.argsort(-wrong, kind="stable").tolist() if wrong[n]]
    return LabelEvaluation(rows, failures, worst)


def _coverage(
    ensemble: MultilabelEnsemble, probabilities: NDArray[np.float32], labels: NDArray[np.float64]
) -> dict[str, float]:
    curve = ensemble.facts[0].curve
    threshold = None if curve is None else set_threshold(curve, _COVERAGE)
    if threshold is None or not (labels == 1).any():
        return {}
    sets = probabilities >= threshold
    return {"coverage_90": 1 - missed_share(sets, labels), "set_size_90": float(sets.sum(axis=1).mean())}
