"""Build the sections on landmarks of a run's report: errors by point, and the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tl.studies.report.charts import bar_chart, histogram
from tl.studies.report.page import Card, Chart, Gallery, Note, Section, Table
from tl.studies.report.run_files import FinishedRun, Found, read_found
from tl.studies.report.thumbnails import Marks, thumbnail

_SIDE, _WORST = 420, 12
# A report points out the interval of an error that is wider than this share of it.
WIDE = 0.5


def point_figures(finished: FinishedRun) -> list[tuple[str, str]]:
    """Return the key figures, (name, value)."""
    s = finished.scores
    figures = [("mean error (95%)", f"{s['error_px']:.2f} px ({s['ci_low']:.2f} to {s['ci_high']:.2f})")]
    if s.get("extent_error") is not None:
        figures.append(("relative to the points' extent", f"{s['extent_error']:.2%}"))
    if s.get("error_mm") is not None:
        figures.append(("mean error, mm", f"{s['error_mm']:.3g}"))
    figures += [
        ("mean error in the input", f"{s['error_input_px']:.2f} px"),
        ("median error", f"{s['median_px']:.2f} px"),
    ]
    return [*figures, ("images", str(s["n"])), ("points", str(len(finished.card.keypoint_names)))]


def error_note(scores: dict[str, Any]) -> list[Note]:
    """Say how uncertain the mean error of few images is; nothing if its interval is narrow."""
    mean, low, high = scores["error_px"], scores["ci_low"], scores["ci_high"]
    if high - low <= WIDE * mean:
        return []
    text = (
        f"These are only {scores['n']} images: the mean error on further images of this kind lies between {low:.2f} "
        f"and {high:.2f} px (95% interval). A difference from another model within that range may be chance."
    )
    return [Note(text)]


def point_sections(finished: FinishedRun) -> list[Section]:
    """Build the sections. Raises `RunError`."""
    found = read_found(finished)
    return [_points(finished), _spread(finished, found), _worst(finished, found)]


def _points(finished: FinishedRun) -> Section:
    scores = finished.scores["per_keypoint"]
    known = {name: row for name, row in scores.items() if row["error_px"] is not None}
    chart = bar_chart("Error of each point", "mean error, px", list(known), [row["error_px"] for row in known.values()])
    rows = [(name, row["n"], row["error_px"], row["rmse_px"]) for name, row in scores.items()]
    return Section("Points", [Chart(chart), Table(("point", "images", "mean error, px", "RMSE, px"), rows)])


def _spread(finished: FinishedRun, found: Sequence[Found]) -> Section:
    errors = np.concatenate([each.errors for each in found])
    chart = histogram("Errors of all points", "error, px", errors[~np.isnan(errors)].tolist())
    pck = [(f"{float(share):.0%} of the extent", value) for share, value in finished.scores["pck"].items()]
    return Section(
        "Errors",
        [
            Chart(chart),
            Note("Share of points with an error below a fraction of the extent of the image's points (PCK):"),
            Table(("error below", "share of points"), pck),
        ],
    )


def _worst(finished: FinishedRun, found: Sequence[Found]) -> Section:
    names = finished.card.keypoint_names
    known = [each for each in found if not np.isnan(each.errors).all()]
    worst = sorted(known, key=lambda each: -float(np.nanmean(each.errors)))[:_WORST]
    cards = []
    for each in worst:
        k = int(np.nanargmax(each.errors))
        lines = [
            each.name,
            f"mean error {np.nanmean(each.errors):.1f} px",
            f"largest: {names[k]}, {each.errors[k]:.1f} px",
        ]
        image = thumbnail(each.path, finished.card.preprocessing, _SIDE, Marks(each.true_xy, each.found_xy))
        cards.append(Card(image, lines))
    note = f"{len(worst)} of {len(found)} images. Circles: annotated. Crosses: predicted."
    return Section("Worst images", [Gallery(cards, note)])
