"""From pictures to results: each thread decodes, resizes and infers its own few pictures; results come in input order.

Knows sources, threads and batches. Does not know what is predicted (`ensemble`, `landmark_ensemble`), file formats of
results (`writers`) or where pictures come from (`sources`). `load` and `load_landmarks` are the front doors of
`tl.runtime`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar

from tl.errors import ImageReadError
from tl.runtime.devices import usable_cores
from tl.runtime.ensembles.ensemble import ClassRule, Ensemble
from tl.runtime.ensembles.selective import Caution
from tl.runtime.ensembles.voting import Voting
from tl.runtime.imaging.decode import ImageSource, source_name
from tl.runtime.imaging.geometry import Region
from tl.runtime.imaging.pipeline import TtaKind
from tl.runtime.landmarks.ensemble import LandmarkEnsemble, Merging
from tl.runtime.output.columns import Columns
from tl.runtime.prefetch import map_ahead
from tl.runtime.results import Classification, Failure, Landmarks, Prediction
from tl.runtime.session import Session
from tl.runtime.sources.content import read_content

Known = TypeVar("Known")
Found = TypeVar("Found", Classification, Landmarks)
Found_co = TypeVar("Found_co", bound=Prediction, covariant=True)
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
    caution: Caution | None = None,
    tta: Sequence[TtaKind] = (),
) -> Predictor[Classification]:
    """Open one classifier, or several that vote.

    `device`: "auto", "cpu", "cuda", "cuda:N". `threads`: how many work, None for all usable cores. `hint`, for the CPU:
    "throughput" lets every thread work on pictures of its own, the fastest way through many; "latency" lets all work on
    one picture, the fastest way through one. A list, even of one, gives results with votes. `caution`: sets of classes
    with a chosen coverage, and labels that are rejected. `tta`: test-time augmentation, the mean over views of each
    picture: "hflip", "vflip", "crops" (the whole, its middle and corners), and what they combine to.
    Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    sessions, alone, threads = _open_sessions(models, device, threads, hint)
    ensemble = Ensemble(sessions, voting=vote, weights=weights, classes=classes, caution=caution, tta=tta)
    return Predictor(ensemble, with_votes=not alone, threads=threads)


def load_landmarks(
    models: ModelPath | Sequence[ModelPath],
    *,
    device: str = "auto",
    threads: int | None = None,
    hint: Hint = "throughput",
    merge: Merging = "mean",
    weights: Sequence[float] | None = None,
    locator: ModelPath | None = None,
    boxes: Mapping[str, Region] | None = None,
    crop_margin: float | None = None,
    mm_per_px: float | Mapping[str, float] | None = None,
) -> Predictor[Landmarks]:
    """Open one landmark model, or several whose points are merged; `device`, `threads` and `hint` as for `load`.

    `merge`: how members' points become one. Models that look at a box take it from `boxes`, path -> (left, top, width,
    height) in pixels of the upright photo, or draw it around the points of `locator`, another landmark model;
    `crop_margin` overrides their own. `mm_per_px`: the photos' scale, or path -> scale, which results carry. A list,
    even of one, gives results with spread.
    Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    sessions, alone, threads = _open_sessions(models, device, threads, hint)
    coarse = None
    if locator is not None:
        coarse = LandmarkEnsemble(_open_sessions(locator, device, threads, hint)[0])
    ensemble = LandmarkEnsemble(
        sessions, merging=merge, weights=weights, locator=coarse, boxes=boxes, margin=crop_margin, mm_per_px=mm_per_px
    )
    return Predictor(ensemble, with_votes=not alone, threads=threads)


def _open_sessions(
    models: ModelPath | Sequence[ModelPath], device: str, threads: int | None, hint: Hint
) -> tuple[list[Session], bool, int]:
    """The sessions, whether one was asked for alone, and how many threads work."""
    alone = isinstance(models, str | os.PathLike)
    paths = [models] if isinstance(models, str | os.PathLike) else list(models)
    threads = threads or usable_cores()
    per_run = 1 if hint == "throughput" else threads
    return [Session(path, device=device, threads=per_run) for path in paths], alone, threads


class Members(Protocol[Found_co]):
    """What predicts: classifiers that vote, or landmark models whose points are merged. Thread-safe."""

    sessions: tuple[Session, ...]
    member_names: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What results depend on beside the files of the members."""

    def columns(self, *, with_votes: bool) -> Columns:
        """The columns of the results."""

    def prepare(self, source: ImageSource, name: str) -> Any:
        """Decode a picture, which rows call `name`, as the members want it. Raises `ImageReadError`."""

    def results(self, names: Sequence[str], prepared: Sequence[Any], *, with_votes: bool) -> Sequence[Found_co]:
        """Predict prepared pictures."""


class Predictor(Generic[Found]):
    """Predicts pictures. Thread-safe; a context manager that frees the sessions. Of no use in a fork of its process.

    A source is a path, encoded bytes, a binary file, or a uint8 (H, W, 3) RGB array.
    """

    def __init__(self, ensemble: Members[Found], *, with_votes: bool, threads: int | None = None) -> None:
        self._ensemble: Members[Found] | None = ensemble
        self._pid = os.getpid()
        self.with_votes = with_votes
        self._threads = threads or usable_cores()
        self.class_names: tuple[str, ...] = getattr(ensemble, "class_names", ())
        self.keypoint_names: tuple[str, ...] = getattr(ensemble, "keypoint_names", ())
        self.columns = ensemble.columns(with_votes=with_votes)
        self.member_names = ensemble.member_names
        self.provider, self.fault = ensemble.sessions[0].provider, ensemble.sessions[0].fault
        self._is_cpu = self.provider == "CPUExecutionProvider"

    @property
    def ensemble(self) -> Members[Found]:
        """The members. Raises ValueError once closed, RuntimeError in a fork of the process that loaded them."""
        self._check_process()
        if self._ensemble is None:
            raise ValueError("this predictor is closed")
        return self._ensemble

    def predict(self, source: ImageSource) -> Found:
        """Predict one picture. Raises `ImageReadError` if it cannot be read."""
        ensemble = self.ensemble
        name = source_name(source)
        (result,) = ensemble.results([name], [ensemble.prepare(source, name)], with_votes=self.with_votes)
        return result

    def predict_batch(self, sources: Sequence[ImageSource]) -> list[Found | Failure]:
        """Predict several pictures; one that cannot be read gives a `Failure` in its place."""
        return list(self.predict_iter(sources))

    def predict_iter(
        self, sources: Iterable[ImageSource], *, batch_size: int | None = None
    ) -> Iterator[Found | Failure]:
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
    ) -> Iterator[tuple[str, Found | Failure | Known]]:
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
    ) -> Iterator[tuple[str, Found | Failure | Known]]:
        ensemble = self.ensemble
        views = getattr(ensemble, "num_views", 1)
        size = batch_size or (CPU_BATCH if self._is_cpu else max(1, CUDA_BATCH // views))

        def predict_chunk(chunk: Sequence[ImageSource]) -> list[tuple[str, Found | Failure | Known]]:
            prepared = [_prepare(source, ensemble, read, known) for source in chunk]
            new = [each for each in prepared if each.answer is None]
            names, inputs = [each.name for each in new], [each.inputs for each in new]
            results = iter(ensemble.results(names, inputs, with_votes=self.with_votes))
            return [(each.digest, next(results) if each.answer is None else each.answer) for each in prepared]

        def answers() -> Iterator[tuple[str, Found | Failure | Known]]:
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

    def __enter__(self) -> Predictor[Found]:
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


@dataclass(frozen=True)
class _Prepared(Generic[Known]):
    """A picture ready to be inferred, or the answer that needs no inference."""

    name: str
    digest: str
    inputs: Any = None
    answer: Failure | Known | None = None


def _prepare(
    source: ImageSource,
    ensemble: Members[Any],
    read: Callable[[ImageSource], tuple[ImageSource, str]],
    known: Callable[[str, str], Known | None],
) -> _Prepared[Known]:
    name, digest = source_name(source), ""
    try:
        content, digest = read(source)
        answer = known(name, digest)
        if answer is not None:
            return _Prepared(name, digest, answer=answer)
        return _Prepared(name, digest, inputs=ensemble.prepare(content, name))
    except ImageReadError as error:
        return _Prepared(name, digest, answer=Failure(name, error.reason))


def _nothing_known(name: str, digest: str) -> None:
    return None


def _chunks(items: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
