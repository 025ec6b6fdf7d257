"""Who computes: threads that each decode and predict one image on a CPU, batches over all requests on a GPU.

Knows predictors and images, not HTTP.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import MAX_PIXELS, read_size
from tl.runtime.predictor import CUDA_BATCH, CUDA_CALLERS, Predictor
from tl.runtime.results import Failure, Result

Answer = TypeVar("Answer")
# An image file, or what `Predictor.ensemble.stack` combines: an image that is prepared already.
Source = bytes | Any


@dataclass(frozen=True)
class Batching:
    """Images of several requests are predicted together: up to `max_batch`, none waiting longer than `max_delay_ms`."""

    max_batch: int = CUDA_BATCH
    max_delay_ms: float = 5.0


@dataclass(frozen=True)
class _Waiting:
    """A prepared image that waits for its batch."""

    predictor: Predictor[Any]
    prepared: Any
    result: Future[Result]
    since: float = field(default_factory=time.monotonic)


class Workers:
    """A pool of `threads`, shared by all models and requests. Thread-safe; `close` ends it.

    Without `batching`, as on a CPU, each thread decodes and predicts one image at a time, which is fastest there. With
    it, the threads decode, and a few callers predict batches.
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
        self._pool = ThreadPoolExecutor(threads, "predict")
        self._batcher = None if batching is None else _Batcher(batching, seen)

    def submit(self, job: Callable[[], Answer]) -> Future[Answer]:
        """Run any job in the pool."""
        return self._pool.submit(job)

    def predict(self, predictor: Predictor[Any], source: Source) -> Future[Result]:
        """Predict one image, which gives a `Failure` if it cannot be read. Cancelling works until it is decoded."""
        if self._batcher is None:
            return self._pool.submit(self._predict, predictor, source)
        result: Future[Result] = Future()
        self._pool.submit(self._prepare, predictor, source, result)
        return result

    def close(self) -> None:
        """End the threads once the jobs in progress are finished."""
        self._pool.shutdown(cancel_futures=True)
        if self._batcher is not None:
            self._batcher.close()

    def _predict(self, predictor: Predictor[Any], source: Source) -> Result:
        ensemble = predictor.ensemble
        try:
            prepared = self._decode(predictor, source)
        except ImageReadError as error:
            return Failure("", error.reason)
        results: Sequence[Result] = ensemble.results([""], ensemble.stack([prepared]), with_votes=predictor.with_votes)
        return results[0]

    def _prepare(self, predictor: Predictor[Any], source: Source, result: Future[Result]) -> None:
        if self._batcher is None or not result.set_running_or_notify_cancel():
            return
        try:
            self._batcher.put(_Waiting(predictor, self._decode(predictor, source), result))
        except ImageReadError as error:
            result.set_result(Failure("", error.reason))
        except BaseException as error:
            result.set_exception(error)

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
            self._seen(len(batch))
            predictor = batch[0].predictor
            ensemble = predictor.ensemble
            stacked = ensemble.stack([one.prepared for one in batch])
            # A few sizes only: cuDNN searches for its fastest kernels for each.
            size = 1 << (len(batch) - 1).bit_length()
            results = ensemble.results([""] * len(batch), stacked, with_votes=predictor.with_votes, pad_to=size)
            for one, result in zip(batch, results, strict=True):
                one.result.set_result(result)
        except BaseException as error:
            for one in batch:
                if not one.result.done():
                    one.result.set_exception(error)
        finally:
            self._free.release()
