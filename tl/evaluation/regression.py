"""Regression metrics, and the evaluation of model files that predict numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.data.targets import numbers_of
from tl.errors import DataError
from tl.evaluation.metrics import Metrics, cluster_ids
from tl.progress import Progress
from tl.runtime.ensembles.regression import interval_width, merge_values
from tl.runtime.model_file.contract import RegressionFacts
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure, Regression

_BOOTSTRAP_ROUNDS = 1000


def regression_metrics(
    found: NDArray[np.floating],
    true: NDArray[np.floating],
    target_names: Sequence[str],
    *,
    baseline: NDArray[np.floating] | None = None,
    groups: Sequence[str] = (),
) -> Metrics:
    """The metrics of `metrics.json` and `tl evaluate --json` for numbers.

    `found`, `true`: (N, T); missing true numbers are NaN and are not counted. `baseline` (T,): a constant to compare
    with, the mean of the training images. `groups` (N,): images of the same specimen or video, '' for none.

    Returns n images; mae, rmse and r2, each the mean over the targets, as in scikit-learn; ci_low and ci_high, the 95%
    interval of mae (bootstrap over images, or over whole groups); baseline_mae of the constant; and per_target the same
    figures with n. r2 is None where all true numbers are equal. Raises ValueError without any true number.
    """
    errors = np.asarray(found, np.float64) - true
    known = ~np.isnan(errors)
    if not known.any():
        raise ValueError("no true numbers to evaluate against")
    per_target = {
        name: _scores(errors[has, t], true[has, t], None if baseline is None else float(baseline[t]))
        for t, (name, has) in enumerate(zip(target_names, known.T, strict=True))
        if has.any()
    }
    means: Metrics = {}
    for name in next(iter(per_target.values())).keys() - {"n"}:
        values = [value for scores in per_target.values() if (value := scores[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
    low, high = _interval(np.abs(errors), cluster_ids(groups, len(errors)))
    mae = means.pop("mae")
    count = int(known.any(axis=1).sum())
    kept: Metrics = {name: means[name] for name in ("rmse", "r2", "baseline_mae") if name in means}
    return {"n": count, "mae": mae, "ci_low": low, "ci_high": high, **kept, "per_target": per_target}


def _scores(errors: NDArray[np.float64], true: NDArray[np.floating], baseline: float | None) -> dict[str, float | None]:
    spread = float(((true - true.mean()) ** 2).sum())
    scores: dict[str, float | None] = {
        "n": len(errors),
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "r2": 1 - float((errors**2).sum()) / spread if spread > 0 else None,
    }
    return scores if baseline is None else {**scores, "baseline_mae": float(np.abs(true - baseline).mean())}


def _interval(errors: NDArray[np.float64], clusters: NDArray[np.int64]) -> tuple[float, float]:
    """95% interval of the mean over targets of the mean absolute error. Draws whole clusters."""
    rng, count = np.random.default_rng(0), int(clusters.max()) + 1
    sums, counts = np.zeros((count, errors.shape[1])), np.zeros((count, errors.shape[1]))
    np.add.at(sums, clusters, np.nan_to_num(errors))
    np.add.at(counts, clusters, ~np.isnan(errors))
    drawn = rng.integers(0, count, (_BOOTSTRAP_ROUNDS, count))
    total, known = sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)
    means = np.where(known > 0, total / np.maximum(known, 1), np.nan)
    low, high = np.nanpercentile(means[:, known.any(axis=0)].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


_COLUMNS = ("model", "merging", "n", "mae", "ci_low", "ci_high", "rmse", "r2", "coverage_90")
# The coverage of intervals that an evaluation checks.
_COVERAGE = 0.9


@dataclass(frozen=True)
class NumberEvaluation:
    """`rows`: metrics of each model and of the merged numbers. `worst`: (path, error) of the largest errors first, in
    standard deviations of the training images.
    """

    rows: list[dict[str, Any]]
    failures: list[Failure]
    worst: list[tuple[str, float]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of `rows` that become columns."""
        return tuple(column for column in _COLUMNS if column in self.rows[0])


def evaluate_numbers(
    predictor: Predictor[Regression], images: Sequence[LabeledImage], progress: Progress
) -> NumberEvaluation:
    """Predict every image once, and score the readable images. Their labels are numbers, as `read_numbers_of` gives.

    Also gives coverage_90, the share of true numbers in the intervals for 90%, of a single model with enough held-out
    images. Raises `DataError` if no image is readable.
    """
    progress.start("evaluating", len(images), "images")
    found: list[Regression] = []
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
    contract = predictor.ensemble.sessions[0].contract
    if contract is None or contract.regression is None:
        raise ValueError("the first model predicts no numbers")
    facts = contract.regression
    true = numbers_of([images[place] for place in places], len(facts.target_names))
    groups = [images[place].group for place in places]
    merged = np.stack([result.values for result in found])

    def row(model: str, merging: str, values: NDArray[np.float32]) -> dict[str, Any]:
        scores = regression_metrics(values, true, facts.target_names, groups=groups)
        return {"model": model, "merging": merging, **scores}

    if not predictor.with_votes:
        rows = [{**row(predictor.member_names[0], "", merged), **_coverage(merged, true, facts)}]
    else:
        members = np.stack([result.members for result in found if result.members is not None])
        settings = predictor.ensemble.key
        rows = [row(name, "", members[:, m]) for m, name in enumerate(predictor.member_names)]
        rows += [row("ensemble", "mean", merge_values(members, "mean", settings["weights"]))]
        rows += [row("ensemble", "median", merge_values(members, "median"))]
    errors = np.nan_to_num(np.abs(merged - true) / np.array(facts.std)).max(axis=1)
    worst = [(found[n].path, float(errors[n])) for n in np.argsort(-errors, kind="stable").tolist()]
    return NumberEvaluation(rows, failures, worst)


def _coverage(values: NDArray[np.float32], true: NDArray[np.float64], facts: RegressionFacts) -> dict[str, float]:
    widths = np.array([interval_width(scores, _COVERAGE) for scores in facts.scores])
    known = ~np.isnan(true)
    if not np.isfinite(widths).all() or not known.any():
        return {}
    return {"coverage_90": float((np.abs(values - true) <= widths)[known].mean())}
