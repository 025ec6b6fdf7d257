"""Scores of the groups that classes belong to, such as genus and family. Depends on numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.metrics import Metrics, macro_f1
from tl.runtime.ensembles.taxonomy import Taxonomy, group_probabilities

_SCORES = ("top1_accuracy", "macro_f1")


def rank_columns(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return the names of the scores: `RANK_top1_accuracy`, `RANK_macro_f1` for each rank above the classes."""
    return tuple(f"{rank}_{score}" for rank in taxonomy.ranks[1:] for score in _SCORES)


def rank_scores(probabilities: NDArray[np.floating], true_ids: NDArray[np.int64], taxonomy: Taxonomy) -> Metrics:
    """Score the most probable group at each rank above the classes. `probabilities` (N, C), `true_ids` (N,).

    Macro F1 is the mean over the groups that have images.
    """
    scores: Metrics = {}
    for rank, groups in zip(taxonomy.ranks[1:], taxonomy.groups, strict=True):
        names, group_ids = np.unique(np.array(groups), return_inverse=True)
        best = group_probabilities(probabilities.astype(np.float32), groups).argmax(axis=1)
        true, found = group_ids[true_ids].astype(np.int64), group_ids[best].astype(np.int64)
        scores[f"{rank}_top1_accuracy"] = float((true == found).mean())
        scores[f"{rank}_macro_f1"] = macro_f1(true, found, len(names))
    return scores
