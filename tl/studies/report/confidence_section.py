"""Build the section on a classifier's confidence: right and wrong answers by confidence, reliability, thresholds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.metrics import ECE_BINS
from tl.studies.report.charts import reliability_chart
from tl.studies.report.page import Bins, Chart, Note, Section, Table

_LEAST = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
# Most answers are confident, so that bins are narrower there.
_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def confidence_section(sure: NDArray[np.float64], right: NDArray[np.bool_], note: str) -> Section:
    """Build the section. `sure` (N,): confidence of each answer; `right` (N,): whether it is right."""
    table = Table(("confidence at least", "images", "share of images", "accuracy"), _above(sure, right))
    return Section("Confidence", [confidence_bins(sure, right), Chart(_reliability(sure, right)), table, Note(note)])


def confidence_bins(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> Bins:
    """Count the right and wrong answers in each range of confidence, from the lowest range that has any."""
    places = np.searchsorted(_EDGES[1:-1], sure, side="right")  # a bin includes its lower edge
    first = int(places.min(initial=len(_EDGES) - 2))
    counts = [np.bincount(places[kind], minlength=len(_EDGES) - 1)[first:].tolist() for kind in (right, ~right)]
    return Bins(_EDGES[first:], counts[0], counts[1])


def _reliability(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> str:
    bins = np.minimum((sure * ECE_BINS).astype(int), ECE_BINS - 1)
    filled = [b for b in range(ECE_BINS) if (bins == b).any()]
    return reliability_chart(
        "Reliability",
        [float(sure[bins == b].mean()) for b in filled],
        [float(right[bins == b].mean()) for b in filled],
        [int((bins == b).sum()) for b in filled],
    )


def _above(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> list[tuple[str, int, float, float | None]]:
    """Rows of images at least as confident as each threshold: their number, share, and accuracy."""
    rows = []
    for least in _LEAST:
        kept = sure >= least
        accuracy = float(right[kept].mean()) if kept.any() else None
        rows.append((f"{least:.0%}", int(kept.sum()), float(kept.mean()), accuracy))
    return rows
