"""Scores of held-out pictures for a model file, from which the set of classes for any coverage follows. Needs no torch.

Knows probabilities and labels. How scores are counted, `tl.runtime.caution` knows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tl.runtime.caution import conformal_scores
from tl.runtime.contract import Conformal

# More tell no more, and would make the file larger.
MAX_SCORES = 1000


def conformal_of(probabilities: NDArray[np.float32], true_ids: NDArray[np.int64], source: str) -> Conformal:
    """From probabilities (N, C) of pictures held out, and their classes (N,)."""
    scores = conformal_scores(probabilities)[np.arange(len(true_ids)), true_ids]
    if len(scores) > MAX_SCORES:
        scores = np.random.default_rng(0).permutation(scores)[:MAX_SCORES]
    return Conformal(tuple(sorted(float(score) for score in scores)), source)
