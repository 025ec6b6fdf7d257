"""Find the problems of a labeled data set in the evidence on its images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

import numpy as np

from tl.annotation.problems.evidence import Evidence
from tl.annotation.problems.pairs import find_duplicates
from tl.annotation.problems.problem import KINDS, Problem
from tl.annotation.problems.similarity import find_nearest, outlier_distances
from tl.data.audit import FEW_IMAGES
from tl.evaluation.label_errors import find_label_errors
from tl.runtime.ensembles.voting import mutual_information

# Neighbors of a problem, and neighbors of which the last sets the distance of an outlier. With fewer, several images
# of one foreign kind vouch for each other (benchmarks/RESULTS.md, "Wrong labels").
NEIGHBORS, OUTLIER_NEIGHBORS = 8, 20
# Share of the images that are shown as the least usual ones, also if none is beyond the fence.
_LEAST_USUAL = 0.01


def find_problems(evidence: Evidence, kinds: Sequence[str] = tuple(KINDS)) -> list[Problem]:
    """Return the problems of the given kinds, in the order of `KINDS`, and most doubtful first within a kind.

    An image may have problems of several kinds. Raises ValueError for an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kinds of problems: {', '.join(sorted(unknown))}")
    found: list[Problem] = []
    for kind, find in _FINDERS.items():
        if kind in kinds and evidence.images:
            found += sorted(find(evidence), key=lambda problem: -problem.score)
    return _with_neighbors(evidence, found)


def _find_labels(evidence: Evidence) -> Iterator[Problem]:
    rows = np.flatnonzero(np.isfinite(evidence.probabilities).all(axis=1))
    if len(rows) == 0 or len(evidence.class_names) < 2:
        return
    probabilities = evidence.probabilities[rows]
    found = find_label_errors(probabilities, evidence.ids[rows])
    for row in found.ranked.tolist():
        index, suggested = int(rows[row]), int(found.suggested[row])
        name, probability = evidence.class_names[suggested], float(probabilities[row, suggested])
        by = "the model" if evidence.is_by_run[index] else "cross-validation"
        reason = (
            f"labeled '{evidence.images[index].label}', to which {by} gives a probability of "
            f"{found.quality[row]:.2f}, and '{name}' {probability:.2f}"
        )
        yield Problem("label", index, 1 - float(found.quality[row]), name, None, (), reason)


def _find_errors(evidence: Evidence) -> Iterator[Problem]:
    for index in np.flatnonzero(evidence.is_by_run).tolist():
        row = evidence.probabilities[index]
        predicted = int(row.argmax())
        if predicted != evidence.ids[index]:
            name, confidence = evidence.class_names[predicted], float(row[predicted])
            reason = f"labeled '{evidence.images[index].label}', but the model predicts '{name}' ({confidence:.2f})"
            yield Problem("error", index, confidence, name, None, (), reason)


def _find_disagreements(evidence: Evidence) -> Iterator[Problem]:
    """Images to which members give different labels.

    By the Jensen-Shannon divergence of the members' probabilities, which is the mutual information of class and member,
    divided by its largest possible value: that of members that are each sure of another class.
    """
    if evidence.members is None:
        return
    rows = np.flatnonzero(np.isfinite(evidence.members).all(axis=(0, 2)))
    members, voted = evidence.members.transpose(1, 0, 2), evidence.members.argmax(axis=2)
    divergences = np.zeros(len(members))
    divergences[rows] = mutual_information(members[rows]) / np.log(max(2, min(members.shape[1:])))
    for index in rows.tolist():
        votes = Counter(evidence.class_names[c] for c in voted[:, index].tolist())
        if len(votes) == 1:
            continue
        mean = evidence.members[:, index].mean(axis=0)
        name = evidence.class_names[int(mean.argmax())]
        shown = ", ".join(f"{count} of {len(voted)} models say '{label}'" for label, count in votes.most_common())
        suggested = name if name != evidence.images[index].label else None
        reason = f"labeled '{evidence.images[index].label}': {shown}"
        yield Problem("disagreement", index, float(min(divergences[index], 1)), suggested, None, (), reason)


def _find_rare(evidence: Evidence) -> Iterator[Problem]:
    """Images of classes with fewer than `FEW_IMAGES` training images; images without a split are training images."""
    counts = Counter(image.label for image in evidence.images if image.split in ("", "train"))
    labels = sorted({image.label for image in evidence.images})
    usual = [name for name in labels if counts[name] >= FEW_IMAGES]
    thin = {name: get_close_matches(name, usual, n=1, cutoff=0.8) for name in labels if counts[name] < FEW_IMAGES}
    for index, image in enumerate(evidence.images):
        if image.label not in thin:
            continue
        count, alike = counts[image.label], thin[image.label]
        typo = f"; its name resembles '{alike[0]}'" if alike else ""
        images = "image" if count == 1 else "images"
        reason = f"class '{image.label}' has {count} training {images}, fewer than {FEW_IMAGES}{typo}"
        yield Problem("rare", index, 1 - count / FEW_IMAGES, alike[0] if alike else None, None, (), reason)


def _find_outliers(evidence: Evidence) -> Iterator[Problem]:
    """The least usual images, and all beyond the upper fence of the distances (Tukey 1977)."""
    count = len(evidence.images)
    neighbors = min(OUTLIER_NEIGHBORS, max(1, count // 10), count - 1)
    if neighbors < 1:
        return
    distances = outlier_distances(evidence.features, neighbors)
    low, high = np.percentile(distances, (25, 75))
    usual = np.sort(distances)[-max(1, round(_LEAST_USUAL * count))]
    limit = min(high + 1.5 * (high - low), usual)
    for index in np.flatnonzero((distances >= limit) & (distances > np.median(distances))).tolist():
        share = float((distances <= distances[index]).mean())
        reason = f"less similar to its {neighbors} nearest images than {_percent(share)} of all images are to theirs"
        yield Problem("outlier", index, float(min(distances[index], 1.0)), None, None, (), reason)


def _percent(share: float) -> str:
    return f"{100 * min(share, 0.999):.1f}%".replace(".0%", "%")


def _with_neighbors(evidence: Evidence, problems: Sequence[Problem]) -> list[Problem]:
    """The problems with the most similar other images."""
    places = np.unique([problem.index for problem in problems]).astype(np.intp)
    nearest = find_nearest(evidence.features, places, NEIGHBORS)
    row_of = {place: row for row, place in enumerate(places.tolist())}
    return [
        dataclasses.replace(problem, neighbors=tuple(nearest[row_of[problem.index]].tolist())) for problem in problems
    ]


_FINDERS: dict[str, Callable[[Evidence], Iterator[Problem]]] = {
    "label": _find_labels,
    "duplicate": find_duplicates,
    "disagreement": _find_disagreements,
    "error": _find_errors,
    "rare": _find_rare,
    "outlier": _find_outliers,
}
