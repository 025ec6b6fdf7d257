"""Detect faults of a data set that could mislead: the same or nearly the same image in two splits, and small classes.

Works on labels, content hashes and embeddings. Opens no images and never imports torch. Findings are warnings; `data`
raises errors for faults that make training impossible.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.data.class_folders import SPLITS
from tl.data.features import directions, standard_scale
from tl.data.manifests import LabeledImage

Kind = Literal[
    "duplicate across splits",
    "labels disagree",
    "near duplicate across splits",
    "few images",
    "no images",
    "imbalanced classes",
    "no points",
    "point outside",
    "equal points",
    "odd shape",
    "bit depth",
    "channels",
    "transparency",
    "no checksum",
]

FEW_IMAGES = 10
# Largest class divided by the smallest one. Unweighted training then rarely predicts the small one when in doubt.
IMBALANCED = 5
# Cosine similarity of standardized embeddings. On PACS cartoons with mobilenet_v2, the four pairs above this that were
# inspected each show one drawing, mirrored, scaled or with another watermark.
NEAR_DUPLICATE = 0.8
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Finding:
    """One row of `findings.csv`. `path` and `other` are the images, or "" for a finding about a class."""

    kind: Kind
    path: str
    other: str
    detail: str


def find_class_faults(images: Sequence[LabeledImage], class_names: Sequence[str]) -> list[Finding]:
    """Find classes with fewer than `FEW_IMAGES` training images, and classes missing from a split."""
    counts = Counter((image.split, image.label) for image in images)
    findings = [
        Finding("few images", "", "", f"class '{name}' has {counts['train', name]} training images")
        for name in class_names
        if counts["train", name] < FEW_IMAGES
    ]
    for split in SPLITS[1:]:
        if not any(image.split == split for image in images):
            continue
        absent = [name for name in class_names if not counts[split, name]]
        findings += [
            Finding(
                "no images", "", "", f"split {split} has no images of class '{name}', so that class is not evaluated"
            )
            for name in absent
        ]
    return findings


def find_imbalance(images: Sequence[LabeledImage], cure: str) -> list[Finding]:
    """Find classes with less than a fifth of the training images of the largest class. `cure`: what helps."""
    counts = Counter(image.label for image in images if image.split == "train")
    if not counts:
        return []
    (largest, most), (rarest, fewest) = counts.most_common()[0], counts.most_common()[-1]
    if most < IMBALANCED * fewest:
        return []
    rare = sum(most >= IMBALANCED * count for count in counts.values())
    others = f" ({rare - 1} more classes are as rare)" if rare > 1 else ""
    detail = f"class '{rarest}' has {fewest} training images, class '{largest}' {most}{others}: {cure}"
    return [Finding("imbalanced classes", "", "", detail)]


def find_duplicates(images: Sequence[LabeledImage], hashes: Sequence[str]) -> list[Finding]:
    """Find files with equal content in two splits, or under two labels."""
    findings = []
    for i, j in equal_pairs(images, hashes):
        first, other = images[i], images[j]
        if other.label != first.label:
            labels = f"identical files are labeled '{first.label}' and '{other.label}'"
            findings.append(Finding("labels disagree", first.name, other.name, labels))
        if other.split != first.split:
            splits = f"identical files in {first.split} and {other.split}"
            findings.append(Finding("duplicate across splits", first.name, other.name, splits))
    return findings


def find_near_duplicates(
    images: Sequence[LabeledImage], hashes: Sequence[str], embeddings: NDArray[np.float32]
) -> list[Finding]:
    """Match images outside the training split with the most similar training image, except those with equal content.

    `embeddings` float32 (N, D) of a pretrained trunk, in the order of `images`.
    """
    is_train = np.array([image.split == "train" for image in images], np.bool_)
    train, others = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    standardized = directions(embeddings, standard_scale(embeddings[train]))
    found = _most_similar(standardized, others, train, lambda rows: np.ones((len(rows), len(train)), np.bool_))
    findings = []
    for j, i, similarity in found:
        if hashes[i] != hashes[j]:
            detail = f"similar images ({similarity:.3f}) in train and {images[j].split}"
            findings.append(Finding("near duplicate across splits", images[i].name, images[j].name, detail))
    return findings


def equal_pairs(images: Sequence[LabeledImage], hashes: Sequence[str]) -> list[tuple[int, int]]:
    """Places of images with equal content in two splits or under two labels: the first of them, and another one."""
    by_hash: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(hashes):
        by_hash[digest].append(i)
    return [(first, j) for first, *others in by_hash.values() for j in others if _conflict(images[first], images[j])]


def near_pairs(
    images: Sequence[LabeledImage], hashes: Sequence[str], embeddings: NDArray[np.float32]
) -> list[tuple[int, int, float]]:
    """Places of images that are nearly equal, but in two splits or under two labels, and their similarity.

    Each image is matched with the most similar such image, except those with equal content; the earlier one comes
    first. `embeddings` float32 (N, D) of a pretrained trunk, in the order of `images`.
    """
    if not images:
        return []
    every = np.arange(len(images))
    splits, labels, contents = (
        np.unique(values, return_inverse=True)[1]
        for values in ([i.split for i in images], [i.label for i in images], list(hashes))
    )

    def allowed(rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        differs = (splits[rows, None] != splits) | (labels[rows, None] != labels)
        return np.asarray(differs & (contents[rows, None] != contents))

    train = [i for i, image in enumerate(images) if image.split == "train"] or every
    found = _most_similar(directions(embeddings, standard_scale(embeddings[train])), every, every, allowed)
    return list({(min(i, j), max(i, j)): (min(i, j), max(i, j), similarity) for i, j, similarity in found}.values())


def _conflict(first: LabeledImage, other: LabeledImage) -> bool:
    return first.label != other.label or first.split != other.split


def summarize(findings: Sequence[Finding], where: str = "") -> list[str]:
    """One line per kind of finding, with its count and first example. `where`: " in FILE" that lists them all."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    lines = []
    for kind, found in by_kind.items():
        first = found[0]
        places = f"{' and '.join(filter(None, (first.path, first.other)))}: " if first.path else ""
        more = f" (and {len(found) - 1} more{where})" if len(found) > 1 else ""
        lines.append(f"warning: {kind}: {places}{first.detail}{more}")
    return lines


def _most_similar(
    standardized: NDArray[np.float32],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    allowed: Callable[[NDArray[np.intp]], NDArray[np.bool_]],
) -> Iterator[tuple[int, int, float]]:
    """For each image of `rows`, the most similar allowed one of `columns` and the similarity, if that is high enough.

    `allowed`: some of `rows` (n,) -> whether each may be matched with each of `columns`, (n, len(columns)).
    """
    if not len(columns):
        return
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        chunk = rows[start : start + _ROWS_AT_ONCE]
        similarity = np.where(allowed(chunk), standardized[chunk] @ standardized[columns].T, -np.inf)
        best = similarity.argmax(axis=1)
        for row, column in enumerate(best.tolist()):
            if similarity[row, column] >= NEAR_DUPLICATE:
                yield int(chunk[row]), int(columns[column]), float(similarity[row, column])
