"""Run one or several models that give an image several labels, average them, and give sets that miss few labels.

Depends on sessions and contracts. Contains no file formats and no threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ModelFileError
from tl.runtime.ensembles.ensemble import check_weights, mean_ood_score, member_names, pad_batch
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import Inputs, Preparer
from tl.runtime.imaging.regions import Box
from tl.runtime.model_file.contract import Contract
from tl.runtime.model_file.label_facts import MultilabelFacts, set_threshold
from tl.runtime.results import Multilabel, MultilabelFields
from tl.runtime.session import Session


class MultilabelEnsemble:
    """One or more models of several labels, whose probabilities and thresholds are averaged. Thread-safe.

    Labels are matched by name, in the first member's order. `coverage`: share of an image's labels that its set should
    hold on average; for a single model only, because an ensemble has no held-out images of its own. Raises
    `EnsembleError` if the members are incompatible, or too few held-out images were recorded for `coverage`.
    """

    def __init__(
        self, sessions: Sequence[Session], *, weights: Sequence[float] | None = None, coverage: float | None = None
    ) -> None:
        check_weights(sessions, weights)
        self.sessions = tuple(sessions)
        self.contracts, self.facts = zip(*map(_contract, sessions), strict=True)
        self.weights = weights
        self.member_names = member_names([session.path for session in sessions])
        self.class_names: tuple[str, ...] = self.contracts[0].class_names
        self.keypoint_names: tuple[str, ...] = ()
        self.num_views = 1
        for contract, name in zip(self.contracts, self.member_names, strict=True):
            if apart := sorted(set(contract.class_names) ^ set(self.class_names)):
                raise EnsembleError(f"{name} has other labels than {self.member_names[0]}, such as '{apart[0]}'")
        self._orders = [[c.class_names.index(name) for name in self.class_names] for c in self.contracts]
        self.member_thresholds = np.array(
            [np.array(facts.thresholds)[order] for facts, order in zip(self.facts, self._orders, strict=True)]
        )
        self.thresholds = np.average(self.member_thresholds, axis=0, weights=weights)
        self.preparer = Preparer(tuple(dict.fromkeys(contract.preprocessing for contract in self.contracts)))
        self._has_ood_score = all(contract.ood is not None for contract in self.contracts)
        self._coverage, self._set_threshold = coverage, self._find_set_threshold(coverage)

    def _find_set_threshold(self, coverage: float | None) -> float | None:
        if coverage is None:
            return None
        path, curve = self.sessions[0].path, self.facts[0].curve
        if not 0 < coverage < 1:
            raise EnsembleError(f"coverage must be between 0 and 1, found {coverage}")
        if len(self.sessions) > 1:
            raise EnsembleError("an ensemble has no sets of labels: no held-out images measure what it misses")
        if curve is None:
            raise EnsembleError(f"{path}: records no held-out images, which coverage requires")
        threshold = set_threshold(curve, coverage)
        if threshold is None:
            needed = math.ceil(coverage / (1 - coverage) - 1e-9)
            raise EnsembleError(
                f"{path}: coverage {coverage:g} requires {needed} held-out images, but the file records "
                f"{curve.images}: lower it"
            )
        return threshold

    @property
    def key(self) -> dict[str, Any]:
        """The settings that results depend on, besides the model files."""
        weights = None if self.weights is None else list(self.weights)
        return {"weights": weights, "coverage": self._coverage}

    def fields(self, *, with_votes: bool) -> MultilabelFields:
        """Return the fields of the results."""
        return MultilabelFields(
            self.class_names,
            self.member_names if with_votes else (),
            with_set=self._coverage is not None,
            with_ood_score=self._has_ood_score,
        )

    def prepare(self, source: ImageSource, name: str, box: Box | None = None) -> Inputs:
        """Decode an image into the members' inputs. Raises `ImageReadError`, and ValueError for a box."""
        if box is not None:
            raise ValueError("models of several labels use whole images, not boxes")
        return self.preparer(source)

    def stack(self, prepared: Sequence[Inputs]) -> Inputs:
        """Combine prepared images into a batch."""
        return {key: np.concatenate([inputs[key] for inputs in prepared]) for key in self.preparer.preprocessings}

    def merge(self, members: NDArray[np.float32]) -> NDArray[np.float32]:
        """Average the members' probabilities (N, M, C) -> (N, C)."""
        return np.average(members, axis=1, weights=self.weights).astype(np.float32)

    def results(self, names: Sequence[str], batch: Inputs, *, with_votes: bool, pad_to: int = 0) -> list[Multilabel]:
        """Predict a batch of prepared images. The last image is repeated until the batch has `pad_to` images."""
        if not names:
            return []
        members, scores = self._run(batch, len(names), pad_to)
        probabilities = self.merge(members)
        has, votes = probabilities >= self.thresholds, members >= self.member_thresholds
        agreement = (votes == has[:, None]).mean(axis=(1, 2)).tolist()
        ood = None if scores is None else scores.tolist()
        return [
            Multilabel(
                path=name,
                class_names=self.class_names,
                probabilities=probabilities[n],
                labels=self._named(has[n]),
                label_set=self._set(probabilities[n]),
                agreement=agreement[n] if with_votes else None,
                votes=tuple(map(self._named, votes[n])) if with_votes else None,
                members=members[n] if with_votes else None,
                ood_score=None if ood is None else ood[n],
            )
            for n, name in enumerate(names)
        ]

    def _run(self, batch: Inputs, count: int, pad_to: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The members' probabilities (N, M, C), and the mean of their OOD scores (N,) if all have one."""
        members = np.empty((count, len(self.sessions), len(self.class_names)), np.float32)
        outputs = ["probabilities", *["ood_score"] * self._has_ood_score]
        scores = []
        for m, (session, contract, order) in enumerate(zip(self.sessions, self.contracts, self._orders, strict=True)):
            found, *score = session.run(pad_batch(batch[contract.preprocessing], 1, pad_to), outputs)
            if not np.isfinite(found).all():
                raise ModelFileError(f"{session.path}: outputs numbers that are not finite: the file is damaged")
            members[:, m] = found[:count, order]
            scores += [each[:count] for each in score]
        return members, mean_ood_score(scores) if scores else None

    def _named(self, has: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(self.class_names[c] for c in np.flatnonzero(has))

    def _set(self, probabilities: NDArray[np.float32]) -> tuple[str, ...] | None:
        if self._set_threshold is None:
            return None
        order = np.argsort(-probabilities, kind="stable")
        return tuple(self.class_names[c] for c in order if probabilities[c] >= self._set_threshold)


def _contract(session: Session) -> tuple[Contract, MultilabelFacts]:
    contract = session.contract
    if contract is None or contract.multilabel is None:
        raise EnsembleError(f"{session.path}: does not give images several labels")
    return contract, contract.multilabel
