"""A problem of a data set, and the kinds of problems with their sources. Knows no images."""

from __future__ import annotations

from dataclasses import dataclass

# Kind -> what it means, in one sentence, with its source. The order is that of `find_problems`.
KINDS: dict[str, str] = {
    "label": (
        "Labels that held-out predictions contradict with confidence: confident learning (Northcutt, Jiang & Chuang "
        "2021)."
    ),
    "duplicate": (
        "Equal files (same SHA-256) and nearly equal images that have different labels or lie in different splits, "
        "where they make a score too good."
    ),
    "disagreement": (
        "Images on which the members of an ensemble disagree, by the Jensen-Shannon divergence of their probabilities "
        "(Lin 1991; McCallum & Nigam 1998)."
    ),
    "error": "Errors of the trained model on images that it was not trained on, most confident first.",
    "rare": "Images of classes with too few images to learn or to score the class.",
    "outlier": (
        "Images unlike all others, by the distance to their nearest neighbors in the features (Ramaswamy, Rastogi & "
        "Shim 2000; Sun et al. 2022)."
    ),
}


@dataclass(frozen=True)
class Problem:
    """One doubtful image.

    `kind`: a key of `KINDS`. `index`: the image's place in `Evidence.images`. `score`: 0 to 1, 1 is most doubtful;
    comparable within a kind only. `suggested`: the label it should perhaps have; None if there is none. `other`: place
    of the other image of a pair of duplicates, else None. `neighbors`: places of the most similar other images, most
    similar first. `reason`: a sentence in plain English.
    """

    kind: str
    index: int
    score: float
    suggested: str | None
    other: int | None
    neighbors: tuple[int, ...]
    reason: str
