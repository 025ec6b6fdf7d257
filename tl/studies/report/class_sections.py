"""Build the sections on a classifier's results, of a run or a model file: scores, errors and the images behind them.

Knows no run folders: images, labels and scores are given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.metrics import wilson_interval
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Region
from tl.studies.report.confidence_section import confidence_section
from tl.studies.report.page import Card, Comparison, Gallery, Mark, Matrix, Note, Section, Table
from tl.studies.report.thumbnails import Thumbnail, thumbnail

if TYPE_CHECKING:
    from tl.data.features import Neighbor

_SIDE, _SMALL = 144, 44
_WRONG, _UNSURE, _RIGHT_IN_CELL, _WRONG_IN_CELL, _IN_ALL_CELLS = 60, 36, 3, 12, 240
# Errors at least this confident may be wrong labels; images less confident than the second are uncertain.
_SURE, _UNSURE_BELOW = 0.9, 0.7
_FEW = 10
_MOST_CLASSES = 60  # a larger matrix would be unreadable
# A report points out the interval of an accuracy that is wider than this.
WIDE = 0.1


@dataclass(frozen=True)
class Judged:
    """A classified image. `probabilities`: float64 (C,) in class order. `region`: the part used, if not all."""

    path: str
    name: str
    true_id: int
    label_id: int
    probabilities: NDArray[np.float64]
    region: Region | None = None

    @property
    def key(self) -> tuple[str, Region | None]:
        """What distinguishes this image from others, as `LabeledImage.key`: boxes may share a path."""
        return self.path, self.region

    @property
    def is_right(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.true_id == self.label_id

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return float(self.probabilities[self.label_id])

    @property
    def margin(self) -> float:
        """Difference between the two highest probabilities."""
        first, second = np.sort(self.probabilities)[::-1][:2]
        return float(first - second)


@dataclass(frozen=True)
class ClassResults:
    """A classifier's results on labeled images. `scores`: as in `metrics.json`. `judged`: the images.

    `calibration`: how the confidence was calibrated, if known. `find_nearest`: finds the training images most similar
    to an image, if known. `review`: command that shows them again and corrects labels, if known.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    scores: dict[str, Any]
    judged: Sequence[Judged]
    calibration: str = ""
    find_nearest: Callable[[str], list[Neighbor]] | None = None
    review: str = ""


def class_figures(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the key figures, (name, value)."""
    s = scores
    accuracy = f"{s['top1_accuracy']:.1%} ({s['ci_low']:.1%} to {s['ci_high']:.1%})"
    sequences = []
    if s.get("sequences"):
        low, high = s["sequence_ci_low"], s["sequence_ci_high"]
        shown = f"{s['sequence_top1_accuracy']:.1%} ({low:.1%} to {high:.1%})"
        sequences = [(f"accuracy of {s['sequences']} sequences (95%)", shown)]
    return [
        ("top-1 accuracy (95%)", accuracy),
        *sequences,
        ("macro F1", f"{s['macro_f1']:.3f}"),
        ("calibration error", f"{s['ece']:.3f}"),
        ("images", str(s["n"])),
        ("classes", str(len(s["per_class"]))),
    ]


def class_sections(results: ClassResults, cards: ClassCards | None = None) -> list[Section]:
    """Build the sections. `cards` creates the thumbnails."""
    cards = cards or ClassCards(results)
    return [
        _confusion(results, cards),
        _classes(results.scores),
        _confidence(results),
        *_wrong(results, cards),
        *_unsure(results.judged, cards),
    ]


def accuracy_note(scores: dict[str, Any]) -> list[Note]:
    """Say how uncertain the scores of few images are; nothing if there are enough."""
    low, high, count = scores["ci_low"], scores["ci_high"], scores["n"]
    groups = f" in {scores['groups']} groups" if "groups" in scores else ""
    rare = [name for name, row in scores["per_class"].items() if 0 < row["n"] < _FEW]
    notes = []
    if high - low > WIDE:
        notes.append(
            f"These are only {count} images{groups}: the accuracy on further images of this kind lies between "
            f"{low:.0%} and {high:.0%} (95% interval). A difference from another model within that range may be chance."
        )
    if rare:
        notes.append(f"Precision, recall and F1 of classes with fewer than {_FEW} images mean little: {_listed(rare)}.")
    return [Note(text) for text in notes]


def uncertainty_section(notes: list[Note]) -> list[Section]:
    """Build the section of the notes on uncertainty, if there are any."""
    return [Section("Uncertainty", notes, narrow=True)] if notes else []


def site_section(rows: Sequence[tuple[str | float | None, ...]]) -> list[Section]:
    """Build the section on sites from rows of (site, images, accuracy, low, high, accuracy if left out), if any."""
    if not rows:
        return []
    is_measured = any(row[-1] is not None for row in rows)
    columns = ("site", "images", "accuracy", "95% low", "95% high", "accuracy if left out of training")
    width = len(columns) - (not is_measured)
    text = "A site with a lower accuracy than the others needs more images, or is unlike the others."
    if is_measured:
        text += (
            " The last column is the accuracy of heads that were fitted to the other sites only: what to expect at a "
            "new site."
        )
    return [Section("Sites", [Table(columns[:width], [row[:width] for row in rows]), Note(text)])]


def rank_section(scores: dict[str, Any]) -> list[Section]:
    """Build the section on groups of classes, such as genus and family, if the scores have them."""
    ranks = [name.removesuffix("_top1_accuracy") for name in scores if name.endswith("_top1_accuracy")]
    rows = [
        (rank, scores[f"{rank}_top1_accuracy"], scores[f"{rank}_macro_f1"])
        for rank in ranks
        if f"{rank}_macro_f1" in scores
    ]
    if not rows:
        return []
    table = Table(("rank", "accuracy", "macro F1"), [("class", scores["top1_accuracy"], scores["macro_f1"]), *rows])
    return [Section("Ranks", [table, Note("Scores of the most probable group of each rank.")])]


class ClassCards:
    """Convert classified images to cards. Each thumbnail is created once."""

    def __init__(self, results: ClassResults) -> None:
        self._names, self._preprocessing = results.class_names, results.preprocessing
        self._find_nearest = results.find_nearest
        self._made: dict[tuple[str, Region | None, int], Thumbnail | None] = {}

    @property
    def knows_neighbors(self) -> bool:
        """Whether similar training images can be shown."""
        return self._find_nearest is not None

    def card(self, judged: Judged, badge: str = "", *, with_neighbors: bool = False) -> Card:
        """Return the card of an image, with its most probable classes."""
        order = np.argsort(-judged.probabilities, kind="stable")[:3]
        guesses = ", ".join(f"{self._names[i]} {judged.probabilities[i]:.0%}" for i in order)
        lines = [judged.name, f"true: {self._names[judged.true_id]}", guesses]
        beside = self._beside(judged.path) if with_neighbors else []
        cell = f"{judged.true_id}-{judged.label_id}"
        return Card(
            self._image(judged.path, _SIDE, judged.region),
            lines,
            badge,
            beside,
            cell,
            judged.is_right,
            judged.confidence,
        )

    def brief(self, judged: Judged) -> Card:
        """Return a card that says only whether and how the image was named."""
        true, found = self._names[judged.true_id], self._names[judged.label_id]
        is_right = judged.is_right
        line = f"{found} {judged.confidence:.0%}" + ("" if is_right else f", is {true}")
        cell = f"{judged.true_id}-{judged.label_id}"
        image = self._image(judged.path, _SIDE, judged.region)
        return Card(image, [line], "right" if is_right else "wrong", (), cell, is_right, judged.confidence)

    def _beside(self, path: str) -> list[tuple[Thumbnail, str]]:
        nearest = self._find_nearest(path) if self._find_nearest else []
        shown = [(self._image(each.path, _SMALL), f"{each.label}, similarity {each.likeness:.2f}") for each in nearest]
        return [(image, name) for image, name in shown if image is not None]

    def _image(self, path: str, side: int, region: Region | None = None) -> Thumbnail | None:
        if (path, region, side) not in self._made:
            self._made[path, region, side] = thumbnail(path, self._preprocessing, side, region=region)
        return self._made[path, region, side]


def _confusion(results: ClassResults, cards: ClassCards) -> Section:
    names, counts = results.class_names, results.scores["confusion"]
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
    for each in sorted(results.judged, key=lambda each: -each.confidence):
        cells[each.true_id, each.label_id].append(each)
    shown: dict[tuple[int, int], list[Card]] = {}
    left = _IN_ALL_CELLS
    # Confusions first, most frequent first; correct cells only fill the remaining places.
    for place in sorted(cells, key=lambda place: (place[0] == place[1], -len(cells[place]), place)):
        most = _RIGHT_IN_CELL if place[0] == place[1] else _WRONG_IN_CELL
        shown[place] = [cards.card(each) for each in cells[place][: min(most, left)]]
        left -= len(shown[place])
    return Section("Confusion", [Matrix(names, counts, shown)])


def _classes(scores: dict[str, Any]) -> Section:
    """Recall and precision of each class with their intervals, by images."""
    confusion = np.array(scores["confusion"])
    rows = []
    for i, (name, row) in enumerate(scores["per_class"].items()):
        right = confusion[i, i]
        trials = {"recall": confusion[i].sum(), "precision": confusion[:, i].sum()}
        marks = [Mark(of, right / n, *wilson_interval(right, n)) for of, n in trials.items() if n]
        rows.append((name, marks, (row["n"], row["recall"], row["precision"], row["f1"])))
    text = (
        "Recall: share of the class's images that are found. Precision: share of right ones among the images predicted "
        "as the class. Lines: 95% intervals"
    )
    text += ", too narrow because images of a group count as independent." if "groups" in scores else "."
    table = Comparison(("images", "recall", "precision", "F1"), rows, heading="class")
    return Section("Classes", [table, Note(text)])


def _confidence(results: ClassResults) -> Section:
    sure = np.array([each.confidence for each in results.judged])
    right = np.array([each.is_right for each in results.judged])
    return confidence_section(sure, right, f"Calibration error {results.scores['ece']:.3f}{results.calibration}.")


def doubted_keys(judged: Sequence[Judged]) -> set[tuple[str, Region | None]]:
    """Keys of the errors whose confidence is `_SURE`, and as high as is usual for the class that was predicted."""
    usual = _usual_confidence(judged)
    wrong = (each for each in judged if not each.is_right)
    return {each.key for each in wrong if each.confidence >= max(_SURE, usual.get(each.label_id, 1.0))}


def _wrong(results: ClassResults, cards: ClassCards) -> list[Section]:
    judged = results.judged
    wrong = sorted((each for each in judged if not each.is_right), key=lambda each: -each.confidence)
    if not wrong:
        return []
    doubted = doubted_keys(judged)
    shown = [cards.card(each, "label?" if each.key in doubted else "", with_neighbors=True) for each in wrong[:_WRONG]]
    note = f"{len(wrong)} of {len(judged)} images, most confident first{_more(len(wrong), _WRONG)}."
    if doubted:
        note += (
            f" {len(doubted)} are marked 'label?': the confidence is {_SURE:.0%} or more, and at least as high as is "
            "usual for that class, so the label may be wrong."
        )
        if results.review:
            note += f" To correct labels, run {results.review}."
    if cards.knows_neighbors:
        note += " Below each: the most similar training images, by the features of the backbone before training."
    return [Section("Misclassified", [Gallery(shown, note)])]


def _unsure(judged: Sequence[Judged], cards: ClassCards) -> list[Section]:
    unsure = sorted((each for each in judged if each.confidence < _UNSURE_BELOW), key=lambda each: each.margin)
    if not unsure:
        return []
    note = (
        f"{len(unsure)} of {len(judged)} images have a confidence below {_UNSURE_BELOW:.0%}; first those with the "
        f"smallest difference between the two highest probabilities{_more(len(unsure), _UNSURE)}."
    )
    return [Section("Most uncertain", [Gallery([cards.card(each) for each in unsure[:_UNSURE]], note)])]


def _usual_confidence(judged: Sequence[Judged]) -> dict[int, float]:
    """Return each class's mean confidence on its own images. Source: Northcutt et al. 2021, "Confident Learning"."""
    own: dict[int, list[float]] = defaultdict(list)
    for each in judged:
        own[each.true_id].append(float(each.probabilities[each.true_id]))
    return {class_id: float(np.mean(values)) for class_id, values in own.items()}


def _more(count: int, shown: int) -> str:
    return f"; {shown} are shown" if count > shown else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
