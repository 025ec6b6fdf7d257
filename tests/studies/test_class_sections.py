"""Sections on a classifier's results, from results given here."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.models import make_contract, solid
from tests.trainer.make import make_png
from tl.evaluation.metrics import classification_metrics, wilson_interval
from tl.runtime.imaging.regions import Region
from tl.studies.report.class_sections import ClassCards, ClassResults, Judged, class_sections, doubted_keys
from tl.studies.report.confidence_section import confidence_bins
from tl.studies.report.page import Comparison, Gallery, Matrix

NAMES = ("ant", "bee")
LEFT, RIGHT = (0.0, 0.0, 20.0, 20.0), (20.0, 0.0, 20.0, 20.0)


def make_judged(path: str, true_id: int, bee: float, region: Region | None = None) -> Judged:
    return Judged(path, Path(path).name, true_id, int(bee > 0.5), np.array([1 - bee, bee]), region)


def make_results(judged: list[Judged]) -> ClassResults:
    truth, found = np.array([each.true_id for each in judged]), np.stack([each.probabilities for each in judged])
    scores = classification_metrics(truth, found.astype(np.float32), NAMES)
    return ClassResults(NAMES, make_contract().preprocessing, scores, judged)


def test_doubted_keys__only_one_of_two_boxes_of_a_photo() -> None:
    """Both are errors; the right-hand one is less confident than is usual."""
    boxes = [make_judged("p.png", 0, 0.99, LEFT), make_judged("p.png", 0, 0.8, RIGHT)]
    judged = [*boxes, *(make_judged(f"{i}.png", 1, 0.95) for i in range(3))]
    assert doubted_keys(judged) == {("p.png", LEFT)}


def test_class_sections__boxes_of_a_photo_have_their_own_marks_and_images(tmp_path: Path) -> None:
    two = np.concatenate([solid((250, 0, 0), 20, 20), solid((0, 0, 250), 20, 20)], axis=1)
    path = str(make_png(tmp_path / "p.png", two))
    other = str(make_png(tmp_path / "o.png", solid((0, 250, 0), 20, 20)))
    judged = [make_judged(path, 0, 0.99, LEFT), make_judged(path, 0, 0.8, RIGHT), make_judged(other, 1, 0.95)]
    results = make_results(judged)
    sections = class_sections(results, ClassCards(results))
    (gallery,) = next(list(section.blocks) for section in sections if section.title == "Misclassified")
    assert isinstance(gallery, Gallery)
    assert [card.badge for card in gallery.cards] == ["label?", ""]
    colors = []
    for card in gallery.cards:
        assert card.image is not None
        data = base64.b64decode(card.image.uri.partition(",")[2])
        colors.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[10, 10].argmax())
    assert colors == [0, 2]  # the left box is red, the right one blue


def test_confidence_bins__by_hand() -> None:
    sure = np.array([0.5, 0.58, 0.6, 0.949, 0.95, 0.99, 1.0])
    bins = confidence_bins(sure, np.array([True, False, True, True, False, True, True]))
    assert bins.edges == (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
    assert (bins.right, bins.wrong) == ([1, 1, 0, 0, 1, 0, 2], [1, 0, 0, 0, 0, 1, 0])
    assert bins.rows[0] == (0.5, 0.6, 1, 1, 0.5, 1.0)


def test_class_sections__recall_and_precision_of_each_class_with_intervals() -> None:
    judged = [make_judged(f"{i}", 0, 0.1) for i in range(8)] + [make_judged(f"w{i}", 0, 0.9) for i in range(2)]
    judged += [make_judged(f"b{i}", 1, 0.9) for i in range(6)]
    results = make_results(judged)
    blocks = next(section.blocks for section in class_sections(results) if section.title == "Classes")
    table = blocks[0]
    assert isinstance(table, Comparison)
    (ant, (recall, precision), cells), (bee, _, _) = table.rows
    assert (ant, bee, table.heading) == (*NAMES, "class")
    assert (recall.series, recall.value, precision.value) == ("recall", 0.8, 1.0)
    assert (recall.low, recall.high) == wilson_interval(8, 10)
    assert (precision.low, precision.high) == wilson_interval(8, 8)
    assert cells[:3] == (10, 0.8, 1.0)


def test_matrix__confusions_most_frequent_first() -> None:
    matrix = Matrix(["a", "b", "c"], [[5, 1, 2], [0, 4, 0], [1, 2, 3]], {})
    assert matrix.confusions == [(0, 2, 2), (2, 1, 2), (0, 1, 1), (2, 0, 1)]
