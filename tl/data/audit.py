"""Detect faults of a data set that could mislead: the same or nearly the same image in two splits, and small classes.

Works on labels, content hashes and embeddings. Opens no images and never imports torch. Findings are warnings; `data`
raises errors for faults that make training impossible.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.data.class_folders import SPLITS
from tl.data.features import directions
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
    by_hash: dict[str, list[LabeledImage]] = defaultdict(list)
    for image, digest in zip(images, hashes, strict=True):
        by_hash[digest].append(image)
    findings = []
    for first, *others in by_hash.values():
        for other in others:
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
    train = [i for i, image in enumerate(images) if image.split == "train"]
    others = [i for i, image in enumerate(images) if image.split != "train"]
    found = directions(embeddings, embeddings[train])
    findings = []
    for start in range(0, len(others), _ROWS_AT_ONCE):
        chunk = others[start : start + _ROWS_AT_ONCE]
        similarity = found[chunk] @ found[train].T
        for row, column in enumerate(similarity.argmax(axis=1)):
            i, j = train[column], chunk[row]
            if similarity[row, column] >= NEAR_DUPLICATE and hashes[i] != hashes[j]:
                detail = f"similar images ({similarity[row, column]:.3f}) in train and {images[j].split}"
                findings.append(Finding("near duplicate across splits", images[i].name, images[j].name, detail))
    return findings


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
