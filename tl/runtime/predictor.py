"""From pictures to results: each thread decodes, resizes and infers its own few pictures; results come in input order.

Knows sources, recipes and the ensemble. Does not know file formats of results (`writers`) or where pictures come from
(`sources`). `load` is the front door of `tl.runtime`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.runtime.ahead import map_ahead
from tl.runtime.decode import ImageSource, source_name
from tl.runtime.devices import usable_cores
from tl.runtime.ensemble import ClassRule, Ensemble
from tl.runtime.preprocess import Inputs, load_inputs
from tl.runtime.recipe import Recipe
from tl.runtime.results import Classification, Failure, MemberVotes, Result
from tl.runtime.session import Session
from tl.runtime.voting import Vote, Voting, agreement, entropy

Hint = Literal["throughput", "latency"]
# One core works fastest on one picture at a time, or nearly so; a GPU needs many.
CPU_BATCH, CUDA_BATCH = 1, 32
ModelPath = str | os.PathLike[str]


def load(
    models: ModelPath | Sequence[ModelPath],
    *,
    device: str = "auto",
    threads: int | None = None,
    hint: Hint = "throughput",
    vote: Voting = "soft",
    weights: Sequence[float] | None = None,
    classes: ClassRule = "same",
) -> Predictor:
    """Open one model file, or several that vote.

    `device`: "auto", "cpu", "cuda", "cuda:N". `threads`: how many work, None for all usable cores. `hint`, for the CPU:
    "throughput" lets every thread work on pictures of its own, the fastest way through many; "latency" lets all work on
    one picture, the fastest way through one. A list, even of one, gives results with votes.
    Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    alone = isinstance(models, str | os.PathLike)
    paths = [models] if isinstance(models, str | os.PathLike) else list(models)
    threads = threads or usable_cores()
    per_run = 1 if hint == "throughput" else threads
    sessions = [Session(path, device=device, threads=per_run) for path in paths]
    ensemble = Ensemble(sessions, voting=vote, weights=weights, classes=classes)
    return Predictor(ensemble, with_votes=not alone, threads=threads)


class Predictor:
    """Predicts pictures. Thread-safe; a context manager that frees the sessions.

    A source is a path, encoded bytes, a binary file, or a uint8 (H, W, 3) RGB array.
    """

    def __init__(self, ensemble: Ensemble, *, with_votes: bool, threads: int | None = None) -> None:
        self._ensemble: Ensemble | None = ensemble
        self._with_votes = with_votes
        self._threads = threads or usable_cores()
        self.class_names = ensemble.class_names
        self.member_names = ensemble.member_names
        self.provider, self.fault = ensemble.sessions[0].provider, ensemble.sessions[0].fault
        self._is_cpu = self.provider == "CPUExecutionProvider"

    @property
    def ensemble(self) -> Ensemble:
        """The members. Raises ValueError once closed."""
        if self._ensemble is None:
            raise ValueError("this predictor is closed")
        return self._ensemble

    def predict(self, source: ImageSource) -> Classification:
        """Predict one picture. Raises `ImageReadError` if it cannot be read."""
        ensemble = self.ensemble
        inputs = load_inputs(source, ensemble.recipes)
        (result,) = self._classify(ensemble, [source_name(source)], [inputs])
        return result

    def predict_batch(self, sources: Sequence[ImageSource]) -> list[Result]:
        """Predict several pictures; one that cannot be read gives a `Failure` in its place."""
        return list(self.predict_iter(sources))

    def predict_iter(self, sources: Iterable[ImageSource], *, batch_size: int | None = None) -> Iterator[Result]:
        """Predict lazily, in input order, in memory bounded by a few batches.

        `batch_size`: pictures a run, None for what suits the device. An unreadable picture gives a `Failure`.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        batch_size = batch_size or (CPU_BATCH if self._is_cpu else CUDA_BATCH)
        return self._predict_iter(self.ensemble, sources, batch_size)

    def _predict_iter(self, ensemble: Ensemble, sources: Iterable[ImageSource], batch_size: int) -> Iterator[Result]:
        work = partial(self._predict_chunk, ensemble)
        done = map_ahead(work, _chunks(sources, batch_size), workers=self._threads, ahead=2 * self._threads)
        for results in done:
            yield from results

    def _predict_chunk(self, ensemble: Ensemble, sources: Sequence[ImageSource]) -> list[Result]:
        prepared = [_prepare_or_fail(source, ensemble.recipes) for source in sources]
        good = [(name, inputs) for name, inputs in prepared if not isinstance(inputs, Failure)]
        results = iter(self._classify(ensemble, [name for name, _ in good], [inputs for _, inputs in good]))
        return [inputs if isinstance(inputs, Failure) else next(results) for _, inputs in prepared]

    def close(self) -> None:
        """Free the sessions. Calling it twice does nothing."""
        self._ensemble = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _classify(self, ensemble: Ensemble, names: Sequence[str], pictures: Sequence[Inputs]) -> list[Classification]:
        if not pictures:
            return []
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


def _prepare_or_fail(source: ImageSource, recipes: Sequence[Recipe]) -> tuple[str, Inputs | Failure]:
    name = source_name(source)
    try:
        return name, load_inputs(source, recipes)
    except ImageReadError as error:
        return name, Failure(name, error.reason)


def _chunks(items: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
