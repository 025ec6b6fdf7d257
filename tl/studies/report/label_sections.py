"""Build the sections on several labels of a run's report: scores and curves of each label, and the worst images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.data.label_sets import label_matrix
from tl.data.manifests import LabeledImage
from tl.evaluation.multilabel import precision_recall
from tl.runtime.output.columns import LABEL_SEPARATOR
from tl.studies.report.charts import Line, line_chart
from tl.studies.report.page import Card, Chart, Gallery, Note, Section, Table
from tl.studies.report.run_files import FinishedRun
from tl.studies.report.thumbnails import thumbnail

_SIDE, _WORST, _CURVES = 320, 12, 12
_HEADS = ("label", "images with it", "average precision", "F1", "precision", "recall", "threshold")


def label_figures(finished: FinishedRun) -> list[tuple[str, str]]:
    """Return the key figures, (name, value)."""
    s = finished.scores
    return [
        ("mean average precision (95%)", f"{s['map']:.3f} ({s['ci_low']:.3f} to {s['ci_high']:.3f})"),
        ("macro F1", f"{s['macro_f1']:.3f}"),
        ("all labels right", f"{s['subset_accuracy']:.1%}"),
        ("calibration error", f"{s['ece']:.3f}"),
        ("images", str(s["n"])),
    ]


def label_sections(finished: FinishedRun) -> list[Section]:
    """Build the sections. Raises `RunError`."""
    names, per_class = finished.card.class_names, finished.scores["per_class"]
    thresholds = finished.metrics["thresholds"]
    columns = ("n", "average_precision", "f1", "precision", "recall")
    rows = [(name, *(per_class[name][key] for key in columns), thresholds[name]) for name in names]
    note = Note("An image has a label if its probability reaches the label's threshold, here that of the highest F1.")
    data = [
        (row, path)
        for row, path in zip(
            finished.rows(f"predictions_{finished.split}.csv"), finished.paths(finished.split), strict=True
        )
    ]
    true = label_matrix([LabeledImage(path, row["path"], row["true_labels"]) for row, path in data], names)
    found = np.array([[float(row[f"p:{name}"]) for name in names] for row, _ in data])
    return [
        Section("Labels", [Table(_HEADS, rows), note]),
        Section(
            "Precision and recall", [Chart(_curve(name, found, true, names)) for name in _lowest(names, per_class)]
        ),
        *_worst(finished, data, true),
    ]


def _lowest(names: tuple[str, ...], per_class: dict[str, dict[str, float]]) -> list[str]:
    """The labels whose curves are shown: those with images, and of many those with the lowest scores."""
    shown = [name for name in names if per_class[name]["n"]]
    return sorted(shown, key=lambda name: per_class[name]["average_precision"])[:_CURVES]


def _curve(name: str, found: NDArray[np.float64], true: NDArray[np.float64], names: tuple[str, ...]) -> str:
    c = names.index(name)
    known = ~np.isnan(true[:, c])
    precision, recall = precision_recall(found[known, c], true[known, c] == 1)
    return line_chart(
        f"{name}: precision over recall", "recall", [Line("precision", recall.tolist(), precision.tolist())]
    )


def _worst(finished: FinishedRun, data: list[tuple[dict[str, str], str]], true: NDArray[np.float64]) -> list[Section]:
    """The images with the most wrong labels."""
    names = finished.card.class_names
    cards = []
    wrong = []
    for (row, _), known in zip(data, true, strict=True):
        given = set(row["labels"].split(LABEL_SEPARATOR))
        pairs = list(zip(names, known.tolist(), strict=True))
        extra = [name for name, value in pairs if value == 0 and name in given]
        wrong.append((extra, [name for name, value in pairs if value == 1 and name not in given]))
    order = sorted(range(len(data)), key=lambda i: -len(wrong[i][0]) - len(wrong[i][1]))
    for i in order[:_WORST]:
        extra, missing = wrong[i]
        lines = [f"wrong: {', '.join(extra)}"] * bool(extra) + [f"missing: {', '.join(missing)}"] * bool(missing)
        if lines:
            cards.append(Card(thumbnail(data[i][1], finished.card.preprocessing, _SIDE), lines))
    if not cards:
        return []
    return [Section("Worst images", [Gallery(cards, f"The {len(cards)} images with the most wrong labels.")])]
