"""What a report shows of a landmark finder: the error of each point, and the pictures where it is largest.

Knows true and found points. Does not know HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl.studies.report.charts import bar_chart, histogram
from tl.studies.report.page import Card, Chart, Gallery, Note, Section, Table
from tl.studies.report.run_files import FinishedRun, Found, read_found
from tl.studies.report.thumbnails import Marks, thumbnail

_SIDE, _WORST = 420, 12


def point_figures(finished: FinishedRun) -> list[tuple[str, str]]:
    """The numbers on top."""
    s = finished.scores
    figures = [("mean error (95%)", f"{s['error_px']:.2f} px ({s['ci_low']:.2f} to {s['ci_high']:.2f})")]
    if s.get("extent_error") is not None:
        figures.append(("of the points' extent", f"{s['extent_error']:.2%}"))
    if s.get("error_mm") is not None:
        figures.append(("in millimetres", f"{s['error_mm']:.3g}"))
    figures += [("of the input", f"{s['error_input_px']:.2f} px"), ("middle error", f"{s['median_px']:.2f} px")]
    return [*figures, ("pictures", str(s["n"])), ("points", str(len(finished.card.keypoint_names)))]


def point_sections(finished: FinishedRun) -> list[Section]:
    """Raises `RunError`."""
    found = read_found(finished)
    return [_points(finished), _spread(finished, found), _worst(finished, found)]


def _points(finished: FinishedRun) -> Section:
    scores = finished.scores["per_keypoint"]
    known = {name: row for name, row in scores.items() if row["error_px"] is not None}
    chart = bar_chart("Error of each point", "mean error, px", list(known), [row["error_px"] for row in known.values()])
    rows = [(name, row["n"], row["error_px"], row["rmse_px"]) for name, row in scores.items()]
    return Section("Points", [Chart(chart), Table(("point", "pictures", "mean error, px", "RMSE, px"), rows)])


def _spread(finished: FinishedRun, found: Sequence[Found]) -> Section:
    errors = np.concatenate([each.errors for each in found])
    chart = histogram("Errors of all points", "error, px", errors[~np.isnan(errors)].tolist())
    pck = [(f"{float(share):.0%} of the extent", value) for share, value in finished.scores["pck"].items()]
    return Section(
        "Errors",
        [
            Chart(chart),
            Note("Share of points that are found closer than a part of the extent of the picture's points (PCK):"),
            Table(("closer than", "share of points"), pck),
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
            f"most: {names[k]}, {each.errors[k]:.1f} px",
        ]
        picture = thumbnail(each.path, finished.card.recipe, _SIDE, Marks(each.true_xy, each.found_xy))
        cards.append(Card(picture, lines))
    note = f"{len(worst)} of {len(found)} pictures. Circles: annotated. Crosses: found."
    return Section("Worst pictures", [Gallery(cards, note)])
