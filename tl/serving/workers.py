"""Who computes: threads that decode and predict images on a CPU, batches over all requests on a GPU.

Knows predictors and images, not HTTP.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import MAX_PIXELS, read_size
from tl.runtime.predictor import CUDA_BATCH, CUDA_CALLERS, Predictor
from tl.runtime.results import Failure, Result
from tl.runtime.streams import MAX_GROUP

Answer = TypeVar("Answer")
# A step, which may return the next one; a job is a step and the jobs it belongs to.
_Step = Callable[[], "_Step | None"]
_Job = tuple["Jobs[Any]", _Step]
# Other images wait while one thread decodes its share.
_SECONDS_DECODING = 0.02
# An image file, or what `Predictor.ensemble.stack` combines: an image that is prepared already.
Source = bytes | Any


@dataclass(frozen=True)
class Batching:
    """Images of several requests are predicted together: up to `max_batch`, and after `max_delay_ms` fewer.

    While all callers compute, images wait longer, and the next batch becomes fuller.
    """

    max_batch: int = CUDA_BATCH
    max_delay_ms: float = 5.0

    @property
    def sizes(self) -> list[int]:
        """The sizes to which batches are padded: cuDNN searches for its fastest kernels for each."""
        return [1 << n for n in range((self.max_batch - 1).bit_length() + 1)]


class Jobs(Generic[Answer]):
    """Jobs of one request and their results, in order. Thread-safe.

    Tells of the last result once, which is cheaper than a future for each image and its way to the event loop.
    """

    def __init__(self, count: int) -> None:
        self._results: list[Answer | None] = [None] * count
        self._left = count
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._tell: Callable[[], object] | None = None
        self.is_cancelled = False

    @property
    def is_done(self) -> bool:
        """Whether all results are there, or an error."""
        return self._left == 0 or self._error is not None

    def when_done(self, tell: Callable[[], object]) -> None:
        """Call `tell` once, from any thread, when the jobs are done."""
        with self._lock:
            is_done = self.is_done
            self._tell = None if is_done else tell
        if is_done:
            tell()

    def results(self) -> list[Answer]:
        """Return all results. Raises the error of a job."""
        if self._error is not None:
            raise self._error
        return cast("list[Answer]", self._results)

    def cancel(self) -> None:
        """Skip the jobs that have not started."""
        self.is_cancelled = True

    def finish(self, number: int, result: Answer) -> None:
        """Record a result."""
        self._results[number] = result
        self._count(None)

    def fail(self, error: BaseException) -> None:
        """Record an error, which ends all jobs."""
        self.is_cancelled = True
        self._count(error)

    def _count(self, error: BaseException | None) -> None:
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            tell = self._tell if self.is_done else None
            if tell is not None:
                self._tell = None
        if tell is not None:
            tell()


@dataclass(frozen=True)
class _Waiting:
    """A prepared image that waits for its batch."""

    predictor: Predictor[Any]
    prepared: Any
    jobs: Jobs[Result]
    number: int
    since: float = field(default_factory=time.monotonic)


class Workers:
    """`threads` threads, shared by all models and requests. Thread-safe; `close` ends them.

    Without `batching`, as on a CPU, each thread decodes some images and predicts them one by one, which is fastest
    there. With it, the threads decode, and a few callers predict batches. `seen`: called with the size of each batch.
    """

    def __init__(
        self,
        threads: int,
        *,
        batching: Batching | None = None,
        max_pixels: float = MAX_PIXELS,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._max_pixels = max_pixels
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="predict", daemon=True) for _ in range(threads)]
        self._batcher = None if batching is None else _Batcher(batching, seen)
        for thread in self._threads:
            thread.start()

    def run(self, functions: Sequence[Callable[[], Answer]]) -> Jobs[Answer]:
        """Run any functions, after the images before them: a slow one must not hold up images that are decoded."""
        jobs: Jobs[Answer] = Jobs(len(functions))
        for number, function in enumerate(functions):
            step = partial(_run_one, jobs, number, function)
            self._queue.put((jobs, partial(_after_decoding, step)))
        return jobs

    def prepare(self, predictor: Predictor[Any], sources: Sequence[Source]) -> Jobs[Any]:
        """Prepare images for the models; one that cannot be read gives a `Failure`."""
        return self.run([partial(self._decode_or_fail, predictor, source) for source in sources])

    def predict(self, predictor: Predictor[Any], sources: Sequence[Source]) -> Jobs[Result]:
        """Predict images; one that cannot be read gives a `Failure`. Paths in results are empty."""
        jobs: Jobs[Result] = Jobs(len(sources))
        # Images of different sizes cannot be a batch.
        is_alone = self._batcher is None or any(one.takes_any_size for one in predictor.ensemble.sessions)
        step = self._predict if is_alone else self._prepare
        for number, source in enumerate(sources):
            self._queue.put((jobs, partial(step, jobs, number, predictor, source)))
        return jobs

    def close(self) -> None:
        """Finish the jobs in progress and end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._batcher is not None:
            self._batcher.close()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self._do_share(job)
            del job  # do not keep an image until the next one comes

    def _do_share(self, job: _Job | None) -> None:
        """Take this thread's share of the queue: decode these images, then predict them, as `streams` does."""
        share = min(MAX_GROUP, 1 + self._queue.qsize() // len(self._threads))
        decoded: list[_Job] = []
        ends = time.monotonic() + _SECONDS_DECODING
        while job is not None:
            decoded += self._do(job)
            job = None
            if len(decoded) >= share or time.monotonic() >= ends:
                break
            with suppress(queue.Empty):
                job = self._queue.get_nowait()
                if job is None:
                    self._queue.put(None)  # the end, seen again after this share
        for step in decoded:
            self._do(step)

    @staticmethod
    def _do(job: _Job) -> list[_Job]:
        """Do a job, unless its request is over. Returns the job that follows from it, if any."""
        jobs, step = job
        if jobs.is_cancelled:
            return []
        try:
            following = step()
        except BaseException as error:  # raised where the results are asked for
            jobs.fail(error)
            return []
        return [] if following is None else [(jobs, following)]

    def _predict(self, jobs: Jobs[Result], number: int, predictor: Predictor[Any], source: Source) -> _Step | None:
        try:
            prepared = self._decode(predictor, source)
        except ImageReadError as error:
            jobs.finish(number, Failure("", error.reason))
            return None
        return partial(self._infer, jobs, number, predictor, prepared)

    @staticmethod
    def _infer(jobs: Jobs[Result], number: int, predictor: Predictor[Any], prepared: Any) -> None:
        ensemble = predictor.ensemble
        (result,) = ensemble.results([""], ensemble.stack([prepared]), with_votes=predictor.with_votes)
        jobs.finish(number, result)

    def _prepare(self, jobs: Jobs[Result], number: int, predictor: Predictor[Any], source: Source) -> None:
        try:
            waiting = _Waiting(predictor, self._decode(predictor, source), jobs, number)
        except ImageReadError as error:
            jobs.finish(number, Failure("", error.reason))
            return
        if self._batcher is not None:
            self._batcher.put(waiting)

    def _decode_or_fail(self, predictor: Predictor[Any], source: Source) -> Any:
        try:
            return self._decode(predictor, source)
        except ImageReadError as error:
            return Failure("", error.reason)

    def _decode(self, predictor: Predictor[Any], source: Source) -> Any:
        """Return an image, prepared for the models. Raises `ImageReadError`."""
        if not isinstance(source, bytes):
            return source
        if self._max_pixels < MAX_PIXELS:  # else the decoder's own limit
            height, width = read_size(source)
            if height * width > self._max_pixels:
                raise ImageReadError(
                    "", f"{width}x{height} pixels, but the limit of this server is {self._max_pixels / 1e6:g} million"
                )
        return predictor.ensemble.prepare(source, "")


def _after_decoding(step: _Step) -> _Step:
    return step


def _run_one(jobs: Jobs[Answer], number: int, function: Callable[[], Answer]) -> None:
    jobs.finish(number, function())


class _Batcher:
    """Forms batches of the images that wait, of one model each, and predicts them."""

    def __init__(self, batching: Batching, seen: Callable[[int], None]) -> None:
        self._batching, self._seen = batching, seen
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._callers = ThreadPoolExecutor(CUDA_CALLERS, "infer")
        self._free = threading.Semaphore(CUDA_CALLERS)
        self._thread = threading.Thread(target=self._collect, name="batches", daemon=True)
        self._thread.start()

    def put(self, waiting: _Waiting) -> None:
        self._waiting.put(waiting)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._callers.shutdown()

    def _collect(self) -> None:
        """Collect images until a batch is full, or its first image has waited long enough and a caller is free."""
        batches: dict[int, list[_Waiting]] = {}
        is_open = True
        while is_open or batches:
            now = time.monotonic()
            ends = min((self._ends(batch) for batch in batches.values()), default=now + 3600)
            try:
                waiting = self._waiting.get(timeout=max(ends - now, 0.0)) if is_open else None
                is_open = is_open and waiting is not None
                if waiting is not None:
                    batches.setdefault(id(waiting.predictor), []).append(waiting)
            except queue.Empty:
                pass
            for key, batch in list(batches.items()):
                is_due = not is_open or time.monotonic() >= self._ends(batch)
                if len(batch) >= self._batching.max_batch or is_due:
                    self._free.acquire()  # meanwhile, more images come in and make the next batch fuller
                    self._take_more(batches)
                    del batches[key]
                    for start in range(0, len(batch), self._batching.max_batch):
                        if start:
                            self._free.acquire()
                        self._callers.submit(self._run, batch[start : start + self._batching.max_batch])

    def _take_more(self, batches: dict[int, list[_Waiting]]) -> None:
        """Add the images that are in the queue already."""
        with suppress(queue.Empty):
            while (waiting := self._waiting.get_nowait()) is not None:
                batches.setdefault(id(waiting.predictor), []).append(waiting)
            self._waiting.put(None)

    def _ends(self, batch: list[_Waiting]) -> float:
        return batch[0].since + self._batching.max_delay_ms / 1000

    def _run(self, batch: list[_Waiting]) -> None:
        try:
            batch = [one for one in batch if not one.jobs.is_cancelled]
            if not batch:
                return
            self._seen(len(batch))
            predictor = batch[0].predictor
            ensemble = predictor.ensemble
            stacked = ensemble.stack([one.prepared for one in batch])
            size = next(size for size in self._batching.sizes if size >= len(batch))
            results = ensemble.results([""] * len(batch), stacked, with_votes=predictor.with_votes, pad_to=size)
            for one, result in zip(batch, results, strict=True):
                one.jobs.finish(one.number, result)
        except BaseException as error:  # raised where the results are asked for
            for one in batch:
                one.jobs.fail(error)
        finally:
            self._free.release()
