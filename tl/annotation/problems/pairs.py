"""Problems of pairs: equal and nearly equal images in two splits or under two labels. The rule is `data.audit`'s."""

from __future__ import annotations

from collections.abc import Iterator

from tl.annotation.problems.evidence import Evidence
from tl.annotation.problems.problem import Problem
from tl.data.audit import equal_pairs, near_pairs
from tl.data.manifests import LabeledImage


def find_duplicates(evidence: Evidence) -> Iterator[Problem]:
    """Yield a problem for each pair: of the training image of two splits, or the image with the less probable label."""
    images, hashes = evidence.images, evidence.hashes
    for i, j in equal_pairs(images, hashes):
        yield _problem(evidence, i, j, 1.0, "the same file as")
    for i, j, similarity in near_pairs(images, hashes, evidence.features):
        yield _problem(evidence, i, j, min(similarity, 0.999), f"nearly the same image ({similarity:.2f}) as")


def _problem(evidence: Evidence, i: int, j: int, score: float, relation: str) -> Problem:
    index, other = _order(evidence, i, j)
    image, twin = evidence.images[index], evidence.images[other]
    suggested = twin.label if twin.label != image.label and not _is_likelier(evidence, index, other) else None
    faults = []
    if twin.label != image.label:
        faults.append(f"labeled '{image.label}' here and '{twin.label}' there")
    if twin.split != image.split:
        faults.append(f"in {_shown(image)} here and {_shown(twin)} there, so scores are too good")
    return Problem("duplicate", index, score, suggested, other, (), f"{relation} {twin.name}: {'; '.join(faults)}")


def _order(evidence: Evidence, i: int, j: int) -> tuple[int, int]:
    """The image to change first: of two splits the training image, else the one with the less probable label."""
    first, second = evidence.images[i], evidence.images[j]
    if first.split != second.split and "train" in (first.split, second.split):
        return (i, j) if first.split == "train" else (j, i)
    return (j, i) if _is_likelier(evidence, i, j) else (i, j)


def _is_likelier(evidence: Evidence, i: int, j: int) -> bool:
    """Whether the label of image `i` is more probable than that of `j`, for both images together; False if unknown."""
    both = evidence.probabilities[[i, j]].sum(axis=0)
    return bool(both[evidence.ids[i]] > both[evidence.ids[j]])


def _shown(image: LabeledImage) -> str:
    return image.split or "no split"
