"""Classification metrics from labels and probabilities. Depends on numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15
# The JSON object of `metrics.json`, or of one split in it: figures by name, some of them objects or lists themselves.
Metrics = dict[str, Any]


def classification_metrics(
    true_ids: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    class_names: tuple[str, ...],
    label_ids: NDArray[np.int64] | None = None,
    groups: Sequence[str] = (),
) -> Metrics:
    """The metrics of `metrics.json` and `tl evaluate --json`.

    `true_ids` int64 (N,); `probabilities` float32 (N, C); `label_ids` int64 (N,) decided labels, None for argmax;
    `groups` (N,): images of the same specimen or video, '' for none. Returns n; top1_accuracy with its 95% interval
    ci_low and ci_high (Wilson) and boot_low and boot_high (bootstrap); top5_accuracy for more than five classes;
    macro_f1 with its bootstrap interval; ece; per_class precision, recall, f1 and n; confusion, a list of rows by true
    class. With groups also groups, their number; the bootstrap then draws whole groups (Field & Welsh 2007). Raises
    ValueError without images.
    """
    if len(true_ids) == 0:
        raise ValueError("no images to evaluate")
    decided = probabilities.argmax(axis=1) if label_ids is None else label_ids
    correct = decided == true_ids
    confusion = confusion_matrix(true_ids, decided, len(class_names))
    low, high = accuracy_interval(correct, groups)
    clusters = cluster_ids(groups, len(true_ids))
    num_groups = int(clusters.max()) + 1
    bootstrap = _bootstrap(true_ids, decided, len(class_names), clusters)
    confidence = np.take_along_axis(probabilities, decided[:, None], axis=1)[:, 0]
    top5 = {"top5_accuracy": top_k_accuracy(true_ids, probabilities, 5)} if len(class_names) > 5 else {}
    return {
        "n": len(true_ids),
        "top1_accuracy": float(correct.mean()),
        "ci_low": low,
        "ci_high": high,
        **({"groups": num_groups} if num_groups < len(correct) else {}),
        **top5,
        "macro_f1": macro_f1(true_ids, decided, len(class_names)),
        "ece": expected_calibration_error(correct, confidence),
        **bootstrap,
        "per_class": _per_class(confusion, class_names),
        "confusion": confusion.tolist(),
    }


def confusion_matrix(true_ids: NDArray[np.int64], decided: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count pairs, int64 (C, C): rows are true classes, columns are decided classes."""
    return np.bincount(true_ids * classes + decided, minlength=classes * classes).reshape(classes, classes)


def top_k_accuracy(true_ids: NDArray[np.int64], probabilities: NDArray[np.float32], k: int) -> float:
    """Fraction of images whose true class is among the `k` most probable; ties are resolved in class order."""
    found = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((found == true_ids[:, None]).any(axis=1).mean())


def macro_f1(true_ids: NDArray[np.int64], decided: NDArray[np.int64], classes: int) -> float:
    """Mean F1 over the classes that have images. Both int64 (N,)."""
    hits = np.bincount(true_ids[true_ids == decided], minlength=classes)
    true, found = np.bincount(true_ids, minlength=classes), np.bincount(decided, minlength=classes)
    present = true > 0
    return float((2 * hits[present] / (true + found)[present]).mean())


def wilson_interval(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95% by default; stays within [0, 1].

    Source: Wilson 1927; recommended for small n by Brown, Cai, DasGupta 2001.
    """
    share = successes / trials
    center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, center - half), min(1.0, center + half)


def accuracy_interval(correct: NDArray[np.bool_], groups: Sequence[str] = ()) -> tuple[float, float]:
    """95% Wilson interval of the mean of `correct` (N,). `groups` (N,): as in `classification_metrics`.

    With groups, it counts only as many images as `effective_size` says.
    """
    independent = effective_size(correct, groups)
    return wilson_interval(float(correct.mean()) * independent, independent)


def effective_size(correct: NDArray[np.bool_], groups: Sequence[str] = ()) -> float:
    """How many independent images would have the variance of the mean of `correct` (N,), at least one per group.

    Source: Korn & Graubard 1998, the effective sample size of clustered proportions.
    """
    count, share = len(correct), float(correct.mean())
    num_groups = len(set(cluster_ids(groups, count).tolist()))
    if num_groups == count:
        return float(count)
    variance = variance_of_mean(correct.astype(np.float64), groups)
    return float(min(max(share * (1 - share) / variance, num_groups), count) if variance > 0 else num_groups)


def variance_of_mean(values: NDArray[np.float64], groups: Sequence[str] = ()) -> float:
    """Variance of the mean of `values` (N,), of which those of one group are not independent. NaN for a single group.

    Source: Liang & Zeger 1986, the cluster-robust variance.
    """
    sums = np.bincount(cluster_ids(groups, len(values)), weights=values - values.mean())
    if len(sums) < 2:
        return math.nan
    return float((sums**2).sum() / len(values) ** 2 * len(sums) / (len(sums) - 1))


def mcnemar_p(right: NDArray[np.bool_], other_right: NDArray[np.bool_]) -> float:
    """Exact two-sided McNemar test. Both bool (N,) over the same images.

    Returns the probability, if both are equally good, of a split at least as uneven of the images that only one of them
    gets right.

    Source: McNemar 1947; the exact form as in Dietterich 1998.
    """
    gained, lost = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    apart = gained + lost
    tail = sum(math.comb(apart, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**apart))


def expected_calibration_error(
    correct: NDArray[np.bool_], confidence: NDArray[np.float32], bins: int = ECE_BINS
) -> float:
    """Mean |accuracy - confidence| over equal-width confidence bins, weighted by image count.

    Source: Naeini et al. 2015; 15 bins as in Guo et al. 2017.
    """
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    total = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].astype(np.float64).mean())
    return float(total)


def cluster_ids(groups: Sequence[str], count: int) -> NDArray[np.int64]:
    """A number for each of `count` images, shared within a group; images without a group are alone."""
    names = [group or i for i, group in enumerate(groups or [""] * count)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _bootstrap(
    true_ids: NDArray[np.int64],
    decided: NDArray[np.int64],
    classes: int,
    clusters: NDArray[np.int64],
    draws: int = 1000,
) -> dict[str, float]:
    """95% percentile intervals of accuracy and macro F1 over resampled clusters of images. Deterministic.

    `clusters` int64 (N,): number of each image's cluster, from 0.

    Source: Efron 1979.
    """
    rng, count = np.random.default_rng(0), int(clusters.max()) + 1
    scores = []
    for _ in range(draws):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        drawn = np.repeat(np.arange(len(true_ids)), times[clusters])
        true, found = true_ids[drawn], decided[drawn]
        scores.append(((true == found).mean(), macro_f1(true, found, classes)))
    low, high = np.percentile(scores, (2.5, 97.5), axis=0).tolist()
    return {"boot_low": low[0], "boot_high": high[0], "macro_f1_boot_low": low[1], "macro_f1_boot_high": high[1]}


def _per_class(confusion: NDArray[np.int64], class_names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    scores = {}
    for class_id, name in enumerate(class_names):
        hits = int(confusion[class_id, class_id])
        true, found = int(confusion[class_id].sum()), int(confusion[:, class_id].sum())
        scores[name] = {
            "precision": hits / found if found else 0.0,
            "recall": hits / true if true else 0.0,
            "f1": 2 * hits / (true + found) if true + found else 0.0,
            "n": true,
        }
    return scores
