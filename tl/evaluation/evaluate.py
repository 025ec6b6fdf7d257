"""Evaluate model files and ensembles on labeled images: every member and voting rule, test-time augmentation, and
fitted, cross-validated vote weights.

Contains no command line and no HTML pages.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.data.class_folders import SPLIT_NAMES, SPLITS
from tl.data.manifests import LabeledImage, class_ids
from tl.errors import DataError
from tl.evaluation.metrics import classification_metrics, mcnemar_p, wilson_interval
from tl.evaluation.ranks import rank_columns, rank_scores
from tl.evaluation.sites import score_sites, sites_of
from tl.evaluation.vote_weights import FOLDS, fit_weights, held_out_votes, log_loss, select_members
from tl.progress import Progress
from tl.runtime.ensembles.ensemble import Ensemble
from tl.runtime.ensembles.taxonomy import Taxonomy
from tl.runtime.ensembles.voting import VOTINGS, vote
from tl.runtime.predictor import Predictor
from tl.runtime.results import Classification, Failure
from tl.runtime.session import Session

COLUMNS = ("model", "voting", "n", "top1_accuracy", "ci_low", "ci_high", "macro_f1", "ece")
ENSEMBLE_COLUMNS = (*COLUMNS, "mcnemar_p")
SITE_COLUMNS = ("model", "voting", "site", "n", "top1_accuracy", "ci_low", "ci_high")

Row = dict[str, Any]
_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Decided:
    """Output of a model or a vote for N images: `probabilities` (N, C), and the decided `label_ids` (N,)."""

    model: str
    voting: str
    probabilities: NDArray[np.float32]
    label_ids: _Ids


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation, one row per model and voting rule.

    `rows`: the keys of `metrics.json`, plus model and voting. The rows of an ensemble end with the oracle, which is
    correct wherever any member is. They contain `mcnemar_p`: the probability of such a difference from the best member
    if both are equally good. `paths`: the N readable images; `places`: their places among all images; `true_ids` int64
    (N,); `members` float32 (N, M, C): each member's probabilities, in the order of `class_names`. `weights`: of the
    votes, None for equal ones. `decided`: the outputs behind each row except the oracle's. `sites`: of each image, ''
    if unknown. `taxonomy`: groups of the classes; rows then have the scores of `ranks`.
    """

    rows: list[Row]
    failures: list[Failure]
    paths: list[str]
    true_ids: _Ids
    members: NDArray[np.float32]
    member_names: tuple[str, ...]
    class_names: tuple[str, ...]
    weights: Sequence[float] | None
    decided: tuple[Decided, ...]
    sites: tuple[str, ...] = ()
    taxonomy: Taxonomy | None = None
    places: tuple[int, ...] = ()

    def site_rows(self) -> list[Row]:
        """One row per site for each of `decided`, with the column `site`, lowest accuracy first; none without sites."""
        return [
            {"model": each.model, "voting": each.voting} | {name: vars(score)[name] for name in SITE_COLUMNS[2:]}
            for each in self.decided
            for score in score_sites(self.sites, each.label_ids == self.true_ids)
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """The row keys that a table shows."""
        own = ENSEMBLE_COLUMNS if self.members.shape[1] > 1 else COLUMNS
        return own if self.taxonomy is None else (*own, *rank_columns(self.taxonomy))


def check_unseen(sessions: Iterable[Session], split: str) -> None:
    """Raise `DataError` if a model was also fitted to the images of the split `split`, "val" if any.

    Its scores on them are too optimistic to fit weights or calibrate with. The contract records this as `refit` among
    the options of the training run.
    """
    for session in sessions:
        contract = session.contract
        if split == "val" and contract is not None and contract.provenance.config.get("refit") is True:
            raise DataError(
                f"{session.path}: its head was also fitted to the validation images (refit), so its scores on them are "
                "too optimistic: use other images, or train it again without refit"
            )


def choose_split(images: Sequence[LabeledImage], asked: str | None) -> tuple[str, list[LabeledImage]]:
    """Return the name and images of the requested split; by default test, else val, else everything.

    Raises `DataError`.
    """
    present = [split for split in SPLITS if any(image.split == split for image in images)]
    asked = asked and SPLIT_NAMES.get(asked.casefold(), asked)
    if asked == "all" or (asked is None and not present):
        return "all", list(images)
    name = asked or next(split for split in ("test", "val", "train") if split in present)
    chosen = [image for image in images if image.split == name]
    if not chosen:
        raise DataError(
            f"the data has no '{name}' split (found: {', '.join(present) or 'none'}); split all uses every image",
            options=["split=all"],
        )
    return name, chosen


def evaluate(
    predictor: Predictor[Classification],
    images: Sequence[LabeledImage],
    progress: Progress,
    merged: Predictor[Classification] | None = None,
) -> Evaluation:
    """Predict every image once, and score members and votes on the readable images.

    `merged`: a merged file that gets its own row. Raises `DataError` for a class that the models do not have, or if no
    image is readable.
    """
    names = predictor.class_names
    if merged is not None and set(merged.class_names) != set(names):
        raise DataError(f"{_name(merged)}: has different classes than the other models")
    if merged is not None and not merged.member_names[1:]:
        raise DataError(f"{_name(merged)}: not a merged file")
    true_ids = class_ids(images, names)
    groups, sites = [image.group for image in images], sites_of(images)
    progress.start("evaluating", len(images), "images")
    results: list[Classification | Failure] = []
    of_merged: list[Classification | Failure] = []
    sources = [image.source for image in images]
    beside = merged.predict_iter(sources) if merged else itertools.repeat(None)
    for result, other in zip(predictor.predict_iter(sources), beside, strict=False):
        progress.advance()
        results.append(result)
        if other is not None:
            of_merged.append(other)
    if merged is None:
        return score_results(predictor, true_ids, results, groups=groups, sites=sites)
    decided = _decided_alone(merged, of_merged, names)
    return score_results(predictor, true_ids, results, decided, groups=groups, sites=sites)


def score_results(
    predictor: Predictor[Classification],
    true_ids: Sequence[int],
    results: Sequence[Classification | Failure],
    merged: Decided | None = None,
    *,
    groups: Sequence[str] = (),
    sites: Sequence[str] = (),
) -> Evaluation:
    """Compute rows from the results of `predictor` for images of known classes; `groups`, `sites`: of each image.

    Raises `DataError` if all failed.
    """
    is_good = [isinstance(result, Classification) for result in results]
    groups = list(itertools.compress(groups, is_good))
    good = [(i, result) for i, result in zip(true_ids, results, strict=True) if isinstance(result, Classification)]
    failures = [result for result in results if isinstance(result, Failure)]
    if not good:
        raise DataError(f"none of the {len(results)} images can be read, first: {failures[0].error}")
    names, weights = predictor.class_names, predictor.ensemble.key["weights"]
    truth = np.array([true_id for true_id, _ in good])
    members = np.stack([_members(result) for _, result in good])
    if predictor.with_votes:
        decided = [*_decide_members(members, predictor.member_names, weights), *([merged] if merged else [])]
        rows = _ensemble_rows(decided, members, truth, names, groups)
        scored = rows[: len(decided)]
    else:
        decided = [_decided_alone(predictor, results, names)]
        rows = scored = [_row(each, truth, names, groups) for each in decided]
    taxonomy = predictor.ensemble.taxonomy if isinstance(predictor.ensemble, Ensemble) else None
    if taxonomy is not None:
        for row, each in zip(scored, decided, strict=True):
            row |= rank_scores(each.probabilities, truth, taxonomy)
        for row in rows[len(scored) :]:
            row |= dict.fromkeys(rank_columns(taxonomy))
    return Evaluation(
        rows=rows,
        failures=failures,
        paths=[result.path for _, result in good],
        true_ids=truth,
        members=members,
        member_names=predictor.member_names,
        class_names=names,
        weights=weights,
        decided=tuple(decided),
        sites=tuple(itertools.compress(sites, is_good)),
        taxonomy=taxonomy,
        places=tuple(itertools.compress(itertools.count(), is_good)),
    )


@dataclass(frozen=True)
class FittedVotes:
    """Vote weights fitted to the images of an evaluation, by member; 0 for a member that is left out.

    `row`: a soft vote in which each image's weights were fitted without it, as in the rows of an `Evaluation`.
    `log_loss`, `equal_log_loss`: of that vote, and with equal weights.
    """

    weights: dict[str, float]
    row: Row
    log_loss: float
    equal_log_loss: float


def fit_votes(evaluation: Evaluation, *, select: bool) -> FittedVotes:
    """Fit soft-vote weights, or with `select` choose members greedily. Raises `DataError` for too few images."""
    members, truth = evaluation.members, evaluation.true_ids
    if members.shape[1] < 2 or len(truth) < 2 * FOLDS:
        raise DataError(f"fitting vote weights requires at least two members and {2 * FOLDS} images")
    fit = select_members if select else fit_weights
    held_out = held_out_votes(members, truth, fit)
    scores = classification_metrics(truth, held_out, evaluation.class_names)
    row = {"model": "ensemble", "voting": "soft, selected" if select else "soft, fitted", **scores}
    row["mcnemar_p"] = mcnemar_p(held_out.argmax(axis=1) == truth, _best_member(members, truth))
    if evaluation.taxonomy is not None:
        row |= rank_scores(held_out, truth, evaluation.taxonomy)
    weights = dict(zip(evaluation.member_names, fit(members, truth).tolist(), strict=True))
    return FittedVotes(weights, row, log_loss(held_out, truth), log_loss(members.mean(axis=1), truth))


def _name(predictor: Predictor[Classification]) -> str:
    """The name of a single file."""
    return Path(predictor.ensemble.sessions[0].path).stem


def _members(result: Classification) -> NDArray[np.float32]:
    """Each member's probabilities for an image, (M, C)."""
    return result.probabilities[None] if result.votes is None else result.votes.probabilities


def _decided_alone(
    predictor: Predictor[Classification], results: Sequence[Classification | Failure], names: tuple[str, ...]
) -> Decided:
    """The output of a single file, with classes in the order of `names`."""
    good = [result for result in results if isinstance(result, Classification)]
    columns = [predictor.class_names.index(name) for name in names]
    return Decided(
        model=_name(predictor),
        voting=str(predictor.ensemble.key["voting"]) if predictor.member_names[1:] else "",
        probabilities=np.stack([result.probabilities[columns] for result in good]),
        label_ids=np.array([names.index(result.label) for result in good]),
    )


def _decide_members(
    members: NDArray[np.float32], member_names: Sequence[str], weights: Sequence[float] | None
) -> list[Decided]:
    """The output of each member alone, and of each voting rule."""
    own = zip(member_names, np.moveaxis(members, 1, 0), strict=True)
    alone = [Decided(name, "", said, np.asarray(said.argmax(axis=1))) for name, said in own]
    votes = [(rule, vote(members, rule, weights)) for rule in VOTINGS]
    return alone + [Decided("ensemble", rule, voted.probabilities, voted.label_ids) for rule, voted in votes]


def _row(decided: Decided, truth: _Ids, names: tuple[str, ...], groups: Sequence[str]) -> Row:
    scores = classification_metrics(truth, decided.probabilities, names, decided.label_ids, groups)
    return {"model": decided.model, "voting": decided.voting, **scores}


def _best_member(members: NDArray[np.float32], truth: _Ids) -> NDArray[np.bool_]:
    """Where the most accurate member is correct."""
    right = members.argmax(axis=2) == truth[:, None]
    return np.asarray(right[:, right.sum(axis=0).argmax()])


def _ensemble_rows(
    decided: Sequence[Decided],
    members: NDArray[np.float32],
    truth: _Ids,
    names: tuple[str, ...],
    groups: Sequence[str],
) -> list[Row]:
    """Rows of each member and rule, and of the oracle."""
    best = _best_member(members, truth)
    rows = [
        _row(each, truth, names, groups) | {"mcnemar_p": mcnemar_p(each.label_ids == truth, best)} for each in decided
    ]
    any_right = (members.argmax(axis=2) == truth[:, None]).any(axis=1)
    low, high = wilson_interval(int(any_right.sum()), len(truth))
    rows.append(
        {
            **{"model": "oracle", "voting": "", "n": len(truth), "top1_accuracy": float(any_right.mean())},
            **{"ci_low": low, "ci_high": high, "macro_f1": None, "ece": None, "mcnemar_p": None},
        }
    )
    return rows


TTA_COLUMNS = ("tta", "gain", "gain_p", "images_per_s")
# Maximum number of images per turn; with few images there are eight turns.
_TURN, _TURNS = 64, 8


def evaluate_tta(
    plain: Predictor[Classification],
    augmented: Predictor[Classification],
    images: Sequence[LabeledImage],
    progress: Progress,
) -> Evaluation:
    """Evaluate with and without test-time augmentation, on the same models.

    Each row of `plain` except the oracle's is followed by the matching row of `augmented`. Both have `tta` and, for a
    whole model or ensemble, `images_per_s` including decoding. Rows of `augmented` also have `gain`, the difference in
    accuracy, and `gain_p`: the probability of such a difference if both are equally good (McNemar's exact test). Raises
    as `evaluate`.
    """
    true_ids = class_ids(images, plain.class_names)
    progress.start("evaluating", len(images), "images")
    both = (plain, augmented)
    results: tuple[list[Classification | Failure], ...] = ([], [])
    seconds = [0.0, 0.0]
    for each in both:  # the first inference of a session takes longer
        each.predict_batch([image.source for image in images[:1]])
    size = min(_TURN, math.ceil(len(images) / _TURNS))
    for turn, start in enumerate(range(0, len(images), size)):
        chunk = images[start : start + size]
        # Alternate, so that file caching and other load affect both equally.
        for which in (turn % 2, 1 - turn % 2):
            started = time.monotonic()
            results[which].extend(both[which].predict_iter([image.source for image in chunk]))
            seconds[which] += time.monotonic() - started
        progress.advance(len(chunk))
    before, after = (score_results(each, true_ids, found) for each, found in zip(both, results, strict=True))
    rates = [len(images) / duration for duration in seconds]
    kinds = ",".join(augmented.ensemble.key["tta"])
    rows: list[Row] = []
    for row, new, old_said, new_said in zip(before.rows, after.rows, before.decided, after.decided, strict=False):
        is_whole = old_said.model == "ensemble" or len(before.decided) == 1
        speeds = rates if is_whole else (None, None)
        rows.append(row | {"tta": "", "gain": None, "gain_p": None, "images_per_s": speeds[0]})
        gain = new["top1_accuracy"] - row["top1_accuracy"]
        told = {"tta": kinds, "gain": gain, "gain_p": _p(old_said, new_said, before), "images_per_s": speeds[1]}
        rows.append(new | told)
    oracle = [row | dict.fromkeys(TTA_COLUMNS) for row in before.rows[len(before.decided) :]]
    return replace(before, rows=[*rows, *oracle])


def _p(before: Decided, after: Decided, evaluation: Evaluation) -> float:
    truth = evaluation.true_ids
    return mcnemar_p(after.label_ids == truth, before.label_ids == truth)
