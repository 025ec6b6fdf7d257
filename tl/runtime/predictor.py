"""From pictures to results: decode and resize in threads, infer in batches, give results back in input order.

Knows sources, recipes and the ensemble. Does not know file formats of results (`writers`) or where pictures come from
(`sources`). `load` is the front door of `tl.runtime`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.runtime.ahead import map_ahead
from tl.runtime.decode import ImageSource, decode_image, source_name
from tl.runtime.devices import usable_cores
from tl.runtime.ensemble import ClassRule, Ensemble
from tl.runtime.geometry import input_image
from tl.runtime.recipe import Recipe
from tl.runtime.results import Classification, Failure, MemberVotes, Result
from tl.runtime.session import Session
from tl.runtime.voting import Vote, Voting, agreement, entropy

Inputs = dict[Recipe, NDArray[np.uint8]]
ModelPath = str | os.PathLike[str]


def load(
    models: ModelPath | Sequence[ModelPath],
    *,
    device: str = "auto",
    threads: int | None = None,
    vote: Voting = "soft",
    weights: Sequence[float] | None = None,
    classes: ClassRule = "same",
) -> Predictor:
    """Open one model file, or several that vote.

    `device`: "auto", "cpu", "cuda", "cuda:N". `threads`: for inference on the CPU, None for all usable cores.
    A list, even of one, gives results with votes. Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    alone = isinstance(models, str | os.PathLike)
    paths = [models] if isinstance(models, str | os.PathLike) else list(models)
    sessions = [Session(path, device=device, threads=threads) for path in paths]
    return Predictor(Ensemble(sessions, voting=vote, weights=weights, classes=classes), with_votes=not alone)


class Predictor:
    """Predicts pictures. Thread-safe; a context manager that frees the sessions.

    A source is a path, encoded bytes, a binary file, or a uint8 (H, W, 3) RGB array.
    """

    def __init__(self, ensemble: Ensemble, *, with_votes: bool) -> None:
        self._ensemble: Ensemble | None = ensemble
        self._with_votes = with_votes
        self.class_names = ensemble.class_names
        self.member_names = ensemble.member_names
        self.provider, self.fault = ensemble.sessions[0].provider, ensemble.sessions[0].fault

    @property
    def ensemble(self) -> Ensemble:
        """The members. Raises ValueError once closed."""
        if self._ensemble is None:
            raise ValueError("this predictor is closed")
        return self._ensemble

    def predict(self, source: ImageSource) -> Classification:
        """Predict one picture. Raises `ImageReadError` if it cannot be read."""
        inputs = prepare(source, self.ensemble.recipes)
        (result,) = self._classify([source_name(source)], [inputs])
        return result

    def predict_batch(self, sources: Sequence[ImageSource]) -> list[Result]:
        """Predict several pictures; one that cannot be read gives a `Failure` in its place."""
        return list(self.predict_iter(sources))

    def predict_iter(
        self, sources: Iterable[ImageSource], *, batch_size: int = 16, workers: int | None = None
    ) -> Iterator[Result]:
        """Predict lazily, in input order, in memory bounded by a few batches.

        `workers`: threads that decode, None for all usable cores. An unreadable picture gives a `Failure`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return self._predict_iter(sources, batch_size, workers or usable_cores())

    def _predict_iter(self, sources: Iterable[ImageSource], batch_size: int, workers: int) -> Iterator[Result]:
        ensemble = self.ensemble

        def prepare_or_fail(source: ImageSource) -> tuple[str, Inputs | Failure]:
            name = source_name(source)
            try:
                return name, prepare(source, ensemble.recipes)
            except ImageReadError as error:
                return name, Failure(name, error.reason)

        prepared = map_ahead(prepare_or_fail, sources, workers=workers, ahead=3 * batch_size)
        for chunk in _chunks(prepared, batch_size):
            good = [(name, inputs) for name, inputs in chunk if not isinstance(inputs, Failure)]
            results = iter(self._classify([name for name, _ in good], [inputs for _, inputs in good]))
            for _, inputs in chunk:
                yield inputs if isinstance(inputs, Failure) else next(results)

    def close(self) -> None:
        """Free the sessions. Calling it twice does nothing."""
        self._ensemble = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _classify(self, names: Sequence[str], pictures: Sequence[Inputs]) -> list[Classification]:
        if not pictures:
            return []
        ensemble = self.ensemble
        batch = {recipe: np.stack([inputs[recipe] for inputs in pictures]) for recipe in ensemble.recipes}
        members = ensemble.member_probabilities(batch)
        decided = ensemble.decide(members)
        votes = self._member_votes(members, decided) if self._with_votes else itertools.repeat(None)
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


def prepare(source: ImageSource, recipes: Sequence[Recipe]) -> Inputs:
    """Decode once per distinct decoding rule and resize once per recipe. Raises `ImageReadError`."""
    decoded: dict[tuple[Any, ...], NDArray[np.uint8]] = {}
    inputs: Inputs = {}
    for recipe in recipes:
        if recipe.decode_key not in decoded:
            decoded[recipe.decode_key] = decode_image(source, recipe)
        try:
            inputs[recipe] = input_image(decoded[recipe.decode_key], recipe)
        except ImageReadError as error:
            raise ImageReadError(source_name(source), error.reason) from error
    return inputs


def _chunks(items: Iterable[tuple[str, Inputs | Failure]], size: int) -> Iterator[list[tuple[str, Inputs | Failure]]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
