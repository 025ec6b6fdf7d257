"""Evaluate landmark models, single files and ensembles: errors in pixels and relative to centroid size and extent, PCK.

Contains no command line and no HTML pages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.data.class_folders import SPLITS
from tl.errors import DataError
from tl.evaluation.metrics import Metrics
from tl.progress import Progress
from tl.runtime.imaging.regions import Region, region_of_points
from tl.runtime.landmarks.ensemble import Merging, merge_points
from tl.runtime.landmarks.files import image_finder, read_landmarks
from tl.runtime.landmarks.sets import ImageLandmarks
from tl.runtime.landmarks.shapes import centroid_size
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure, Landmarks

# Fractions of the longer side of the box around an image's true points.
PCK_THRESHOLDS = (0.01, 0.02, 0.05, 0.1)
_BOOTSTRAP_ROUNDS = 1000


def landmark_metrics(
    found_xy: NDArray[np.floating],
    true_xy: NDArray[np.floating],
    keypoint_names: tuple[str, ...],
    input_per_photo: NDArray[np.floating] | None = None,
    mm_per_px: NDArray[np.floating] | None = None,
) -> Metrics:
    """The metrics of `metrics.json` and `tl evaluate --json` for landmarks.

    `found_xy`, `true_xy`: (N, K, 2) in photo pixels; missing true points are NaN and are not counted.
    `input_per_photo`: (N, 2), input pixels per photo pixel in x and y; None omits the metrics in input pixels.
    `mm_per_px`: (N,), NaN where unknown.

    Returns n images and `points`; `error_px`, the mean over points, with its 95% interval ci_low and ci_high
    (bootstrap over images); rmse_px, median_px; in input pixels error_input_px and mse_input_px, the mean squared
    error per coordinate; normalized_error, the mean of error over centroid size; extent_error, the mean of error over
    the extent of an image's true points, the longer side of the box around them; pck, the fraction of points with an
    error below a fraction of that extent; centroid_size_error, mean |relative error|; error_mm where a scale is known;
    and per_keypoint error_px, rmse_px and n. Raises ValueError without any true point.
    """
    errors = np.linalg.norm(np.asarray(found_xy, np.float64) - true_xy, axis=2)
    has = ~np.isnan(errors)
    relative = errors / _extents(true_xy)[:, None]
    if not has.any():
        raise ValueError("no annotated point to evaluate against")
    sizes = np.array([centroid_size(points) for points in true_xy])
    found_sizes = np.array(
        [centroid_size(np.where(np.isnan(true), np.nan, found)) for found, true in zip(found_xy, true_xy, strict=True)]
    )
    low, high = _bootstrap(errors)
    metrics: Metrics = {
        "n": int(has.any(axis=1).sum()),
        "points": int(has.sum()),
        "error_px": float(errors[has].mean()),
        "ci_low": low,
        "ci_high": high,
        "rmse_px": float(np.sqrt((errors[has] ** 2).mean())),
        "median_px": float(np.median(errors[has])),
        "normalized_error": _mean((errors / np.where(sizes > 0, sizes, np.nan)[:, None])[has]),
        "centroid_size_error": _mean(np.abs(found_sizes / np.where(sizes > 0, sizes, np.nan) - 1)),
        "extent_error": _mean(relative),
        "pck": _pck(relative),
        "per_keypoint": _per_keypoint(errors, keypoint_names),
    }
    if input_per_photo is not None:
        scaled = (np.asarray(found_xy, np.float64) - true_xy) * input_per_photo[:, None, :]
        metrics["error_input_px"] = float(np.linalg.norm(scaled, axis=2)[has].mean())
        metrics["mse_input_px"] = float((scaled[has] ** 2).mean())
    if mm_per_px is not None and not np.isnan(mm_per_px).all():
        metrics["error_mm"] = _mean((errors * mm_per_px[:, None])[has])
    return metrics


def _bootstrap(errors: NDArray[np.float64]) -> tuple[float, float]:
    """95% interval of the mean over points. Resamples whole images, because errors within an image are correlated."""
    rng = np.random.default_rng(0)
    sums, counts = np.nansum(errors, axis=1), (~np.isnan(errors)).sum(axis=1)
    means = []
    for _ in range(_BOOTSTRAP_ROUNDS):
        drawn = rng.integers(0, len(errors), len(errors))
        if counts[drawn].sum() > 0:
            means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _extents(true_xy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Longer side of the box around each image's points (N,); NaN for fewer than two distinct points."""
    high = np.where(np.isnan(true_xy), -np.inf, true_xy).max(axis=1)
    low = np.where(np.isnan(true_xy), np.inf, true_xy).min(axis=1)
    extents = (high - low).max(axis=1)
    return np.where(extents > 0, extents, np.nan)


def _pck(relative: NDArray[np.float64]) -> dict[str, float]:
    """Percentage of correct keypoints. Source: Yang & Ramanan 2013, normalized by the extent of the points."""
    known = relative[~np.isnan(relative)]
    return {f"{t:g}": float((known < t).mean()) for t in PCK_THRESHOLDS} if len(known) else {}


def _per_keypoint(errors: NDArray[np.float64], keypoint_names: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for k, name in enumerate(keypoint_names):
        own = errors[~np.isnan(errors[:, k]), k]
        found[name] = {
            "error_px": float(own.mean()) if len(own) else None,
            "rmse_px": float(np.sqrt((own**2).mean())) if len(own) else None,
            "n": len(own),
        }
    return found


def _mean(values: NDArray[np.floating]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


COLUMNS = (
    "model",
    "merging",
    "n",
    "points",
    "error_px",
    "ci_low",
    "ci_high",
    "rmse_px",
    "normalized_error",
    "extent_error",
)


@dataclass(frozen=True)
class PointEvaluation:
    """`rows`: metrics of each model and of the merged points. `worst`: images by mean error, in descending order."""

    rows: list[dict[str, Any]]
    failures: list[Failure]
    worst: list[tuple[str, float]]


@dataclass(frozen=True)
class AnnotatedImages:
    """Images to evaluate: the name of their split, their paths and landmarks, in one order."""

    split: str
    paths: tuple[str, ...]
    landmarks: tuple[ImageLandmarks, ...]
    keypoint_names: tuple[str, ...]
    remarks: tuple[str, ...]

    def boxes(self, region: Literal["whole", "box", "points"]) -> dict[str, Region] | None:
        """Map each path to the region that a model of `region` expects: the annotated or the true points' box."""
        if region == "whole":
            return None
        pairs = zip(self.paths, self.landmarks, strict=True)
        if region == "box":
            return {path: image.box_xywh for path, image in pairs if image.box_xywh is not None}
        return {
            path: region_of_points(image.keypoints_xy, 0.0)
            for path, image in pairs
            if not np.isnan(image.keypoints_xy).all()
        }


def read_split(
    data: str | os.PathLike[str],
    asked: str | None,
    images: str | os.PathLike[str] | None = None,
    label: str | None = None,
) -> AnnotatedImages:
    """Read the requested split of a landmark file; by default test, else val, else everything.

    `images`: as for `image_finder`. `label`: as for `read_landmarks`. Raises `DataError`.
    """
    landmarks = read_landmarks(data, images, label=label)
    find = image_finder(data, images)
    present = [split for split in SPLITS if any(image.split == split for image in landmarks.images)]
    name = asked or next((split for split in ("test", "val", "train") if split in present), "all")
    chosen = [image for image in landmarks.images if name == "all" or image.split == name]
    if not chosen:
        found = ", ".join(present) or "none"
        raise DataError(
            f"{data}: has no '{name}' split (found: {found}); split all uses every image", options=["split=all"]
        )
    if all(np.isnan(image.keypoints_xy).all() for image in chosen):
        raise DataError(f"{data}: no image of split '{name}' has an annotated point to evaluate against")
    paths = tuple(find(image.name) for image in chosen)
    return AnnotatedImages(name, paths, tuple(chosen), landmarks.keypoint_names, landmarks.remarks)


def evaluate_points(predictor: Predictor[Landmarks], images: AnnotatedImages, progress: Progress) -> PointEvaluation:
    """Predict every image once, and score the readable images.

    Raises `DataError` for points that the model does not have, or if no image is readable.
    """
    order = _order(predictor.keypoint_names, images.keypoint_names)
    progress.start("evaluating", len(images.paths), "images")
    found: list[Landmarks] = []
    true: list[ImageLandmarks] = []
    failures: list[Failure] = []
    for result, landmarks in zip(predictor.predict_iter(images.paths), images.landmarks, strict=True):
        progress.advance()
        if isinstance(result, Failure):
            failures.append(result)
        else:
            found.append(result)
            true.append(landmarks)
    if not found:
        raise DataError(f"none of the {len(images.paths)} images can be read, first: {failures[0].error}")
    true_xy = np.stack([image.keypoints_xy[order] for image in true])
    scales = np.array([result.input_per_photo for result in found])  # (N, M, 2)
    shared = scales[:, 0] if (scales == scales[:, :1]).all() else None
    mm_per_px = np.array([np.nan if p.mm_per_px is None else p.mm_per_px for p in true])

    def row(
        model: str, merging: str, points: NDArray[np.float64], scale: NDArray[np.float64] | None = shared
    ) -> dict[str, Any]:
        scores = landmark_metrics(points, true_xy, predictor.keypoint_names, scale, mm_per_px)
        return {"model": model, "merging": merging, **scores}

    merged = np.stack([result.keypoints_xy for result in found])
    rows = []
    if predictor.with_votes:
        members = np.stack([result.members_xy for result in found if result.members_xy is not None])
        rows = [row(name, "", members[:, m], scales[:, m]) for m, name in enumerate(predictor.member_names)]
        settings = predictor.ensemble.key
        rules: tuple[Merging, ...] = ("mean", "median")
        for rule in rules:
            rows.append(row("ensemble", rule, merge_points(members, rule, settings["weights"]).keypoints_xy))
        if settings["merging"] not in rules:
            rows.append(row("ensemble", settings["merging"], merged))
    else:
        rows.append(row(predictor.member_names[0], "", merged))
    return PointEvaluation(rows, failures, _worst(found, true_xy, merged))


def _order(wanted: Sequence[str], given: Sequence[str]) -> list[int]:
    if lacking := [name for name in wanted if name not in given]:
        raise DataError(
            f"the annotations contain no point '{lacking[0]}', which the model predicts (found: {', '.join(given)})"
        )
    return [list(given).index(name) for name in wanted]


def _worst(
    found: Sequence[Landmarks], true_xy: NDArray[np.float64], merged: NDArray[np.float64]
) -> list[tuple[str, float]]:
    errors = np.linalg.norm(merged - true_xy, axis=2)
    has = ~np.isnan(errors).all(axis=1)
    means = [(found[n].path, float(np.nanmean(errors[n]))) for n in np.flatnonzero(has).tolist()]
    return sorted(means, key=lambda pair: -pair[1])
