"""Run one or several models that predict numbers, combine their values, and give intervals that hold the true ones.

Depends on sessions and contracts. Contains no file formats and no threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ModelFileError
from tl.runtime.ensembles.ensemble import check_weights, member_names, pad_batch
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import Inputs, Preparer
from tl.runtime.imaging.regions import Box
from tl.runtime.model_file.contract import Contract, RegressionFacts
from tl.runtime.results import Regression, RegressionFields
from tl.runtime.session import Session

ValueMerging = Literal["mean", "median"]


def interval_width(scores: Sequence[float], coverage: float) -> float:
    """The distance from a prediction that holds the true number with probability `coverage`; inf with too few scores.

    `scores`: sorted absolute errors of held-out images. Source: Vovk et al. 2005, split conformal prediction.
    """
    place = math.ceil((len(scores) + 1) * coverage)
    return scores[place - 1] if place <= len(scores) else math.inf


def merge_values(
    members: NDArray[np.float32], merging: ValueMerging = "mean", weights: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Combine the members' values (N, M, T) -> (N, T). `weights`: M positive numbers for the mean, None for equal."""
    if merging == "median":
        return np.asarray(np.median(members, axis=1), np.float32)
    return np.average(members, axis=1, weights=weights).astype(np.float32)


class RegressionEnsemble:
    """One or more models whose numbers are combined. Thread-safe.

    Targets are matched by name, in the first member's order. `coverage`: probability with which an interval should hold
    the true number; for a single model only, because an ensemble has no held-out images of its own.
    Raises `EnsembleError` if the members are incompatible, or too few held-out images were recorded for `coverage`.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        merging: ValueMerging = "mean",
        weights: Sequence[float] | None = None,
        coverage: float | None = None,
    ) -> None:
        check_weights(sessions, weights)
        self.sessions = tuple(sessions)
        self.contracts, self.facts = zip(*map(_contract, sessions), strict=True)
        self.merging, self.weights = merging, weights
        self.member_names = member_names([session.path for session in sessions])
        self.class_names: tuple[str, ...] = ()
        self.keypoint_names: tuple[str, ...] = ()
        self.num_views = 1
        first = self.facts[0]
        self.target_names, self.units = first.target_names, first.units
        for facts, name in zip(self.facts, self.member_names, strict=True):
            if set(facts.target_names) != set(self.target_names):
                raise EnsembleError(f"{name} predicts other numbers than {self.member_names[0]}")
            if {*zip(facts.target_names, facts.units, strict=True)} != {
                *zip(first.target_names, first.units, strict=True)
            }:
                raise EnsembleError(f"{name} has other units than {self.member_names[0]}")
        if merging == "median" and weights is not None:
            raise EnsembleError("the median uses no weights: leave them out, or use the mean")
        self._orders = [[facts.target_names.index(name) for name in self.target_names] for facts in self.facts]
        self.preparer = Preparer(tuple(dict.fromkeys(contract.preprocessing for contract in self.contracts)))
        self._coverage, self._widths = coverage, self._interval_widths(coverage)

    def _interval_widths(self, coverage: float | None) -> NDArray[np.float64] | None:
        if coverage is None:
            return None
        if not 0 < coverage < 1:
            raise EnsembleError(f"coverage must be between 0 and 1, found {coverage}")
        if len(self.sessions) > 1:
            raise EnsembleError("an ensemble has no intervals: no held-out images measure its errors")
        widths = np.array([interval_width(scores, coverage) for scores in self.facts[0].scores])
        if not np.isfinite(widths).all():
            count = min(map(len, self.facts[0].scores))
            needed = next(n for n in itertools.count(count) if math.ceil((n + 1) * coverage) <= n)
            raise EnsembleError(
                f"{self.sessions[0].path}: coverage {coverage:g} requires {needed} held-out images, but the file "
                f"records {count}: lower it"
            )
        return widths

    @property
    def key(self) -> dict[str, Any]:
        """The settings that results depend on, besides the model files."""
        weights = None if self.weights is None else list(self.weights)
        return {"merging": self.merging, "weights": weights, "coverage": self._coverage}

    def fields(self, *, with_votes: bool) -> RegressionFields:
        """Return the fields of the results."""
        return RegressionFields(
            self.target_names, self.member_names if with_votes else (), with_interval=self._widths is not None
        )

    def prepare(self, source: ImageSource, name: str, box: Box | None = None) -> Inputs:
        """Decode an image into the members' inputs. Raises `ImageReadError`, and ValueError for a box."""
        if box is not None:
            raise ValueError("models of numbers use whole images, not boxes")
        return self.preparer(source)

    def stack(self, prepared: Sequence[Inputs]) -> Inputs:
        """Combine prepared images into a batch."""
        return {key: np.concatenate([inputs[key] for inputs in prepared]) for key in self.preparer.preprocessings}

    def results(self, names: Sequence[str], batch: Inputs, *, with_votes: bool, pad_to: int = 0) -> list[Regression]:
        """Predict a batch of prepared images. The last image is repeated until the batch has `pad_to` images."""
        if not names:
            return []
        members = np.empty((len(names), len(self.sessions), len(self.target_names)), np.float32)
        for m, (session, contract, order) in enumerate(zip(self.sessions, self.contracts, self._orders, strict=True)):
            (found,) = session.run(pad_batch(batch[contract.preprocessing], 1, pad_to), ["values"])
            if not np.isfinite(found).all():
                raise ModelFileError(f"{session.path}: outputs numbers that are not finite: the file is damaged")
            members[:, m] = found[: len(names), order]
        values, spread = merge_values(members, self.merging, self.weights), members.std(axis=1)
        return [
            Regression(
                path=name,
                target_names=self.target_names,
                values=values[n],
                widths=self._widths,
                spread=spread[n] if with_votes else None,
                members=members[n] if with_votes else None,
            )
            for n, name in enumerate(names)
        ]


def _contract(session: Session) -> tuple[Contract, RegressionFacts]:
    contract = session.contract
    if contract is None or contract.regression is None:
        raise EnsembleError(f"{session.path}: does not predict numbers")
    return contract, contract.regression
