"""What a run's held-out pictures say of its confidence, for the model file: conformal scores, and the unknown score.

Knows run folders and networks. Does not know how sets and scores are counted (`tl.runtime.caution`, `unknown`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl.exporter.comparison import spread
from tl.exporter.conformal import conformal_of
from tl.exporter.unknown import MAX_KNOWN, Known, UnknownFit, class_ids_of, fit_unknown
from tl.runtime.contract import Conformal, UnknownFacts
from tl.runtime.recipe import Recipe
from tl.trainer.network import Network
from tl.trainer.progress import Progress
from tl.trainer.run_embeddings import embed_pictures
from tl.trainer.runs import Run


def measure_conformal(run: Run, class_names: Sequence[str]) -> Conformal | None:
    """Scores of the true classes, from `predictions_val.csv`; of a thousand pictures drawn where there are more."""
    rows = run.rows("predictions_val.csv")
    if not rows:
        return None
    probabilities = np.array([[row[f"p:{name}"] for name in class_names] for row in rows], np.float32)
    true_ids = class_ids_of([row["true_label"] for row in rows], class_names)
    return conformal_of(probabilities, true_ids, "validation split")


def measure_unknown(
    run: Run, network: Network, recipe: Recipe, class_names: Sequence[str], progress: Progress, false_alarm: float
) -> tuple[UnknownFit, UnknownFacts] | None:
    """Fit the score to training pictures that are still there, None (and said so) where they are too few.

    `false_alarm`: share of validation pictures that may lie above its limit.
    """
    train, val = (
        embed_pictures(run, network, recipe, spread(run.pictures(split), MAX_KNOWN), progress)
        for split in ("train", "val")
    )
    if not train.pictures or not val.pictures:
        progress.say("no unknown score: the run's training or validation pictures are gone")
        return None
    labels = class_ids_of([picture.label for picture in train.pictures], class_names)
    found = fit_unknown(Known(train.embeddings, labels, val.embeddings), len(class_names), false_alarm)
    if found is None:
        progress.say("no unknown score: too few pictures of a class, or an embedding too large or too alike to measure")
    return found
