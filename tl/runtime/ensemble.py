"""Classifiers behind one decision: class names aligned, inputs shared between equal recipes, votes counted.

Knows sessions, contracts and voting. Does not know the order of pictures or threads (`predictor`), or formats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ModelFileError
from tl.runtime.columns import ClassColumns
from tl.runtime.contract import Contract
from tl.runtime.decode import ImageSource
from tl.runtime.preprocess import Inputs, load_inputs
from tl.runtime.recipe import Recipe
from tl.runtime.results import Classification, MemberVotes
from tl.runtime.session import Session
from tl.runtime.voting import Vote, Voting, agreement, entropy, vote

ClassRule = Literal["same", "union"]


class Ensemble:
    """One or more classification models that vote. Thread-safe.

    `class_names` is the first member's order; with `classes="union"` later members' further classes follow, and a class
    that a member does not know has probability 0 in its vote. A merged file alone votes by its own rule, inside its
    graph, and its members are those that it was made of. Raises `EnsembleError` if the members do not fit.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        voting: Voting = "soft",
        weights: Sequence[float] | None = None,
        classes: ClassRule = "same",
    ) -> None:
        check_weights(sessions, weights)
        self.sessions = tuple(sessions)
        self.contracts = tuple(_classification_contract(session) for session in sessions)
        self.voting, self.weights = voting, weights
        self.member_names = member_names([session.path for session in sessions])
        self.class_names = _shared_class_names(self.contracts, self.member_names, classes)
        self.recipes: tuple[Recipe, ...] = tuple(dict.fromkeys(contract.recipe for contract in self.contracts))
        self._columns = [self._class_columns(contract) for contract in self.contracts]
        merged = self.contracts[0].ensemble if len(sessions) == 1 else None
        self._votes_inside = merged is not None
        if merged is not None:
            self.voting, self.weights = merged.voting, merged.weights
            self.member_names = tuple(member.name for member in merged.members)

    def member_probabilities(self, inputs: Mapping[Recipe, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Run every member. `inputs`: recipe -> uint8 (N, H, W, 3). Returns float32 (N, M, C) by `class_names`."""
        batch = len(next(iter(inputs.values())))
        stacked = np.zeros((batch, len(self.sessions), len(self.class_names)), np.float32)
        for m, (session, contract) in enumerate(zip(self.sessions, self.contracts, strict=True)):
            (probabilities,) = session.run(inputs[contract.recipe], ["probabilities"])
            _check_finite(session, probabilities)
            stacked[:, m, self._columns[m]] = probabilities
        return stacked

    def decide(self, member_probabilities: NDArray[np.float32]) -> Vote:
        """Vote over float32 (N, M, C)."""
        return vote(member_probabilities, self.voting, self.weights)

    @property
    def key(self) -> dict[str, Any]:
        """What results depend on beside the files of the members."""
        return {
            "voting": self.voting,
            "weights": None if self.weights is None else list(self.weights),
            "class_names": self.class_names,
        }

    def columns(self, *, with_votes: bool) -> ClassColumns:
        """The columns of the results."""
        return ClassColumns(self.class_names, self.member_names if with_votes else ())

    def prepare(self, source: ImageSource, name: str) -> Inputs:
        """Decode a picture as the members want it. Raises `ImageReadError`."""
        return load_inputs(source, self.recipes)

    def results(self, names: Sequence[str], prepared: Sequence[Inputs], *, with_votes: bool) -> list[Classification]:
        """Decide on prepared pictures."""
        if not prepared:
            return []
        batch = {recipe: np.stack([inputs[recipe] for inputs in prepared]) for recipe in self.recipes}
        decided, members = self._judge_inside(batch, with_votes) if self._votes_inside else self._judge(batch)
        votes = itertools.repeat(None) if members is None or not with_votes else self._member_votes(members, decided)
        return [
            Classification(
                path=name,
                label=self.class_names[label_id],
                confidence=float(probabilities[label_id]),
                class_names=self.class_names,
                probabilities=probabilities,
                votes=vote,
            )
            for name, probabilities, label_id, vote in zip(
                names, decided.probabilities, decided.label_ids, votes, strict=False
            )
        ]

    def _judge(self, batch: Mapping[Recipe, NDArray[np.uint8]]) -> tuple[Vote, NDArray[np.float32] | None]:
        members = self.member_probabilities(batch)
        return self.decide(members), members

    def _judge_inside(
        self, batch: Mapping[Recipe, NDArray[np.uint8]], with_votes: bool
    ) -> tuple[Vote, NDArray[np.float32] | None]:
        """A merged file's own decision; what its members say is only computed if it is asked for."""
        (session,) = self.sessions
        names = ["probabilities", "label", *(["member_probabilities"] if with_votes else [])]
        probabilities, label_ids, *members = session.run(batch[self.recipes[0]], names)
        _check_finite(session, probabilities)
        return Vote(probabilities, label_ids.astype(np.int64, copy=False)), members[0] if members else None

    def _member_votes(self, members: NDArray[np.float32], decided: Vote) -> list[MemberVotes]:
        member_ids = members.argmax(axis=2)
        agreements = agreement(member_ids, decided.label_ids)
        entropies = entropy(decided.probabilities)
        return [
            MemberVotes(
                labels=tuple(self.class_names[i] for i in member_ids[n]),
                probabilities=members[n],
                agreement=float(agreements[n]),
                entropy=float(entropies[n]),
            )
            for n in range(len(members))
        ]

    def _class_columns(self, contract: Contract) -> list[int]:
        return [self.class_names.index(name) for name in contract.class_names]


def check_weights(sessions: Sequence[Session], weights: Sequence[float] | None) -> None:
    """Raise `EnsembleError` without members, or for weights that are not a positive number for each."""
    if not sessions:
        raise EnsembleError("an ensemble needs at least one model file")
    if weights is not None and (len(weights) != len(sessions) or not all(0 < w < math.inf for w in weights)):
        raise EnsembleError(f"{len(sessions)} models need {len(sessions)} positive vote weights, got {list(weights)}")


def _check_finite(session: Session, probabilities: NDArray[np.float32]) -> None:
    if not np.isfinite(probabilities).all():
        raise ModelFileError(f"{session.path}: gives probabilities that are no numbers: the file is broken")


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
            raise EnsembleError(
                f"the class names of {member} differ from those of {member_names[0]}: it {' and '.join(differences)}; "
                "--classes union votes over all of them"
            )
    return first


def _some(names: set[str]) -> str:
    listed = ", ".join(repr(name) for name in sorted(names)[:5])
    return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def member_names(paths: Sequence[str]) -> tuple[str, ...]:
    """File stems, made unique with their folder or a number: they head the columns of the votes."""
    stems = [PurePath(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = ["/".join(PurePath(path).with_suffix("").parts[-2:]) for path in paths]
    return tuple(stem if stems.count(stem) == 1 else f"{stem}#{i + 1}" for i, stem in enumerate(stems))
