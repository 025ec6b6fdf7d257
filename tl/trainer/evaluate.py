"""Score model files on labelled pictures: each member and every voting rule, decoded once. Needs no torch.

Knows the runtime, data sets and metrics. Does not know training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError
from tl.runtime.predictor import Predictor
from tl.runtime.results import Classification, Failure
from tl.runtime.voting import VOTINGS, vote
from tl.trainer.data import SPLITS, Picture, class_ids
from tl.trainer.metrics import classification_metrics, mcnemar_p, wilson_interval
from tl.trainer.progress import Progress

COLUMNS = ("model", "voting", "n", "top1_accuracy", "ci_low", "ci_high", "macro_f1", "ece")
ENSEMBLE_COLUMNS = (*COLUMNS, "mcnemar_p")

Row = dict[str, Any]
_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """`rows`: one for each model and voting rule, with the keys of `metrics.json` beside model and voting.

    Those of an ensemble end with the oracle, which is right wherever any member is, and have `mcnemar_p`: how likely
    such a difference from the best member is if both are equally good. `paths`: of the N pictures that could be read;
    `true_ids` int64 (N,); `members` float32 (N, M, C): what each member says of them, by `class_names`.
    `weights`: of their votes, None for equal ones.
    """

    rows: list[Row]
    failures: list[Failure]
    paths: list[str]
    true_ids: _Ids
    members: NDArray[np.float32]
    member_names: tuple[str, ...]
    class_names: tuple[str, ...]
    weights: Sequence[float] | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of the rows that a table shows."""
        return ENSEMBLE_COLUMNS if self.members.shape[1] > 1 else COLUMNS


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
    members = np.stack([_members(result) for _, result in good])
    return Evaluation(
        rows=_rows(predictor, truth, members),
        failures=failures,
        paths=[result.path for _, result in good],
        true_ids=truth,
        members=members,
        member_names=predictor.member_names,
        class_names=predictor.class_names,
        weights=predictor.ensemble.key["weights"],
    )


def _members(result: Classification) -> NDArray[np.float32]:
    """What each member says of a picture, (M, C)."""
    return result.probabilities[None] if result.votes is None else result.votes.probabilities


def _rows(predictor: Predictor[Classification], truth: _Ids, members: NDArray[np.float32]) -> list[Row]:
    names = predictor.class_names
    rows = [
        {"model": name, "voting": "", **classification_metrics(truth, members[:, m], names)}
        for m, name in enumerate(predictor.member_names)
    ]
    if len(rows) == 1:
        return rows
    member_right = members.argmax(axis=2) == truth[:, None]
    best = member_right[:, member_right.sum(axis=0).argmax()]
    for row, right in zip(rows, member_right.T, strict=True):
        row["mcnemar_p"] = mcnemar_p(right, best)
    for rule in VOTINGS:
        decided = vote(members, rule, predictor.ensemble.key["weights"])
        scores = classification_metrics(truth, decided.probabilities, names, decided.label_ids)
        p = mcnemar_p(decided.label_ids == truth, best)
        rows.append({"model": "ensemble", "voting": rule, **scores, "mcnemar_p": p})
    any_right = member_right.any(axis=1)
    low, high = wilson_interval(int(any_right.sum()), len(truth))
    rows.append(
        {
            **{"model": "oracle", "voting": "", "n": len(truth), "top1_accuracy": float(any_right.mean())},
            **{"ci_low": low, "ci_high": high, "macro_f1": None, "ece": None, "mcnemar_p": None},
        }
    )
    return rows
