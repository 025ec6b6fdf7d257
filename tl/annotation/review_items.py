"""The images that a review shows: each once, with all reasons to look at it, and whether these still hold.

Knows no events and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tl.annotation.problems.evidence import Evidence
from tl.annotation.problems.problem import KINDS, Problem
from tl.annotation.reviewed import Decision
from tl.data.manifests import LabeledImage

UNREADABLE = "unreadable"
# Kind -> its name and what to do about it. Where a kind comes from is in `KINDS`.
ABOUT: dict[str, tuple[str, str]] = {
    "label": ("Wrong labels", "The images contradict their labels. Either the label or the prediction is wrong."),
    "duplicate": ("Duplicates", "The same image, or nearly the same, appears twice. Keep one, or group both."),
    "disagreement": ("Models disagree", "The models of the ensemble give different answers."),
    "error": ("Model errors", "The trained model is wrong on these images, or their labels are."),
    "rare": ("Small classes", "The class has too few images. Check that it is a class of its own."),
    "outlier": ("Outliers", "The image is unlike all others: a mistake in the folder, or a rare case."),
    UNREADABLE: ("Unreadable files", "The file cannot be decoded. Training stops at such files."),
}
_UNREADABLE_SOURCE = "Files that the decoder refuses: truncated, damaged, or not an image."
MAX_NEIGHBORS, MAX_REASONS = 6, 2


@dataclass(frozen=True)
class ReviewItems:
    """The problems of the images of `evidence`, whose unreadable images follow the others in `images`."""

    evidence: Evidence
    problems: tuple[Problem, ...]

    @cached_property
    def images(self) -> tuple[LabeledImage, ...]:
        """All images, by place."""
        return (*self.evidence.images, *(image for image, _ in self.evidence.failed))

    @cached_property
    def of_image(self) -> dict[int, tuple[Problem, ...]]:
        """The problems of each image that has any."""
        found: dict[int, list[Problem]] = {}
        for problem in (*self.problems, *self._unreadable):
            found.setdefault(problem.index, []).append(problem)
        return {place: tuple(problems) for place, problems in found.items()}

    @property
    def _unreadable(self) -> list[Problem]:
        first = len(self.evidence.images)
        return [
            Problem(UNREADABLE, first + i, 1.0, None, None, (), f"The file cannot be read: {reason}.")
            for i, (_, reason) in enumerate(self.evidence.failed)
        ]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that there are, in the order in which they are shown."""
        found = {problem.kind for problems in self.of_image.values() for problem in problems}
        return tuple(kind for kind in (*KINDS, UNREADABLE) if kind in found)

    def places(self, kind: str | None = None) -> tuple[int, ...]:
        """Places of the images with a problem of a kind, most doubtful first. None: of any kind, the first of each
        kind before the second ones.
        """
        return self._ranked[kind]

    @cached_property
    def _ranked(self) -> dict[str | None, tuple[int, ...]]:
        ranked: dict[str | None, tuple[int, ...]] = {}
        ranks: dict[int, tuple[int, int]] = {}
        for order, kind in enumerate(self.kinds):
            scores = {
                place: max(one.score for one in problems if one.kind == kind)
                for place, problems in self.of_image.items()
                if any(one.kind == kind for one in problems)
            }
            ranked[kind] = tuple(sorted(scores, key=lambda place: (-scores[place], place)))
            for rank, place in enumerate(ranked[kind]):
                ranks[place] = min(ranks.get(place, (rank, order)), (rank, order))
        ranked[None] = tuple(sorted(ranks, key=lambda place: (ranks[place], place)))
        return ranked

    def is_open(self, place: int, decisions: Mapping[int, Decision], kind: str | None = None) -> bool:
        """Whether a problem (of a kind) of an image still waits for a decision."""
        problems = self.of_image.get(place, ())
        return any(kind in (None, one.kind) and not self._is_settled(one, decisions) for one in problems)

    def _is_settled(self, problem: Problem, decisions: Mapping[int, Decision]) -> bool:
        """Whether decisions settle a problem. Any decision on an image does, but for pairs of duplicates.

        Another label settles a pair only if the two are in one split and then have the same label.
        """
        place, other = problem.index, problem.other
        if other is None:
            return place in decisions
        made = [decisions[one] for one in (place, other) if one in decisions]
        if any(one.do != "relabel" for one in made):
            return True
        if not made or self.images[place].split != self.images[other].split:
            return False
        return self.label_after(place, decisions.get(place)) == self.label_after(other, decisions.get(other))

    def label_after(self, place: int, made: Decision | None) -> str:
        """The label of an image after what was decided about it."""
        return (made and made.label) or self.images[place].label

    def suggestion(self, place: int) -> str | None:
        """The label that the image should perhaps have, None if there is none."""
        found = (one.suggested for one in self.of_image.get(place, ()) if one.suggested is not None)
        return next(found, None)

    def twin(self, place: int) -> int | None:
        """Place of the other image of a pair of duplicates."""
        return next((one.other for one in self.of_image.get(place, ()) if one.other is not None), None)

    def neighbors(self, place: int) -> tuple[int, ...]:
        """Places of similar labeled images, most similar first."""
        found = dict.fromkeys(near for one in self.of_image.get(place, ()) for near in one.neighbors)
        return tuple(near for near in found if near != place)[:MAX_NEIGHBORS]

    def kinds_of(self, place: int) -> tuple[str, ...]:
        """The kinds of problems of an image."""
        return tuple(dict.fromkeys(one.kind for one in self.of_image.get(place, ())))

    def reasons(self, place: int) -> tuple[str, ...]:
        """Why an image is shown, as sentences. An image may look like many others: of each kind, the first few."""
        told: dict[str, None] = {}
        problems = self.of_image.get(place, ())
        for kind in self.kinds_of(place):
            found = list(dict.fromkeys(sentence(one.reason) for one in problems if one.kind == kind))
            told |= dict.fromkeys(found[:MAX_REASONS])
            if len(found) > MAX_REASONS:
                told[f"And {len(found) - MAX_REASONS} more like this."] = None
        return tuple(told)

    def probabilities(self, place: int) -> dict[str, float]:
        """The held-out probability of each class, highest first; {} if nothing was predicted."""
        if place >= len(self.evidence.images):
            return {}
        row = self.evidence.probabilities[place]
        if not np.isfinite(row).all():
            return {}
        return {self.evidence.class_names[c]: float(row[c]) for c in np.argsort(-row, kind="stable")}

    def describe_kind(self, kind: str) -> dict[str, Any]:
        """Name, meaning and source of a kind, for people."""
        name, meaning = ABOUT[kind]
        return {"kind": kind, "name": name, "meaning": meaning, "source": KINDS.get(kind, _UNREADABLE_SOURCE)}


def sentence(reason: str) -> str:
    """Return a reason as a sentence: with a capital letter and a period."""
    return reason[:1].upper() + reason[1:].rstrip(".") + "."


def agreement(evidence: Evidence) -> tuple[float, int] | None:
    """Return the share of held-out predictions that agree with the label, and of how many; None without any."""
    known = np.isfinite(evidence.probabilities).all(axis=1)
    if not known.any():
        return None
    found = evidence.probabilities[known].argmax(axis=1) == evidence.ids[known]
    return float(found.mean()), int(known.sum())


def trust(evidence: Evidence) -> str:
    """Return in plain words how far the suggestions can be trusted."""
    found = agreement(evidence)
    if found is None:
        return "There are no held-out predictions: only duplicates, outliers and small classes were looked for."
    share, count = found
    told = f"Predictions by {evidence.source}, of images that the predictor has not seen, agree with {share:.0%} of "
    told += f"{count:,} labels."
    if share >= 0.9:
        return f"{told} Suggestions are usually worth a look; still, decide by the image."
    if share >= 0.7:
        return f"{told} Expect a good part of the suggestions to be wrong: decide by the image."
    return f"{told} Most suggestions will be wrong: use the list as an order in which to look, not as advice."
