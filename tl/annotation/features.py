"""Features of photos by a frozen network, computed in the background and cached on disk for the next start.

`open_source` opens what computes them: a model file, or a backbone with published weights, whose cached features `tl
train` uses too. `PhotoFeatures` fills one matrix. Imports torch only when a backbone has to compute something.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tl.annotation.content_hashes import ContentHashes, Stamp, read_stamp
from tl.data.array_cache import ArrayCache
from tl.data.features import BATCH, Embedder, FeatureSet, open_features
from tl.data.images import preprocessing_key
from tl.errors import ImageReadError, MissingExtraError, ModelFileError
from tl.progress import Silent
from tl.runtime.devices import usable_cores
from tl.runtime.imaging.geometry import crop_to_input
from tl.runtime.imaging.pipeline import load_working
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.prefetch import prefetch_map
from tl.runtime.session import Session
from tl.runtime.sources.paths import hash_file, read_regular
from tl.trainer.config import TrainConfig
from tl.trainer.models.backbone_info import BUNDLED, BackboneInfo, remembered_info
from tl.trainer.models.weight_files import WeightsFile
from tl.trainer.options import resolve
from tl.trainer.task import build_run_preprocessing, find_info, find_start, open_run_features

EMBEDDING = "embedding"
# Features computed since the last write to disk are lost in a crash.
_SECONDS_UNWRITTEN = 10.0
# A batch takes no longer than about this, so that work ends soon after it is stopped.
_SECONDS_PER_BATCH = 0.6
_FIRST_BATCH = 8
# Speed is that of this many seconds.
_SECONDS_OF_SPEED = 20.0


class FeatureSource(Protocol):
    """What computes features. `dimension`: length of a feature vector, None until it is known."""

    @property
    def name(self) -> str:
        """The model file or backbone, for display."""

    @property
    def dimension(self) -> int | None:
        """Length of a feature vector; None until the first one was computed."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""

    @property
    def cached(self) -> FeatureSet:
        """The cache of this network's features."""

    def prepare(self, count: int) -> None:
        """Load what is needed to compute the features of `count` images. Raises `TlError`."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images uint8 (N, H, W, 3) -> features float32 (N, D). Raises `TlError`."""


@dataclass
class ModelFileSource:
    """The output `embedding` of a model file, computed by the runtime alone."""

    session: Session
    name: str
    preprocessing: Preprocessing
    cached: FeatureSet
    dimension: int | None

    def prepare(self, count: int) -> None:
        """The file is open already."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images uint8 (N, H, W, 3) -> features float32 (N, D)."""
        return self.session.run(images, (EMBEDDING,))[0].astype(np.float32, copy=False)


@dataclass
class BackboneSource:
    """A frozen backbone as `tl train --method features` uses it, with the same cached features."""

    config: TrainConfig
    info: BackboneInfo
    weights: WeightsFile
    preprocessing: Preprocessing
    cached: FeatureSet
    dimension: int | None = None
    _embedder: Embedder | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.config.backbone

    def prepare(self, count: int) -> None:
        """Load torch, the weights, and for many images the backbone's graph."""
        with self._lock:
            if self._embedder is None:
                self._embedder = _build_embedder(self, count)

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images uint8 (N, H, W, 3) -> features float32 (N, D)."""
        self.prepare(len(images))
        if self._embedder is None:
            raise ValueError("not prepared")
        features = self._embedder(images)
        self.dimension = features.shape[1]
        return features


def open_source(
    model: Path | None = None, backbone: str | None = None, device: str = "auto", threads: int | None = None
) -> FeatureSource:
    """Open a model file with an output `embedding`, or a backbone with its published weights.

    `backbone`: None for the default one. Raises `ModelFileError` and `DeviceError` for a model file,
    `MissingExtraError`, `WeightsError` and `ConfigError` for a backbone.
    """
    return (
        _open_backbone(backbone or BUNDLED, device, threads) if model is None else _open_model(model, device, threads)
    )


def _open_model(model: Path, device: str, threads: int | None) -> ModelFileSource:
    session = Session(model, device=device, threads=threads)
    contract = session.contract
    if contract is None or EMBEDDING not in contract.outputs:
        raise ModelFileError(f"{model}: has no output '{EMBEDDING}'; expected a classifier exported from a run")
    if session.takes_any_size:
        raise ModelFileError(
            f"{model}: takes images of any size, so it cannot be used here: use the file of fixed size that it was "
            "made from"
        )
    _, shape = session.output(EMBEDDING)
    cached = open_features(
        model=hash_file(model),
        precision=session.precision,
        preprocessing=preprocessing_key(contract.preprocessing),
    )
    dimension = shape[1] if len(shape) == 2 else None
    return ModelFileSource(session, model.name, contract.preprocessing, _without_copies(cached), dimension)


def _open_backbone(backbone: str, device: str, threads: int | None) -> BackboneSource:
    if find_spec("torch") is None:
        raise MissingExtraError(
            "features of a backbone require additional packages (torch is missing): pip install 'tl-toolkit[train]', "
            "or use a model file that outputs an embedding"
        )
    asked = TrainConfig(
        data="", task="classification", method="features", backbone=backbone, device=device, threads=threads, out="-"
    )
    config = resolve(asked)
    info = remembered_info(config.backbone, find_info)
    preprocessing = build_run_preprocessing(config, info)
    weights, info = find_start(config, info)
    if weights is None:
        raise ValueError("features require a pretrained backbone")
    cached = open_run_features(config, info, preprocessing, None, weights)
    return BackboneSource(config, info, weights, preprocessing, _without_copies(cached))


def _build_embedder(source: BackboneSource, count: int) -> Embedder:
    from tl.trainer.features.extraction import build_embedder
    from tl.trainer.fit.machine import build_machine
    from tl.trainer.models.build import build_network
    from tl.trainer.models.weights import read_weights

    config = source.config
    machine = build_machine(config.device, config.precision, config.threads)
    network = build_network(config, source.info, 2, read_weights(source.weights, config.backbone))
    kept = {name: t for name, t in network.state_dict().items() if name.startswith(("normalize.", "trunk."))}
    source.cached.keep_network({name: tensor.numpy() for name, tensor in kept.items()})
    graph = source.cached.folder / "trunk.onnx"
    return build_embedder(network, source.preprocessing.input_shape, count, graph, machine, Silent())


def _without_copies(features: FeatureSet) -> FeatureSet:
    """The same cache, which drops from memory what it cannot write: `PhotoFeatures` has it in its matrix."""
    return FeatureSet(ArrayCache(features.folder), features.folder)


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
