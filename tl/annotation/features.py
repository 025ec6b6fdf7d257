"""Features of photos by a frozen network, computed in the background and cached on disk for the next start.

`PhotoFeatures` fills one matrix, `FeatureWork` is the thread that does it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tl.annotation.content_hashes import ContentHashes, Stamp, read_stamp
from tl.annotation.feature_sources import FeatureSource
from tl.data.features import BATCH
from tl.errors import ImageReadError, TlError
from tl.runtime.devices import usable_cores
from tl.runtime.imaging.geometry import crop_to_input
from tl.runtime.imaging.pipeline import load_working
from tl.runtime.prefetch import prefetch_map
from tl.runtime.sources.paths import read_regular

# Features computed since the last write to disk are lost in a crash.
_SECONDS_UNWRITTEN = 10.0
# A batch takes no longer than about this, so that work ends soon after it is stopped.
_SECONDS_PER_BATCH = 0.6
_FIRST_BATCH = 8
# Speed is that of this many seconds.
_SECONDS_OF_SPEED = 20.0
# Opens what computes features, which may take seconds. Raises `TlError`.
OpenSource = Callable[[], FeatureSource]
_log = logging.getLogger(__name__)


@dataclass
class _Done:
    """A photo that was read: its content hash and, unless its features are cached, its input image."""

    index: int
    digest: str
    stamp: Stamp | None
    image: NDArray[np.uint8] | None


@dataclass
class PhotoFeatures:
    """Features of the images at `paths`, computed by `run` in a background thread.

    `matrix` float32 (N, D), with D = 0 until the length of a feature vector is known; the same array from then on.
    Row i counts once `is_ready[i]`. `errors`: index of an image -> why it has no features. Thread-safe for readers;
    `run` may be called again after it has returned.
    """

    paths: Sequence[str]
    source: FeatureSource
    errors: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing is ready yet."""
        self.is_ready: NDArray[np.bool_] = np.zeros(len(self.paths), bool)
        self.matrix: NDArray[np.float32] = np.empty((len(self.paths), self.source.dimension or 0), np.float32)
        self._recent: deque[tuple[float, int]] = deque()

    @property
    def done(self) -> int:
        """Number of images that need no more work, unreadable ones included."""
        return int(self.is_ready.sum()) + len(self.errors)

    @property
    def images_per_s(self) -> float | None:
        """Images computed per second lately; None before the first ones."""
        recent = list(self._recent)
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])

    @property
    def eta_s(self) -> float | None:
        """Seconds until all are done, at the speed of `images_per_s`."""
        speed = self.images_per_s
        return (len(self.paths) - self.done) / speed if speed else None

    def run(self, stop: threading.Event, on_chunk: Callable[[int], None] = lambda done: None) -> None:
        """Compute all features that are not cached, in chunks, until done or stopped.

        `on_chunk` is called with the number of images done, after each chunk. What is written to the cache so far
        remains. Raises the `TlError` of a network that cannot be computed.
        """
        hashes = ContentHashes.open(self.paths)
        self._take_cached(hashes, stop)
        on_chunk(self.done)
        missing = [i for i in range(len(self.paths)) if not self.is_ready[i] and i not in self.errors]
        if not missing or stop.is_set() or not _prepare(self.source, len(missing), stop):
            return
        written = time.monotonic()
        try:
            with closing(self._read_chunks(missing, stop)) as chunks:
                for chunk in chunks:
                    self._compute(chunk, hashes)
                    on_chunk(self.done)
                    if time.monotonic() - written > _SECONDS_UNWRITTEN:
                        self._write(hashes)
                        written = time.monotonic()
            on_chunk(self.done)  # unreadable images at the end
        finally:
            self._write(hashes)

    def _take_cached(self, hashes: ContentHashes, stop: threading.Event) -> None:
        """Fill the rows of files that are known, without reading these files."""
        cached = self.source.cached
        for i, path in enumerate(self.paths):
            if stop.is_set():
                return
            digest = None if self.is_ready[i] else hashes.get(path)
            if digest is not None and cached.has(digest, (0,)):
                self._fill(i, cached.cache.get(digest))

    def _read_chunks(self, indices: Sequence[int], stop: threading.Event) -> Generator[list[_Done]]:
        """Read and decode images on threads. The size of a chunk follows the network's speed."""
        cores = usable_cores()
        size, chunk = _FIRST_BATCH, []
        read: Generator[_Done | None] = prefetch_map(self._read, indices, workers=cores, ahead=BATCH + cores)
        with closing(read):
            for done in read:
                if stop.is_set():
                    return
                if done is not None:
                    chunk.append(done)
                if len(chunk) < size:
                    continue
                began = time.monotonic()
                yield chunk
                size = _next_size(size, time.monotonic() - began)
                chunk = []
            if chunk:
                yield chunk

    def _read(self, index: int) -> _Done | None:
        path = self.paths[index]
        try:
            stamp = read_stamp(path)
            content = read_regular(path)
            digest = hashlib.sha256(content).hexdigest()
            if self.source.cached.has(digest, (0,)):
                return _Done(index, digest, stamp, None)
            preprocessing = self.source.preprocessing
            return _Done(index, digest, stamp, crop_to_input(load_working(content, preprocessing), preprocessing))
        except ImageReadError as error:
            self.errors[index] = error.reason
            return None

    def _compute(self, chunk: Sequence[_Done], hashes: ContentHashes) -> None:
        cached = self.source.cached
        fresh = [(done, done.image) for done in chunk if done.image is not None]
        if fresh:
            rows = self.source.embed(np.stack([image for _, image in fresh]))
            for (done, _), row in zip(fresh, rows, strict=True):
                cached.cache.put(cached.key(done.digest, 0), row.copy())
                self._fill(done.index, row)
        for done in chunk:
            hashes.put(self.paths[done.index], done.stamp, done.digest)
            if done.image is None:
                self._fill(done.index, cached.cache.get(done.digest))
        self._note_speed()

    def _fill(self, index: int, row: NDArray[np.float32]) -> None:
        if self.matrix.shape[1] == 0:
            self.matrix = np.zeros((len(self.paths), len(row)), np.float32)
        self.matrix[index] = row
        self.is_ready[index] = True

    def _note_speed(self) -> None:
        now = time.monotonic()
        self._recent.append((now, self.done))
        while now - self._recent[0][0] > _SECONDS_OF_SPEED and len(self._recent) > 2:
            self._recent.popleft()

    def _write(self, hashes: ContentHashes) -> None:
        self.source.cached.cache.flush()
        hashes.save()


def _next_size(size: int, seconds: float) -> int:
    """The size of the next batch, after one of `size` images took `seconds`."""
    if seconds > _SECONDS_PER_BATCH:
        return max(size // 2, 1)
    return min(2 * size, BATCH) if seconds < _SECONDS_PER_BATCH / 2 else size


def _prepare(source: FeatureSource, count: int, stop: threading.Event) -> bool:
    """Prepare a source, which takes seconds and cannot be ended. Returns False if stopped meanwhile."""
    failed: list[Exception] = []

    def work() -> None:
        try:
            source.prepare(count)
        except Exception as error:  # raised below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, name="tl-prepare", daemon=True)
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(0.1)
    if failed:
        raise failed[0]
    return not stop.is_set()


class FeatureWork:
    """Computes features in the background. `features`: None until the network is open. `error`: why there are none.

    `told` is called when there are more; `opens`: None for a session without features.
    """

    def __init__(self, paths: Sequence[str], opens: OpenSource | None, told: Callable[[], None]) -> None:
        self._paths, self._opens, self._told = paths, opens, told
        self.features: PhotoFeatures | None = None
        self.error = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="features", daemon=True)

    def start(self) -> None:
        """Begin, if there is something to compute."""
        if self._opens is not None:
            self._thread.start()

    def close(self) -> None:
        """Stop after the images in progress; what was computed is kept for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        try:
            if self._opens is not None:
                features = PhotoFeatures(self._paths, self._opens())
                features.matrix[:] = 0  # rows that are never computed, as of unreadable photos, have a value
                self.features = features
                features.run(self._stop, lambda done: self._told())
        except TlError as error:
            self.error = str(error)
        except Exception:
            _log.exception("a fault of this program while computing features")
            self.error = "a fault of this program: the terminal says more"
        self._told()

    @property
    def done(self) -> int:
        """Number of photos that need no more work."""
        return 0 if self.features is None else self.features.done

    @property
    def errors(self) -> dict[int, str]:
        """Why photos have no features, by image."""
        return {} if self.features is None else self.features.errors
