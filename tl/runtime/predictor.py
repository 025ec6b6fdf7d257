"""From pictures to results: each thread decodes, resizes and infers its own few pictures; results come in input order.

Knows sources, recipes and the ensemble. Does not know file formats of results (`writers`) or where pictures come from
(`sources`). `load` is the front door of `tl.runtime`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.runtime.ahead import map_ahead
from tl.runtime.content import read_content
from tl.runtime.decode import ImageSource, source_name
from tl.runtime.devices import usable_cores
from tl.runtime.ensemble import ClassRule, Ensemble
from tl.runtime.preprocess import Inputs, load_inputs
from tl.runtime.recipe import Recipe
from tl.runtime.results import Classification, Failure, MemberVotes, Result
from tl.runtime.session import Session
from tl.runtime.voting import Vote, Voting, agreement, entropy

Known = TypeVar("Known")
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
    """Predicts pictures. Thread-safe; a context manager that frees the sessions. Of no use in a fork of its process.

    A source is a path, encoded bytes, a binary file, or a uint8 (H, W, 3) RGB array.
    """

    def __init__(self, ensemble: Ensemble, *, with_votes: bool, threads: int | None = None) -> None:
        self._ensemble: Ensemble | None = ensemble
        self._pid = os.getpid()
        self.with_votes = with_votes
        self._threads = threads or usable_cores()
        self.class_names = ensemble.class_names
        self.member_names = ensemble.member_names
        self.provider, self.fault = ensemble.sessions[0].provider, ensemble.sessions[0].fault
        self._is_cpu = self.provider == "CPUExecutionProvider"

    @property
    def ensemble(self) -> Ensemble:
        """The members. Raises ValueError once closed, RuntimeError in a fork of the process that loaded them."""
        self._check_process()
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
        return (result for _, result in self._stream(sources, batch_size, lambda source: (source, ""), _nothing_known))

    def predict_unknown(
        self,
        sources: Iterable[ImageSource],
        known: Callable[[str, str], Known | None],
        *,
        batch_size: int | None = None,
    ) -> Iterator[tuple[str, Result | Known]]:
        """As `predict_iter`, but first `known(name, digest)` is asked, and what it knows stands in the result's place.

        Gives each picture's digest too: the SHA-256 of its content in hex, "" where it could not be read. `known` is
        called from several threads.
        """
        return self._stream(sources, batch_size, read_content, known)

    def _stream(
        self,
        sources: Iterable[ImageSource],
        batch_size: int | None,
        read: Callable[[ImageSource], tuple[ImageSource, str]],
        known: Callable[[str, str], Known | None],
    ) -> Iterator[tuple[str, Result | Known]]:
        ensemble = self.ensemble
        size = batch_size or (CPU_BATCH if self._is_cpu else CUDA_BATCH)

        def predict_chunk(chunk: Sequence[ImageSource]) -> list[tuple[str, Result | Known]]:
            prepared = [_prepare(source, ensemble.recipes, read, known) for source in chunk]
            new = [(each.name, each.inputs) for each in prepared if each.inputs is not None]
            results = iter(self._classify(ensemble, [name for name, _ in new], [inputs for _, inputs in new]))
            return [(each.digest, next(results) if each.answer is None else each.answer) for each in prepared]

        def answers() -> Iterator[tuple[str, Result | Known]]:
            self._check_process()
            chunks = _chunks(sources, size)
            for chunk in map_ahead(predict_chunk, chunks, workers=self._threads, ahead=2 * self._threads):
                for answer in chunk:
                    yield answer
                    self._check_process()

        return answers()

    def close(self) -> None:
        """Free the sessions. Calling it twice does nothing."""
        self._ensemble = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this predictor was loaded in process {self._pid} and cannot be used in its fork {os.getpid()}, "
                "which has none of its threads: load it in the child"
            )

    def _classify(self, ensemble: Ensemble, names: Sequence[str], pictures: Sequence[Inputs]) -> list[Classification]:
        if not pictures:
            return []
        batch = {recipe: np.stack([inputs[recipe] for inputs in pictures]) for recipe in ensemble.recipes}
        members = ensemble.member_probabilities(batch)
        decided = ensemble.decide(members)
        votes = self._member_votes(members, decided) if self.with_votes else itertools.repeat(None)
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


@dataclass(frozen=True)
class _Prepared(Generic[Known]):
    """A picture ready to be inferred, or the answer that needs no inference."""

    name: str
    digest: str
    inputs: Inputs | None = None
    answer: Failure | Known | None = None


def _prepare(
    source: ImageSource,
    recipes: Sequence[Recipe],
    read: Callable[[ImageSource], tuple[ImageSource, str]],
    known: Callable[[str, str], Known | None],
) -> _Prepared[Known]:
    name, digest = source_name(source), ""
    try:
        content, digest = read(source)
        answer = known(name, digest)
        if answer is not None:
            return _Prepared(name, digest, answer=answer)
        return _Prepared(name, digest, inputs=load_inputs(content, recipes))
    except ImageReadError as error:
        return _Prepared(name, digest, answer=Failure(name, error.reason))


def _nothing_known(name: str, digest: str) -> None:
    return None


def _chunks(items: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
