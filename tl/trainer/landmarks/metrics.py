"""Figures of merit for landmarks, from true and found points. Pure numpy, no torch.

Knows arrays. Does not know models or pictures. Errors are Euclidean distances unless said otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.runtime.shapes import centroid_size

# Shares of the longer side of the box around a picture's true points.
PCK_THRESHOLDS = (0.01, 0.02, 0.05, 0.1)
_BOOTSTRAP_ROUNDS = 1000


def landmark_metrics(
    found_xy: NDArray[np.floating],
    true_xy: NDArray[np.floating],
    keypoint_names: tuple[str, ...],
    input_per_photo: NDArray[np.floating] | None = None,
    mm_per_px: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """The metrics of `metrics.json` and `tl evaluate --json` for landmarks.

    `found_xy`, `true_xy`: (N, K, 2) in pixels of the photos, the true ones NaN where missing; a missing point counts
    for nothing. `input_per_photo`: (N, 2), input pixels per photo pixel in x and y; None leaves out what is in input
    pixels. `mm_per_px`: (N,), NaN where unknown.
    Returns n pictures and `points`; `error_px`, the mean over points, with its 95% interval ci_low and ci_high
    (bootstrap over pictures); rmse_px, median_px; in input pixels error_input_px and mse_input_px, the mean squared
    error of a coordinate; normalised_error, the mean of error over centroid size; extent_error, the mean of error over
    the extent of a picture's true points, the longer side of the box around them; pck, share of points closer than a
    share of that extent; centroid_size_error, mean |relative error|; error_mm where a scale is known; and
    per_keypoint error_px, rmse_px and n. Raises ValueError without any true point.
    """
    errors = np.linalg.norm(np.asarray(found_xy, np.float64) - true_xy, axis=2)
    has = ~np.isnan(errors)
    relative = errors / _extents(true_xy)[:, None]
    if not has.any():
        raise ValueError("no true point to score against")
    sizes = np.array([centroid_size(points) for points in true_xy])
    found_sizes = np.array(
        [centroid_size(np.where(np.isnan(true), np.nan, found)) for found, true in zip(found_xy, true_xy, strict=True)]
    )
    low, high = _bootstrap(errors)
    metrics: dict[str, Any] = {
        "n": int(has.any(axis=1).sum()),
        "points": int(has.sum()),
        "error_px": float(errors[has].mean()),
        "ci_low": low,
        "ci_high": high,
        "rmse_px": float(np.sqrt((errors[has] ** 2).mean())),
        "median_px": float(np.median(errors[has])),
        "normalised_error": _mean((errors / np.where(sizes > 0, sizes, np.nan)[:, None])[has]),
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
    """95% interval of the mean over points, drawing whole pictures, whose points err together."""
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
    """The longer side of the box around each picture's points (N,), NaN for less than two different ones."""
    high = np.where(np.isnan(true_xy), -np.inf, true_xy).max(axis=1)
    low = np.where(np.isnan(true_xy), np.inf, true_xy).min(axis=1)
    extents = (high - low).max(axis=1)
    return np.where(extents > 0, extents, np.nan)


def _pck(relative: NDArray[np.float64]) -> dict[str, float]:
    """Percentage of correct keypoints. Source: Yang & Ramanan 2013, with the extent of the points as the measure."""
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
