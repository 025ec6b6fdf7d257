"""Run prediction over a stream of images, decoding in threads or in processes; results keep the input order.

With threads, each thread decodes, resizes and infers its own images: some to decode, then the same ones to infer, which
on the CPU is faster than alternating. With processes, the processes decode and resize, and a few threads infer. Handles
chunks, failures and cached answers; independent of the task and the device.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import Inputs, Preparer
from tl.runtime.imaging.regions import Box
from tl.runtime.prefetch import prefetch_map
from tl.runtime.results import Classification, Failure, Fields, Landmarks, Multilabel, Prediction, Regression
from tl.runtime.session import Session
from tl.runtime.sources.boxed_images import PredictionSource, UnboxedImage, item_digest, item_name, split_item
from tl.runtime.sources.paths import read_content

if TYPE_CHECKING:
    from tl.runtime.decode_pool import DecodedChunk

Known = TypeVar("Known")
Found = TypeVar("Found", Classification, Landmarks, Multilabel, Regression)
Found_co = TypeVar("Found_co", bound=Prediction, covariant=True)


class Members(Protocol[Found_co]):
    """Interface of the members: classifiers that vote, or models whose points or numbers are merged. Thread-safe."""

    sessions: tuple[Session, ...]
    member_names: tuple[str, ...]
    class_names: tuple[str, ...]  # empty for landmarks and numbers
    keypoint_names: tuple[str, ...]  # empty for classes and numbers

    @property
    def num_views(self) -> int:
        """Views of each image that are predicted: more than one with test-time augmentation."""

    @property
    def key(self) -> dict[str, Any]:
        """The settings that results depend on, besides the model files."""

    @property
    def preparer(self) -> Preparer | None:
        """A picklable replacement for `prepare` and `stack` in another process; None if only this process can do it."""

    def fields(self, *, with_votes: bool) -> Fields:
        """Return the fields of the results."""

    def prepare(self, source: ImageSource, name: str, box: Box | None = None) -> Any:
        """Decode an image, or a box of it, into the members' inputs; `name` identifies it in results.

        Raises `ImageReadError`.
        """

    def stack(self, prepared: Sequence[Any]) -> Any:
        """Combine one or more prepared images into a batch."""

    def results(self, names: Sequence[str], batch: Any, *, with_votes: bool, pad_to: int = 0) -> Sequence[Found_co]:
        """Predict a batch; empty for no names. The last image is repeated until the batch has `pad_to` images."""


@dataclass(frozen=True)
class _Image(Generic[Known]):
    """An image in progress. `answer`: set if it needs no inference. `inputs`: the members' inputs, in threads only.

    `digest`: of its content and box.
    """

    name: str
    digest: str
    answer: Failure | Known | None = None
    inputs: Any = None
    box: Box | None = None


# Decoding evicts the network from a core's caches, and the network evicts the decoder, so a thread on the CPU decodes
# several images before it infers them. Source: benchmarks/predict.py overhead.
MAX_GROUP = 16
# A longer group would show progress late, lose more work in a crash, and leave cores idle at the end.
_SECONDS_PER_GROUP = 0.06


class _Pace:
    """The number of images that a thread processes in `_SECONDS_PER_GROUP`, at most `most`; 1 until one was measured.

    Thread-safe: threads overwrite one number.
    """

    def __init__(self, most: int) -> None:
        self.images, self._most = 1, most

    def measure(self, images: int, seconds: float) -> None:
        """Record how long a group took."""
        self.images = min(self._most, max(1, int(_SECONDS_PER_GROUP * images / max(seconds, 1e-9))))


@dataclass(frozen=True)
class _Chunk:
    """Images that one thread processes. `pad_to`: see `Members.results`."""

    sources: list[PredictionSource]
    pad_to: int


@dataclass(frozen=True)
class Stream(Generic[Found, Known]):
    """Predict images in batches of `batch_size`, skipping those for which `known(name, digest)` returns an answer.

    `hashes`: compute digests, the SHA-256 of the contents and what identifies a box; otherwise they are "". `pads`:
    fill up incomplete batches, except the first one, because short streams may follow one another. `max_group`: images
    that a thread may decode before it infers them, in batches of `batch_size`.
    """

    members: Members[Found]
    known: Callable[[str, str], Known | None]
    with_votes: bool
    batch_size: int
    hashes: bool
    pads: bool
    max_group: int = 1

    def in_threads(
        self, sources: Iterable[PredictionSource], threads: int
    ) -> Iterator[list[tuple[str, Found | Failure | Known]]]:
        """Yield the answers of each chunk with their digests. Raises whatever `sources` raises."""
        pace = _Pace(self.max_group)

        def predict(chunk: _Chunk) -> list[tuple[str, Found | Failure | Known]]:
            started = time.perf_counter()
            images = [self._prepare(source) for source in chunk.sources]
            batches = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
            answers = [answer for batch in batches for answer in self._infer(batch, chunk.pad_to)]
            pace.measure(len(images), time.perf_counter() - started)
            return answers

        chunks = self._chunks(sources, pace)
        return prefetch_map(predict, chunks, workers=threads, ahead=2 * threads, stop=self._stop)

    def in_processes(
        self, sources: Iterable[PredictionSource], preparer: Preparer, processes: int, callers: int
    ) -> Iterator[list[tuple[str, Found | Failure | Known]]]:
        """Like `in_threads`, but `processes` decode and `callers` threads infer. Also raises `WorkerError`."""
        from tl.runtime.decode_pool import DecodePool  # not available on every system, and rarely needed

        with DecodePool(preparer, processes, batch_size=self.batch_size, hashes=self.hashes) as pool:

            def predict(submitted: tuple[_Chunk, Any]) -> list[tuple[str, Found | Failure | Known]]:
                chunk, future = submitted
                decoded = future.result()
                try:
                    images = self._look_up(chunk, decoded)
                    inputs = _unanswered(decoded, images, len(preparer.views))
                    return self._answers(images, inputs, chunk.pad_to)
                finally:
                    pool.release(decoded)

            def submit(chunk: _Chunk) -> tuple[_Chunk, Any]:
                return chunk, pool.submit(chunk.sources)

            submitted = map(submit, self._chunks(sources))
            # One less than the number of slots: one more chunk is always submitted before waiting for the first one.
            answers = prefetch_map(predict, submitted, workers=callers, ahead=pool.slots - 1, stop=self._stop)
            # Not `yield from`: if the caller stops early, the pool must end before the threads that wait for it.
            for answered in answers:  # noqa: UP028
                yield answered

    def _stop(self) -> None:
        """End inference, so that Ctrl-C need not wait for a slow or endless model."""
        for session in self.members.sessions:
            session.end_runs()

    def _chunks(self, sources: Iterable[PredictionSource], pace: _Pace | None = None) -> Iterator[_Chunk]:
        """Yield chunks of one batch, or of as many as the group that `pace` allows has room for."""
        iterator = iter(sources)
        pads_at_once = False
        while True:
            batches = 1 if pace is None else max(1, pace.images // self.batch_size)
            chunk = list(itertools.islice(iterator, self.batch_size * batches))
            if not chunk:
                return
            pads_at_once = pads_at_once or len(chunk) == self.batch_size
            yield _Chunk(chunk, self.batch_size if self.pads and pads_at_once else 0)
            del chunk  # as in `prefetch_map`

    def _prepare(self, item: PredictionSource) -> _Image[Known]:
        name, digest = item_name(item), ""
        if isinstance(item, UnboxedImage):
            return _Image(name, digest, item.answer)
        source, box = split_item(item)
        try:
            content, digest = read_content(source) if self.hashes else (source, "")
            digest = item_digest(digest, box)
            answer = self.known(name, digest)
            if answer is not None:
                return _Image(name, digest, answer)
            return _Image(name, digest, inputs=self.members.prepare(content, name, box), box=box)
        except ImageReadError as error:
            return _Image(name, digest, Failure(name, error.reason, box))

    def _look_up(self, chunk: _Chunk, decoded: DecodedChunk) -> list[_Image[Known]]:
        """Return the images of a chunk decoded in another process, with known answers and failures filled in."""
        images: list[_Image[Known]] = []
        for item, (content_digest, reason) in zip(chunk.sources, decoded.outcomes, strict=True):
            name = item_name(item)
            if isinstance(item, UnboxedImage):
                images.append(_Image(name, "", item.answer))
                continue
            box = split_item(item)[1]
            digest = item_digest(content_digest, box)
            answer: Failure | Known | None = None
            if digest or not self.hashes:  # it could be read
                answer = self.known(name, digest)
            if answer is None and reason is not None:
                answer = Failure(name, reason, box)
            images.append(_Image(name, digest, answer, box=box))
        return images

    def _infer(self, images: Sequence[_Image[Known]], pad_to: int) -> list[tuple[str, Found | Failure | Known]]:
        inputs = [image.inputs for image in images if image.answer is None]
        return self._answers(images, self.members.stack(inputs) if inputs else None, pad_to)

    def _answers(
        self, images: Sequence[_Image[Known]], batch: Any, pad_to: int
    ) -> list[tuple[str, Found | Failure | Known]]:
        names = [image.name for image in images if image.answer is None]
        results = iter(self.members.results(names, batch, with_votes=self.with_votes, pad_to=pad_to))
        return [
            (image.digest, with_box(next(results), image.box) if image.answer is None else image.answer)
            for image in images
        ]


def with_box(result: Found, box: Box | None) -> Found:
    """Return a result that records the box it belongs to."""
    if box is not None and isinstance(result, Classification):
        result = replace(result, box=box)
    return result


def _unanswered(decoded: DecodedChunk, images: Sequence[_Image[Any]], views: int) -> Inputs:
    """Return the inputs of images that still need inference; without a copy if that is all decoded images."""
    good = [image for image, (_, reason) in zip(images, decoded.outcomes, strict=True) if reason is None]
    kept = [n * views + view for n, image in enumerate(good) if image.answer is None for view in range(views)]
    if len(kept) == len(good) * views:
        return decoded.inputs
    return {preprocessing: inputs[kept] for preprocessing, inputs in decoded.inputs.items()}


def nothing_known(name: str, digest: str) -> None:
    """Return None: every image of the stream is predicted."""
