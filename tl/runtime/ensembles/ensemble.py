"""Combine classifiers into one prediction: align class names, share inputs between equal preprocessings, vote.

Depends on sessions, contracts and voting. Image order and threads are handled by `predictor`, file formats elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ModelFileError
from tl.runtime.ensembles.selective import (
    OOD,
    REJECTED,
    SelectivePrediction,
    prediction_sets,
    reasons,
)
from tl.runtime.ensembles.supported import check_selective, check_views, possible_classes, set_limit, shared_crop
from tl.runtime.ensembles.taxonomy import Ranked, Taxonomy, most_special
from tl.runtime.ensembles.voting import (
    Vote,
    Voting,
    agreement,
    entropy,
    margin,
    mutual_information,
    restrict,
    soften,
    vote,
)
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import Inputs, Preparer, TtaKind, build_views
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Box
from tl.runtime.model_file.contract import Contract
from tl.runtime.results import ClassFields, Classification, MemberVotes
from tl.runtime.session import Session

ClassRule = Literal["same", "union"]
_IMPOSSIBLE = "no class of the list has any probability"


@dataclass(frozen=True)
class _Judged:
    """A batch: the decision, the members' probabilities (N, M, C), and each image's OOD score (N,) if available."""

    decided: Vote
    members: NDArray[np.float32]
    ood_score: NDArray[np.float32] | None


class Ensemble:
    """One or more classification models that vote. Thread-safe.

    `class_names` follows the first member's order. With `classes="union"`, further classes of later members are
    appended, and a class that a member lacks has probability 0 in its vote. A single merged file votes by its own rule,
    inside its graph; its members are the models it was merged from. `tta`: each member's probabilities are averaged
    over the views of an image before voting. Raises `EnsembleError` if the members are incompatible.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        voting: Voting = "soft",
        weights: Sequence[float] | None = None,
        classes: ClassRule = "same",
        selective: SelectivePrediction | None = None,
        tta: Sequence[TtaKind] = (),
        only: Sequence[str] | None = None,
    ) -> None:
        check_weights(sessions, weights)
        self.sessions = tuple(sessions)
        self.contracts = tuple(_classification_contract(session) for session in sessions)
        self.voting, self.weights = voting, weights
        self.member_names = member_names([session.path for session in sessions])
        self.class_names = _shared_class_names(self.contracts, self.member_names, classes)
        self.keypoint_names: tuple[str, ...] = ()
        self.preprocessings: tuple[Preprocessing, ...] = tuple(
            dict.fromkeys(contract.preprocessing for contract in self.contracts)
        )
        self._columns = [self._class_columns(contract) for contract in self.contracts]
        self.taxonomy = _shared_taxonomy(self.contracts, self.class_names)
        merged = self.contracts[0].ensemble if len(sessions) == 1 else None
        self._votes_inside = merged is not None
        if merged is not None:
            self.voting, self.weights = merged.voting, merged.weights
            self.member_names = tuple(member.name for member in merged.members)
        self.selective = selective or SelectivePrediction()
        if self.selective.rejects and REJECTED in self.class_names:
            raise EnsembleError(
                f"{sessions[0].path}: its class '{REJECTED}' cannot be told from a rejected label: accept every label"
            )
        self._tta, self._views = tuple(tta), build_views(tta)
        check_views(self.sessions, self._tta)
        self.crop = shared_crop(self.sessions, self.contracts)
        self.preparer = Preparer(self.preprocessings, self._views, self.crop)
        facts = [contract.ood for contract in self.contracts]
        self._has_ood_score = None not in facts
        self._ood_limit = facts[0].limit if len(facts) == 1 and facts[0] is not None else None
        check_selective(self.sessions, self.contracts, self.selective)
        if self._tta and self.selective.coverage is not None:
            raise EnsembleError("coverage is calibrated without test-time augmentation: leave out one of the two")
        self._set_limit = set_limit(self.contracts[0], self.selective)
        self._only = None if only is None else possible_classes(self.class_names, only)
        if self._only is not None and self.selective.coverage is not None:
            raise EnsembleError("coverage is calibrated for all classes: leave out coverage, or the list of classes")

    @property
    def num_views(self) -> int:
        """Number of inputs run per image."""
        return len(self._views)

    def member_probabilities(self, inputs: Mapping[Preprocessing, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Run all members. `inputs`: preprocessing -> uint8 (N * V, H, W, 3), the V views of each image in sequence.

        Returns float32 (N, M, C) in the order of `class_names`.
        """
        return self.run_members(inputs, [])[0]

    def members_of(self, inputs: Mapping[Preprocessing, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Like `member_probabilities`; for a merged file, return the probabilities of its own members."""
        if not self._votes_inside:
            return self.member_probabilities(inputs)
        (members,) = self.sessions[0].run(inputs[self.preprocessings[0]], ["member_probabilities"])
        return self._mean_of_views(members)

    def run_members(
        self, inputs: Mapping[Preprocessing, NDArray[np.uint8]], further: Sequence[str]
    ) -> tuple[NDArray[np.float32], list[list[NDArray[np.float32]]]]:
        """Like `member_probabilities`; also return each member's values of the outputs `further` for whole images."""
        batch = len(next(iter(inputs.values()))) // len(self._views)
        stacked = np.zeros((batch, len(self.sessions), len(self.class_names)), np.float32)
        others: list[list[NDArray[np.float32]]] = [[] for _ in further]
        for m, (session, contract) in enumerate(zip(self.sessions, self.contracts, strict=True)):
            probabilities, *found = session.run(inputs[contract.preprocessing], ["probabilities", *further])
            _check_finite(session, probabilities)
            stacked[:, m, self._columns[m]] = self._mean_of_views(probabilities)
            for kept, values in zip(others, found, strict=True):
                kept.append(values[:: len(self._views)])
        return stacked, others

    def decide(self, member_probabilities: NDArray[np.float32]) -> Vote:
        """Vote over float32 (N, M, C)."""
        return vote(member_probabilities, self.voting, self.weights)

    @property
    def key(self) -> dict[str, Any]:
        """The settings that results depend on, besides the model files."""
        return {
            "voting": self.voting,
            "weights": None if self.weights is None else list(self.weights),
            "class_names": self.class_names,
            "selective": vars(self.selective),
            "tta": list(self._tta),
            "only": None if self._only is None else self._only.tolist(),
        }

    def fields(self, *, with_votes: bool) -> ClassFields:
        """Return the fields of the results."""
        return ClassFields(
            self.class_names,
            self.member_names if with_votes else (),
            with_set=self.selective.coverage is not None,
            with_ood_score=self._has_ood_score,
            with_reason=self.selective.rejects or self._only is not None,
            with_rank=self._gives_ranks,
        )

    @property
    def _gives_ranks(self) -> bool:
        return self.taxonomy is not None and self.selective.min_confidence is not None

    def _rank(self, decided: Vote, why: Sequence[str]) -> Sequence[Ranked | None]:
        """The most special sure group of each image, none for images unlike the training images."""
        least = self.selective.min_confidence
        if self.taxonomy is None or least is None:
            return [None] * len(why)
        found = most_special(decided.probabilities, self.class_names, self.taxonomy, least, decided.label_ids)
        return [
            Ranked("", REJECTED, one.confidence) if OOD in text else one for one, text in zip(found, why, strict=True)
        ]

    def prepare(self, source: ImageSource, name: str, box: Box | None = None) -> Inputs:
        """Decode an image, or a box of it, into the members' inputs. Raises `ImageReadError`."""
        return self.preparer(source, box)

    def stack(self, prepared: Sequence[Inputs]) -> Inputs:
        """Combine prepared images into a batch: preprocessing -> uint8 (N * V, H, W, 3), views of an image adjacent."""
        return {
            preprocessing: np.concatenate([inputs[preprocessing] for inputs in prepared])
            for preprocessing in self.preprocessings
        }

    def results(
        self, names: Sequence[str], batch: Inputs, *, with_votes: bool, pad_to: int = 0
    ) -> list[Classification]:
        """Predict a batch of prepared images. The last image is repeated until the batch has `pad_to` images."""
        if not names:
            return []
        views = len(self._views)
        batch = {preprocessing: pad_batch(inputs, views, pad_to * views) for preprocessing, inputs in batch.items()}
        judged = self._judge_alone(batch, with_votes) if len(self.sessions) == 1 else self._judge_together(batch)
        decided = judged.decided if self._only is None else restrict(judged.decided, self._only)
        probabilities, label_ids = decided.probabilities, decided.label_ids
        confidence = probabilities[np.arange(len(label_ids)), label_ids]
        why = reasons(confidence, judged.ood_score, self._ood_limit, self.selective)
        if self._only is not None:
            why = [text or _IMPOSSIBLE * (not sure) for text, sure in zip(why, confidence.tolist(), strict=True)]
        sets = None if self._set_limit is None else prediction_sets(probabilities, self._set_limit)
        votes = self._member_votes(judged) if with_votes else [None] * len(label_ids)
        ranked = self._rank(decided, why)
        # Convert whole columns to Python numbers: converting one value costs as much as building its row.
        labels, sure = label_ids.tolist(), confidence.tolist()
        unknown = None if judged.ood_score is None else judged.ood_score.tolist()
        return [
            Classification(
                path=name,
                label=REJECTED if why[n] else self.class_names[labels[n]],
                confidence=sure[n],
                class_names=self.class_names,
                probabilities=probabilities[n],
                votes=votes[n],
                class_set=None if sets is None else self._set_names(sets[n], probabilities[n]),
                ood_score=None if unknown is None else unknown[n],
                reason=why[n],
                ranked=ranked[n],
            )
            for n, name in enumerate(names)
        ]

    def _judge_together(self, batch: Mapping[Preprocessing, NDArray[np.uint8]]) -> _Judged:
        members, unknown = self.run_members(batch, ["ood_score"] if self._has_ood_score else [])
        return _Judged(self.decide(members), members, mean_ood_score(unknown[0]) if unknown else None)

    def _judge_alone(self, batch: Mapping[Preprocessing, NDArray[np.uint8]], with_votes: bool) -> _Judged:
        """Predict with a single file; compute the member outputs of a merged file only if they are needed."""
        (session,) = self.sessions
        has_views = len(self._views) > 1
        wanted = {"probabilities": True, "label": self._votes_inside}
        wanted["member_probabilities"] = self._votes_inside and (with_votes or has_views)
        wanted["ood_score"] = self._has_ood_score
        names = [name for name, is_wanted in wanted.items() if is_wanted]
        found = dict(zip(names, session.run(batch[self.preprocessings[0]], names), strict=True))
        _check_finite(session, found["probabilities"])
        unknown = found["ood_score"][:: len(self._views)] if self._has_ood_score else None  # whole images only
        probabilities = self._mean_of_views(found["probabilities"])
        members = self._mean_of_views(found["member_probabilities"]) if "member_probabilities" in found else None
        if members is not None and has_views:  # repeat the graph's vote on the members' means over views
            decided = self.decide(members)
            softened = soften(decided.probabilities, self.contracts[0].temperature)
            return _Judged(Vote(softened, decided.label_ids), members, unknown)
        label_ids = found["label"] if self._votes_inside else probabilities.argmax(axis=1)
        decided = Vote(probabilities, label_ids.astype(np.int64, copy=False))
        return _Judged(decided, probabilities[:, None] if members is None else members, unknown)

    def _mean_of_views(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Average over views: (N * V, ...) -> (N, ...); unchanged for a single view."""
        count = len(self._views)
        if count == 1:
            return probabilities
        grouped = probabilities.reshape(-1, count, *probabilities.shape[1:])
        return np.asarray(grouped.mean(axis=1, dtype=np.float32), np.float32)

    def _member_votes(self, judged: _Judged) -> list[MemberVotes]:
        members, decided = judged.members, judged.decided
        member_ids = members.argmax(axis=2)
        columns = (
            member_ids.tolist(),
            members,
            agreement(member_ids, decided.label_ids).tolist(),
            entropy(decided.probabilities).tolist(),
            mutual_information(members, self.weights).tolist(),
            margin(decided.probabilities).tolist(),
        )
        return [
            MemberVotes(tuple([self.class_names[i] for i in ids]), *values)
            for ids, *values in zip(*columns, strict=True)
        ]

    def _set_names(self, is_member: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> tuple[str, ...]:
        order = np.argsort(-probabilities, kind="stable")
        return tuple(self.class_names[c] for c in order if is_member[c])

    def _class_columns(self, contract: Contract) -> list[int]:
        return [self.class_names.index(name) for name in contract.class_names]


def pad_batch(inputs: NDArray[np.uint8], views: int, size: int) -> NDArray[np.uint8]:
    """Pad inputs (N, ...) to `size` by repeating the last image (its last `views` inputs); unchanged if already full.

    On CUDA, cuDNN repeats its search for the fastest kernels for every new batch size, which would take seconds for a
    small last batch.
    """
    if len(inputs) >= size:
        return inputs
    lacking = (size - len(inputs)) // views
    return np.concatenate([inputs, np.tile(inputs[-views:], (lacking, 1, 1, 1))])


def mean_ood_score(scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Average the OOD scores of several members, each (N,), summed in member order as in merged graphs."""
    total = scores[0]
    for score in scores[1:]:
        total = total + score
    return np.asarray(total / np.float32(len(scores)), np.float32)


def check_weights(sessions: Sequence[Session], weights: Sequence[float] | None) -> None:
    """Raise `EnsembleError` if there are no members, or unless `weights` gives each a positive number."""
    if not sessions:
        raise EnsembleError("an ensemble requires at least one model file")
    if weights is not None and (len(weights) != len(sessions) or not all(0 < w < math.inf for w in weights)):
        raise EnsembleError(
            f"{len(sessions)} models require {len(sessions)} positive vote weights, got {list(weights)}"
        )


def _shared_taxonomy(contracts: Sequence[Contract], class_names: Sequence[str]) -> Taxonomy | None:
    """Return the taxonomy in the order of `class_names` if all members have the same, else None."""
    found: list[Taxonomy] = []
    for contract in contracts:
        taxonomy = contract.taxonomy
        if taxonomy is None or set(contract.class_names) != set(class_names):
            return None
        order = [contract.class_names.index(name) for name in class_names]
        groups = tuple(tuple(names[i] for i in order) for names in taxonomy.groups)
        found.append(Taxonomy(taxonomy.ranks, groups))
    return found[0] if all(taxonomy == found[0] for taxonomy in found) else None


def _check_finite(session: Session, probabilities: NDArray[np.float32]) -> None:
    if not np.isfinite(probabilities).all():
        raise ModelFileError(f"{session.path}: outputs probabilities that are not finite: the file is damaged")


def _classification_contract(session: Session) -> Contract:
    contract = session.contract
    if contract is None or contract.task != "classification":
        raise EnsembleError(f"{session.path}: not a classification model")
    return contract


def _shared_class_names(
    contracts: Sequence[Contract], member_names: Sequence[str], classes: ClassRule
) -> tuple[str, ...]:
    first = contracts[0].class_names
    if classes == "union":
        return tuple(dict.fromkeys(name for contract in contracts for name in contract.class_names))
    for contract, member in zip(contracts[1:], member_names[1:], strict=True):
        lacking, extra = set(first) - set(contract.class_names), set(contract.class_names) - set(first)
        if lacking or extra:
            differences = [f"lacks {_some(lacking)}"] * bool(lacking) + [f"adds {_some(extra)}"] * bool(extra)
            doubt = _union_fault(first, contract.class_names)
            raise EnsembleError(
                f"the class names of {member} differ from those of {member_names[0]}: it {' and '.join(differences)}"
                + (f"; {doubt}" if doubt else ""),
                options=[] if doubt else ["classes=union"],  # all vote on the classes of any member
            )
    return first


def _union_fault(first: Sequence[str], other: Sequence[str]) -> str:
    """Return why a vote on the classes of both makes no sense, "" if it does."""
    own = {_plain_name(name): name for name in first if name not in other}
    alike = [(own[_plain_name(name)], name) for name in other if name not in first and _plain_name(name) in own]
    if alike:
        pair = " and ".join(map(repr, alike[0]))
        return f"{pair} look like one class in two spellings, which would split its votes"
    return "they share no class, so they cannot vote together" if set(first).isdisjoint(other) else ""


def _plain_name(name: str) -> str:
    """A class name without case, spaces and marks."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


def _some(names: set[str]) -> str:
    listed = ", ".join(repr(name) for name in sorted(names)[:5])
    return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def member_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Return file stems, made unique with their folder or a number; they become the column names of the votes."""
    stems = [PurePath(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = ["/".join(PurePath(path).with_suffix("").parts[-2:]) for path in paths]
    return tuple(stem if stems.count(stem) == 1 else f"{stem}#{i + 1}" for i, stem in enumerate(stems))
