"""Build the sections of a run's report, for classes and for landmarks: metrics, errors and the images behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tl.evaluation.metrics import ECE_BINS
from tl.studies.report.charts import bar_chart, histogram, reliability_chart
from tl.studies.report.neighbors import open_neighbors
from tl.studies.report.page import Card, Chart, Gallery, Matrix, Note, Section, Table
from tl.studies.report.run_files import FinishedRun, Found, Judged, read_found, read_judged
from tl.studies.report.thumbnails import Marks, Thumbnail, thumbnail

_SIDE, _WORST = 420, 12


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


_SIDE, _SMALL = 144, 44
_WRONG, _UNSURE, _RIGHT_IN_CELL, _WRONG_IN_CELL, _IN_ALL_CELLS = 60, 24, 3, 12, 240
_SURE = 0.9
_MOST_CLASSES = 60  # a larger matrix would be unreadable


def class_figures(finished: FinishedRun) -> list[tuple[str, str]]:
    """Return the key figures, (name, value)."""
    s = finished.scores
    accuracy = f"{s['top1_accuracy']:.1%} ({s['ci_low']:.1%} to {s['ci_high']:.1%})"
    return [
        ("top-1 accuracy (95%)", accuracy),
        ("macro F1", f"{s['macro_f1']:.3f}"),
        ("calibration error", f"{s['ece']:.3f}"),
        ("images", str(s["n"])),
        ("classes", str(len(finished.card.class_names))),
    ]


def class_sections(finished: FinishedRun) -> list[Section]:
    """Build the sections. Raises `RunError`."""
    judged = read_judged(finished)
    shower = _Shower(finished)
    return [
        _confusion(finished, judged, shower),
        _classes(finished),
        _reliability(finished, judged),
        _wrong(judged, shower),
        _unsure(judged, shower),
    ]


class _Shower:
    """Convert classified images to cards. Each thumbnail is created once."""

    def __init__(self, finished: FinishedRun) -> None:
        self._names, self._preprocessing = finished.card.class_names, finished.card.preprocessing
        self._find_nearest = open_neighbors(finished)
        self._made: dict[tuple[str, int], Thumbnail | None] = {}

    @property
    def knows_neighbors(self) -> bool:
        return self._find_nearest is not None

    def card(self, judged: Judged, badge: str = "", *, with_neighbors: bool = False) -> Card:
        order = np.argsort(-judged.probabilities, kind="stable")[:3]
        guesses = ", ".join(f"{self._names[i]} {judged.probabilities[i]:.0%}" for i in order)
        lines = [judged.name, f"true: {self._names[judged.true_id]}", guesses]
        beside = self._beside(judged.path) if with_neighbors else []
        return Card(self._image(judged.path, _SIDE), lines, badge, beside)

    def _beside(self, path: str) -> list[tuple[Thumbnail, str]]:
        nearest = self._find_nearest(path) if self._find_nearest else []
        shown = [(self._image(each.path, _SMALL), f"{each.label}, similarity {each.likeness:.2f}") for each in nearest]
        return [(image, name) for image, name in shown if image is not None]

    def _image(self, path: str, side: int) -> Thumbnail | None:
        if (path, side) not in self._made:
            self._made[path, side] = thumbnail(path, self._preprocessing, side)
        return self._made[path, side]


def _confusion(finished: FinishedRun, judged: Sequence[Judged], shower: _Shower) -> Section:
    names, counts = finished.card.class_names, finished.scores["confusion"]
    if len(names) > _MOST_CLASSES:
        pairs = [
            (counts[i][j], names[i], names[j])
            for i in range(len(names))
            for j in range(len(names))
            if i != j and counts[i][j]
        ]
        rows = [(true, decided, count) for count, true, decided in sorted(pairs, reverse=True)[:100]]
        return Section("Confusion", [Table(("true", "predicted", "images"), rows)])
    cells: dict[tuple[int, int], list[Judged]] = defaultdict(list)
    for each in sorted(judged, key=lambda each: -each.confidence):
        cells[each.true_id, each.label_id].append(each)
    shown: dict[tuple[int, int], list[Card]] = {}
    left = _IN_ALL_CELLS
    # Confusions first, most frequent first; correct cells only fill the remaining places.
    for place in sorted(cells, key=lambda place: (place[0] == place[1], -len(cells[place]), place)):
        most = _RIGHT_IN_CELL if place[0] == place[1] else _WRONG_IN_CELL
        shown[place] = [shower.card(each) for each in cells[place][: min(most, left)]]
        left -= len(shown[place])
    return Section("Confusion", [Matrix(names, counts, shown)])


def _classes(finished: FinishedRun) -> Section:
    rows = [
        (name, row["n"], row["precision"], row["recall"], row["f1"])
        for name, row in finished.scores["per_class"].items()
    ]
    return Section("Classes", [Table(("class", "images", "precision", "recall", "F1"), rows)])


def _reliability(finished: FinishedRun, judged: Sequence[Judged]) -> Section:
    sure = np.array([each.confidence for each in judged])
    right = np.array([each.label_id == each.true_id for each in judged])
    bins = np.minimum((sure * ECE_BINS).astype(int), ECE_BINS - 1)
    filled = [b for b in range(ECE_BINS) if (bins == b).any()]
    chart = reliability_chart(
        "Reliability",
        [float(sure[bins == b].mean()) for b in filled],
        [float(right[bins == b].mean()) for b in filled],
        [int((bins == b).sum()) for b in filled],
    )
    s = finished.scores
    note = (
        f"Expected calibration error {s['ece']:.3f}; {s['ece_uncalibrated']:.3f} before scaling with the temperature "
        f"{finished.metrics['temperature']:.2f}, which was fitted on validation data."
    )
    return Section("Confidence", [Chart(chart), Note(note)])


def _wrong(judged: Sequence[Judged], shower: _Shower) -> Section:
    wrong = sorted((each for each in judged if each.label_id != each.true_id), key=lambda each: -each.confidence)
    if not wrong:
        return Section("Misclassified", [Note("None.")])
    usual = _usual_confidence(judged)
    doubted = {each.path for each in wrong if each.confidence >= max(_SURE, usual.get(each.label_id, 1.0))}
    cards = [
        shower.card(each, "label?" if each.path in doubted else "", with_neighbors=True) for each in wrong[:_WRONG]
    ]
    note = f"{len(wrong)} of {len(judged)} images, most confident first{_more(len(wrong), _WRONG)}."
    if doubted:
        note += (
            f" {len(doubted)} are marked 'label?': the confidence is {_SURE:.0%} or more, and at least as high as is "
            "usual for that class, so the label may be wrong."
        )
    if shower.knows_neighbors:
        note += " Below each: the most similar training images, by the features of the backbone before training."
    return Section("Misclassified", [Gallery(cards, note)])


def _unsure(judged: Sequence[Judged], shower: _Shower) -> Section:
    unsure = sorted(judged, key=lambda each: each.margin)[:_UNSURE]
    note = "Images with the smallest difference between the two highest probabilities."
    return Section("Most uncertain", [Gallery([shower.card(each) for each in unsure], note)])


def _usual_confidence(judged: Sequence[Judged]) -> dict[int, float]:
    """Return each class's mean confidence on its own images. Source: Northcutt et al. 2021, "Confident Learning"."""
    own: dict[int, list[float]] = defaultdict(list)
    for each in judged:
        own[each.true_id].append(float(each.probabilities[each.true_id]))
    return {class_id: float(np.mean(values)) for class_id, values in own.items()}


def _more(count: int, shown: int) -> str:
    return f"; {shown} are shown" if count > shown else ""
