"""Score model files on labelled pictures: each member and every voting rule, decoded once. Needs no torch.

Knows the runtime, data sets and metrics. Does not know training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl.errors import DataError
from tl.runtime.predictor import Predictor
from tl.runtime.results import Classification, Failure
from tl.runtime.voting import VOTINGS, vote
from tl.trainer.data import SPLITS, Picture, class_ids
from tl.trainer.metrics import classification_metrics
from tl.trainer.progress import Progress

COLUMNS = ("model", "voting", "n", "top1_accuracy", "ci_low", "ci_high", "macro_f1", "ece")


@dataclass(frozen=True)
class Evaluation:
    """`rows`: one for each model and voting rule, with the keys of `metrics.json` beside model and voting."""

    rows: list[dict[str, Any]]
    failures: list[Failure]


def choose_split(pictures: Sequence[Picture], asked: str | None) -> tuple[str, list[Picture]]:
    """The asked split, or test, else val, else everything. Returns its name and pictures. Raises `DataError`."""
    present = [split for split in SPLITS if any(picture.split == split for picture in pictures)]
    if asked == "all" or (asked is None and not present):
        return "all", list(pictures)
    name = asked or next(split for split in ("test", "val", "train") if split in present)
    chosen = [picture for picture in pictures if picture.split == name]
    if not chosen:
        raise DataError(
            f"the data has no '{name}' split (found: {', '.join(present) or 'none'}); --split all takes all"
        )
    return name, chosen


def evaluate(predictor: Predictor[Classification], pictures: Sequence[Picture], progress: Progress) -> Evaluation:
    """Predict every picture once and score members and votes on those that can be read.

    Raises `DataError` for a class the models do not know, or if no picture can be read.
    """
    true_ids = class_ids(pictures, predictor.class_names)
    progress.start("evaluating", len(pictures), "pictures")
    good: list[tuple[int, Classification]] = []
    failures: list[Failure] = []
    results = predictor.predict_iter([picture.path for picture in pictures])
    for true_id, result in zip(true_ids, results, strict=True):
        progress.advance()
        if isinstance(result, Failure):
            failures.append(result)
        else:
            good.append((true_id, result))
    if not good:
        raise DataError(f"none of the {len(pictures)} pictures can be read, first: {failures[0].error}")
    truth = np.array([true_id for true_id, _ in good])
    rows = _member_rows(predictor, truth, [result for _, result in good])
    return Evaluation(rows, failures)


def _member_rows(
    predictor: Predictor[Classification], truth: np.ndarray[Any, np.dtype[np.int64]], results: Sequence[Classification]
) -> list[dict[str, Any]]:
    names = predictor.class_names
    if results[0].votes is None:
        probabilities = np.stack([result.probabilities for result in results])
        return [
            {"model": predictor.member_names[0], "voting": "", **classification_metrics(truth, probabilities, names)}
        ]
    members = np.stack([result.votes.probabilities for result in results if result.votes is not None])
    rows = [
        {"model": name, "voting": "", **classification_metrics(truth, members[:, m], names)}
        for m, name in enumerate(predictor.member_names)
    ]
    for rule in VOTINGS:
        decided = vote(members, rule, predictor.ensemble.key["weights"])
        scores = classification_metrics(truth, decided.probabilities, names, decided.label_ids)
        rows.append({"model": "ensemble", "voting": rule, **scores})
    return rows
