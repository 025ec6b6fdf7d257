"""Decide on a sequence of images of one subject, such as a burst, a film or the photos of a specimen, by a vote.

Pure functions on results, thread-safe. Which images form a sequence is decided in `sources.sequences`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.runtime.ensembles.selective import OOD, REJECTED, SelectivePrediction, reasons
from tl.runtime.ensembles.taxonomy import Ranked, Taxonomy, most_special
from tl.runtime.ensembles.voting import Voting, vote
from tl.runtime.results import Classification, Failure, NoBox

NO_IMAGE = "no image of the sequence could be read"
_ALL_UNLIKE = f"{OOD} of every image above the limit"


@dataclass(frozen=True)
class SequenceResult:
    """Decision on one sequence. `probabilities`: float32 (C,) in the order of `class_names`, the combined ones.

    `label`, `confidence`, `reason`, `ranked`: as in `Classification`. `images`: number of images that voted.
    `rejected`: images without a vote because they are unlike the training images or show none of the classes that
    can occur. `failed`: unreadable images.
    `agreement`: share of the voting images whose most probable class is the decided one. `error`: why there is no
    decision, then `probabilities` is empty; else "".
    `boxes`: with boxes, the number of boxes that voted, None without; `images` then counts the images of which a box
    voted, `rejected` boxes, and `failed` images that could not be read or of which a box is invalid. `agreement` is of
    boxes. A sequence without any box has no label and no `probabilities`, and `reason` says so.
    """

    sequence: str
    label: str
    confidence: float
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    images: int
    rejected: int
    failed: int
    agreement: float
    reason: str = ""
    ranked: Ranked | None = None
    error: str = ""
    boxes: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many images and boxes voted and did not, in the order of the columns."""
        boxes = {} if self.boxes is None else {"boxes": self.boxes}
        return {"images": self.images, **boxes, "rejected": self.rejected, "failed": self.failed}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = self.counts
        if self.error:
            return {"sequence": self.sequence, **counts, "error": self.error}
        if not self.label:
            return {"sequence": self.sequence, **counts, "reason": self.reason}
        plain: dict[str, Any] = {
            "sequence": self.sequence,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(zip(self.class_names, self.probabilities.tolist(), strict=True)),
            **counts,
            "agreement": self.agreement,
        }
        if self.reason:
            plain["reason"] = self.reason
        if self.ranked is not None:
            ranked = self.ranked
            plain |= {"rank": ranked.rank, "rank_label": ranked.name, "rank_confidence": ranked.confidence}
        return plain


def vote_sequence(
    results: Iterable[Classification | Failure],
    voting: Voting = "soft",
    *,
    sequence: str = "",
    min_confidence: float | None = None,
    taxonomy: Taxonomy | None = None,
) -> SequenceResult:
    """Combine the results of a sequence's images into one decision, in which each image has one vote.

    `voting`: the rules of `vote`, with images as members: mean of the probabilities, majority of the most probable
    classes, or highest probability. A `Failure` has no vote and is counted; neither has an image that was rejected as
    unlike the training images, unless all are: then the label is "?". `min_confidence`: label a decision of lower
    confidence "?". `taxonomy`: with `min_confidence`, also give the most special group of classes that is sure enough.
    Each box of an image has a vote of its own, and a `NoBox` has none and is not counted as failed.
    Raises ValueError without results, or if their class names differ.
    """
    listed = list(results)
    if not listed:
        raise ValueError("a sequence has at least one image")
    read = [result for result in listed if isinstance(result, Classification)]
    has_boxes = any(isinstance(result, NoBox) or result.box is not None for result in listed)
    failures = [result for result in listed if isinstance(result, Failure) and not isinstance(result, NoBox)]
    failed = _count_images(failures, has_boxes)
    if not read:
        return _without_votes(listed, sequence, failed, has_boxes)
    names = read[0].class_names
    if any(result.class_names != names for result in read):
        raise ValueError("the images of a sequence have results of different classes")
    able = [result for result in read if OOD not in result.reason and result.probabilities.any()]
    voters = able or [result for result in read if result.probabilities.any()]
    if not voters:  # of classes that cannot occur
        return _undecided(read, sequence, failed, has_boxes)
    members = np.stack([result.probabilities for result in voters])[None]
    decided = vote(np.asarray(members, np.float32), voting)
    label_id, probabilities = int(decided.label_ids[0]), decided.probabilities[0]
    confidence = probabilities[label_id]
    why = reasons(confidence[None], None, None, SelectivePrediction(min_confidence=min_confidence))
    reason = "; ".join(filter(None, [why[0], "" if able else _ALL_UNLIKE]))
    ranked = None
    if taxonomy is not None and min_confidence is not None:
        (ranked,) = most_special(decided.probabilities, names, taxonomy, min_confidence, decided.label_ids)
        ranked = ranked if able else Ranked("", REJECTED, ranked.confidence)
    return SequenceResult(
        sequence=sequence,
        label=REJECTED if reason else names[label_id],
        confidence=float(confidence),
        class_names=names,
        probabilities=probabilities,
        images=_count_images(able, has_boxes),
        rejected=len(read) - len(able),
        failed=failed,
        agreement=float((members[0].argmax(axis=1) == label_id).mean()),
        reason=reason,
        ranked=ranked,
        boxes=len(able) if has_boxes else None,
    )


def _count_images(results: Sequence[Classification | Failure], has_boxes: bool) -> int:
    """Return the number of images: one per result, or with boxes one per path, as far as they have one."""
    if not has_boxes:
        return len(results)
    named = [result.path for result in results if result.path]
    return len(set(named)) + len(results) - len(named)


def _without_votes(
    listed: list[Classification | Failure], sequence: str, failed: int, has_boxes: bool
) -> SequenceResult:
    """Return what is known of a sequence without a classified image or box: it has no box, or nothing could be read."""
    empty = next((result for result in listed if isinstance(result, NoBox)), None)
    return SequenceResult(
        *(sequence, "", 0.0, (), np.zeros(0, np.float32), 0, 0, failed, 0.0),
        reason="" if empty is None else empty.error,
        error=NO_IMAGE if empty is None else "",
        boxes=0 if has_boxes else None,
    )


def _undecided(read: list[Classification], sequence: str, failed: int, has_boxes: bool) -> SequenceResult:
    first = read[0]
    none = np.zeros(len(first.class_names), np.float32)
    return SequenceResult(
        *(sequence, REJECTED, 0.0, first.class_names, none, 0, len(read), failed, 0.0),
        reason=first.reason,
        boxes=0 if has_boxes else None,
    )
