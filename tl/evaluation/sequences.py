"""Accuracy of decisions on sequences of images, beside that of single images. Depends on numpy and voting only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.evaluation.metrics import Metrics, accuracy_interval
from tl.runtime.ensembles.voting import Voting, vote

if TYPE_CHECKING:
    from tl.evaluation.evaluate import Evaluation, Row

COLUMNS = ("sequences", "sequence_top1_accuracy", "sequence_ci_low", "sequence_ci_high")


@dataclass(frozen=True)
class _Sequence:
    """The images of one sequence at `places`, all of one class, and their group."""

    places: list[int]
    true_id: int
    group: str


def score_sequences(
    true_ids: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    sequences: Sequence[str],
    groups: Sequence[str],
    voting: Voting = "soft",
) -> Metrics:
    """Score one decision per sequence, by a vote of its images, as in `vote_sequence`.

    `true_ids` (N,); `probabilities` (N, C); `sequences`, `groups`: of each image, '' for an image alone. Sequences with
    images of several classes have no true class and are left out. Returns the number of sequences, and their top-1
    accuracy with its 95% interval, in which those of one group are not independent; nothing without sequences.
    """
    found = [each for each in _collect(true_ids, sequences, groups) if each is not None]
    if not any(sequences) or not found:
        return {}
    decided = [vote(probabilities[each.places][None], voting).label_ids[0] for each in found]
    right = np.array([label == each.true_id for label, each in zip(decided, found, strict=True)])
    low, high = accuracy_interval(right, [each.group for each in found])
    return dict(zip(COLUMNS, (len(found), float(right.mean()), low, high), strict=True))


def sequence_groups(images: Sequence[LabeledImage]) -> list[str]:
    """Return the group of each image's sequence, '' for a sequence whose group is itself."""
    return ["" if image.group == image.sequence else image.group for image in images]


def sequences_of(images: Sequence[LabeledImage]) -> list[str]:
    """Return the sequence of each image; '' for an image alone, but boxes of one image are a sequence.

    All are '' if no image is in a sequence.
    """
    if not any(image.sequence for image in images):
        return [""] * len(images)
    return [image.sequence or ("" if image.box is None else image.path) for image in images]


def count_mixed(true_ids: NDArray[np.int64], sequences: Sequence[str]) -> int:
    """Return the number of sequences with images of several classes."""
    return sum(each is None for each in _collect(true_ids, sequences, sequences))


def sequence_rows(
    evaluation: Evaluation, rows: Sequence[Row], images: Sequence[LabeledImage], voting: Voting
) -> tuple[list[Row], int]:
    """Return the rows of an evaluation with `COLUMNS`, None where a row has no output of its own, and `count_mixed`.

    `images`: those that were evaluated, in order.
    """
    readable = [images[place] for place in evaluation.places]
    sequences, groups = sequences_of(readable), sequence_groups(readable)
    scored = {
        (each.model, each.voting): score_sequences(evaluation.true_ids, each.probabilities, sequences, groups, voting)
        for each in evaluation.decided
    }
    nothing = dict.fromkeys(COLUMNS)
    return [{**row, **nothing, **scored.get((row["model"], row["voting"]), {})} for row in rows], count_mixed(
        evaluation.true_ids, sequences
    )


def _collect(true_ids: NDArray[np.int64], sequences: Sequence[str], groups: Sequence[str]) -> list[_Sequence | None]:
    """Return the sequences in order, None for those with images of several classes."""
    places: dict[str | int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        places.setdefault(sequence or i, []).append(i)
    return [
        _Sequence(own, int(true_ids[own[0]]), groups[own[0]]) if len(set(true_ids[own].tolist())) == 1 else None
        for own in places.values()
    ]
