"""Score model files on labelled pictures: each member and every voting rule, decoded once. Needs no torch.

Knows the runtime, data sets and metrics. Does not know training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from tl.trainer.vote_fitting import FOLDS, fit_weights, held_out_votes, log_loss, select_members

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


def evaluate(
    predictor: Predictor[Classification],
    pictures: Sequence[Picture],
    progress: Progress,
    merged: Predictor[Classification] | None = None,
) -> Evaluation:
    """Predict every picture once and score members and votes on those that can be read.

    `merged`: a merged file that gets a row beside them. Raises `DataError` for a class the models do not know, or if no
    picture can be read.
    """
    names = predictor.class_names
    if merged is not None and set(merged.class_names) != set(names):
        raise DataError(f"{_name(merged)}: has other classes than the models beside it")
    true_ids = class_ids(pictures, names)
    progress.start("evaluating", len(pictures), "pictures")
    good: list[tuple[int, Classification]] = []
    of_merged: list[Classification] = []
    failures: list[Failure] = []
    paths = [picture.path for picture in pictures]
    beside = merged.predict_iter(paths) if merged else itertools.repeat(None)
    for true_id, result, other in zip(true_ids, predictor.predict_iter(paths), beside, strict=False):
        progress.advance()
        if isinstance(result, Failure):
            failures.append(result)
            continue
        good.append((true_id, result))
        if isinstance(other, Classification):
            of_merged.append(other)
    if not good:
        raise DataError(f"none of the {len(pictures)} pictures can be read, first: {failures[0].error}")
    truth = np.array([true_id for true_id, _ in good])
    results = [result for _, result in good]
    evaluation = Evaluation(
        rows=[],
        failures=failures,
        paths=[result.path for result in results],
        true_ids=truth,
        members=np.stack([_members(result) for result in results]),
        member_names=predictor.member_names,
        class_names=names,
        weights=predictor.ensemble.key["weights"],
    )
    if results[0].votes is None:
        rows = [{"model": _name(predictor), "voting": "", **_scores(truth, results, names)}]
    else:
        rows = _rows(evaluation)
        if merged is not None:
            row = {"model": _name(merged), "voting": merged.ensemble.key["voting"], **_scores(truth, of_merged, names)}
            right = np.array([names.index(result.label) for result in of_merged]) == truth
            rows.insert(-1, row | {"mcnemar_p": mcnemar_p(right, _best_member(evaluation))})
    return replace(evaluation, rows=rows)


@dataclass(frozen=True)
class FittedVotes:
    """Vote weights fitted to an evaluation's pictures: by member, 0 for who is left out. `row`: a soft vote by weights
    that each picture had no part in, as the rows of an `Evaluation`. `log_loss`, `equal_log_loss`: of that vote, and
    with equal weights.
    """

    weights: dict[str, float]
    row: Row
    log_loss: float
    equal_log_loss: float


def fit_votes(evaluation: Evaluation, *, select: bool) -> FittedVotes:
    """Fit weights of a soft vote, or with `select` choose members greedily. Raises `DataError` for too few pictures."""
    members, truth = evaluation.members, evaluation.true_ids
    if members.shape[1] < 2 or len(truth) < 2 * FOLDS:
        raise DataError(f"vote weights need at least two members and {2 * FOLDS} pictures to be fitted")
    fit = select_members if select else fit_weights
    held_out = held_out_votes(members, truth, fit)
    scores = classification_metrics(truth, held_out, evaluation.class_names)
    row = {"model": "ensemble", "voting": "soft, selected" if select else "soft, fitted", **scores}
    row["mcnemar_p"] = mcnemar_p(held_out.argmax(axis=1) == truth, _best_member(evaluation))
    weights = dict(zip(evaluation.member_names, fit(members, truth).tolist(), strict=True))
    return FittedVotes(weights, row, log_loss(held_out, truth), log_loss(members.mean(axis=1), truth))


def _name(predictor: Predictor[Classification]) -> str:
    """Of a single file."""
    return Path(predictor.ensemble.sessions[0].path).stem


def _members(result: Classification) -> NDArray[np.float32]:
    """What each member says of a picture, (M, C)."""
    return result.probabilities[None] if result.votes is None else result.votes.probabilities


def _scores(truth: _Ids, results: Sequence[Classification], names: tuple[str, ...]) -> Row:
    """Of decided pictures, whatever the order of their own classes."""
    columns = [results[0].class_names.index(name) for name in names]
    probabilities = np.stack([result.probabilities[columns] for result in results])
    return classification_metrics(truth, probabilities, names, np.array([names.index(r.label) for r in results]))


def _best_member(evaluation: Evaluation) -> NDArray[np.bool_]:
    """Where the member is right that is so most often."""
    right = evaluation.members.argmax(axis=2) == evaluation.true_ids[:, None]
    return np.asarray(right[:, right.sum(axis=0).argmax()])


def _rows(evaluation: Evaluation) -> list[Row]:
    """Of each member and rule, and the oracle."""
    truth, members, names = evaluation.true_ids, evaluation.members, evaluation.class_names
    best = _best_member(evaluation)
    rows = []
    for m, name in enumerate(evaluation.member_names):
        p = mcnemar_p(members[:, m].argmax(axis=1) == truth, best)
        scores = classification_metrics(truth, members[:, m], names)
        rows.append({"model": name, "voting": "", **scores, "mcnemar_p": p})
    for rule in VOTINGS:
        decided = vote(members, rule, evaluation.weights)
        scores = classification_metrics(truth, decided.probabilities, names, decided.label_ids)
        p = mcnemar_p(decided.label_ids == truth, best)
        rows.append({"model": "ensemble", "voting": rule, **scores, "mcnemar_p": p})
    any_right = (members.argmax(axis=2) == truth[:, None]).any(axis=1)
    low, high = wilson_interval(int(any_right.sum()), len(truth))
    rows.append(
        {
            **{"model": "oracle", "voting": "", "n": len(truth), "top1_accuracy": float(any_right.mean())},
            **{"ci_low": low, "ci_high": high, "macro_f1": None, "ece": None, "mcnemar_p": None},
        }
    )
    return rows
