"""Accuracy at each site, such as a camera or a hospital, and at sites that a classifier has not seen.

Works on labels and sites, independently of models and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.data.splits import Fold
from tl.evaluation.metrics import wilson_interval

# With more, sites are rather individuals, and fitting a head without each takes long.
MAX_SITES = 50
# Images per group on average, below which groups are specimens rather than sites.
_LEAST = 10


@dataclass(frozen=True)
class SiteScore:
    """One site: `n` images; top-1 accuracy with its 95% Wilson interval. `left_out_top1_accuracy`: of a head that was
    fitted to the other sites only; None if it was not measured, or if a class has images at this site only.
    """

    site: str
    n: int
    top1_accuracy: float
    ci_low: float
    ci_high: float
    left_out_top1_accuracy: float | None = None


def sites_of(images: Sequence[LabeledImage]) -> list[str]:
    """The site of each image, '' if unknown. Without sites, the groups, if they are few and large enough for that.

    A sequence is no site, nor is an image with many boxes.
    """
    sites = [image.site for image in images]
    counts = Counter(group for group, _ in {(image.group, image.path) for image in images})
    is_site = [image.group != image.sequence and counts[image.group] > 1 for image in images]
    groups = [image.group if good else "" for image, good in zip(images, is_site, strict=True)]
    if any(sites):
        return sites
    count = len(set(groups) - {""})
    return groups if 2 <= count <= MAX_SITES and len(groups) >= _LEAST * count else [""] * len(groups)


def score_sites(
    sites: Sequence[str], is_right: NDArray[np.bool_], left_out: NDArray[np.floating] | None = None
) -> list[SiteScore]:
    """Score each site of N images, lowest accuracy first; none unless there are 2 to `MAX_SITES` sites.

    `is_right` (N,): whether the label is right. `left_out` (N,): the same for heads that were fitted without the
    image's site, NaN where there is none.
    """
    found = []
    names = sorted(set(sites) - {""})
    if not 2 <= len(names) <= MAX_SITES:
        return []
    for name in names:
        at = np.array([site == name for site in sites])
        low, high = wilson_interval(int(is_right[at].sum()), int(at.sum()))
        alone = None if left_out is None or np.isnan(left_out[at]).any() else float(left_out[at].mean())
        found.append(SiteScore(name, int(at.sum()), float(is_right[at].mean()), low, high, alone))
    return sorted(found, key=lambda score: (score.top1_accuracy, score.site))


def site_folds(sites: Sequence[str], true_ids: NDArray[np.int64]) -> list[Fold]:
    """(indices of the other images, of a site's images) for each of 2 to `MAX_SITES` sites whose absence leaves images
    of every class; images without a site are always among the others.
    """
    names = sorted(set(sites) - {""})
    if not 2 <= len(names) <= MAX_SITES:
        return []
    at = np.array(sites)
    folds = [(np.flatnonzero(at != name), np.flatnonzero(at == name)) for name in names]
    count = len(set(true_ids.tolist()))
    return [(rest, held) for rest, held in folds if len(set(true_ids[rest].tolist())) == count]
