"""Self-training of a solved head: fit it again, also to its own answers for images without labels.

Depends on scikit-learn, never on torch. Held-out logits of a self-trained head come from heads that are self-trained
without the held-out labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl.data.splits import Fold
from tl.evaluation.calibration import softmax
from tl.trainer.heads.solvers import CrossValidated, Labeled, LinearHead, Solver, solve_with

# Share of the images without labels whose answers count: those with the largest margins. benchmarks/RESULTS.md has the
# choice.
SHARE = 0.9


def self_train(
    solver: Solver,
    head: LinearHead,
    labeled: Labeled,
    unlabeled: NDArray[np.floating],
    seed: int,
    *,
    is_balanced: bool = False,
) -> LinearHead:
    """Fit a head with the C of `head` to labeled features (N, D), and to the answers of `head` for `unlabeled` (M, D).

    Only the answers with the largest margins between the two most probable classes count.

    Source: Lee 2013, "Pseudo-Label"; Cascante-Bonilla et al. 2021, "Curriculum Labeling", for the share of the most
    certain answers and for fitting anew.
    """
    logits = head.logits(unlabeled)
    probabilities = np.sort(softmax(logits), axis=1)
    margins = probabilities[:, -1] - probabilities[:, -2]
    certain = margins >= np.quantile(margins, 1 - SHARE)
    features = np.concatenate([labeled[0], unlabeled[certain]])
    ids = np.concatenate([labeled[1], logits.argmax(axis=1)[certain]])
    return solve_with(solver, (features, ids), head.c, seed, is_balanced=is_balanced)


def self_train_folds(
    solver: Solver,
    found: CrossValidated,
    data: Labeled,
    folds: Sequence[Fold],
    unlabeled: NDArray[np.floating],
    seed: int,
    *,
    is_balanced: bool = False,
) -> CrossValidated:
    """Self-train the head of `found`, and for its held-out logits one head for each of `folds`.

    The C is that of `found` everywhere: it was chosen on the labels alone, from few values.
    """
    features, ids = data
    held_out = np.empty_like(found.held_out)
    for own, held in folds:
        part = features[own], ids[own]
        head = solve_with(solver, part, found.head.c, seed, is_balanced=is_balanced)
        again = self_train(solver, head, part, unlabeled, seed, is_balanced=is_balanced)
        held_out[held] = again.logits(features[held])
    head = self_train(solver, found.head, data, unlabeled, seed, is_balanced=is_balanced)
    return CrossValidated(head, held_out, found.trials)
