"""Open model files and run prediction on one or many images.

Handles devices, threads and batch sizes. The prediction itself is in `ensembles` and `landmarks`, concurrency in
`streams`, result files in `output`, and image lookup in `sources`. The main entry points of `tl.runtime` are here:
`load`, `load_landmarks`, `load_multilabel` and `load_regression`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Generic, Literal

from tl.errors import EnsembleError, ImageReadError
from tl.runtime.devices import usable_cores
from tl.runtime.ensembles.ensemble import ClassRule, Ensemble
from tl.runtime.ensembles.multilabel import MultilabelEnsemble
from tl.runtime.ensembles.regression import RegressionEnsemble, ValueMerging
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.ensembles.supported import WITHOUT_BOXES
from tl.runtime.ensembles.voting import Voting
from tl.runtime.imaging.pipeline import TtaKind
from tl.runtime.imaging.regions import Box, Region
from tl.runtime.landmarks.ensemble import LandmarkEnsemble, Merging
from tl.runtime.providers import runs_on_cpu
from tl.runtime.results import ClassFields, Classification, Failure, Landmarks, Multilabel, Regression
from tl.runtime.session import Session
from tl.runtime.sources.boxed_images import BoxList, PredictionSource, UnboxedImage, box_list, item_name, split_item
from tl.runtime.sources.remote import iter_opened
from tl.runtime.streams import MAX_GROUP, Found, Known, Members, Stream, nothing_known, with_box

Hint = Literal["throughput", "latency"]
# A CPU core is at or near its fastest with one image at a time; a GPU needs large batches.
# Source of 64: benchmarks/predict_cuda.py on an H100, MobileNetV2, images/s by batch size: 7,100 at 32, 7,800 at 64,
# 8,450 at 128.
CPU_BATCH, CUDA_BATCH = 1, 64
# Batches in flight on CUDA: one is copied to the device, and its results are unpacked, while another is computed.
CUDA_CALLERS = 2
ModelPath = str | os.PathLike[str]
# A model file, or one that is open already.
Model = ModelPath | Session


def load(
    models: Model | Sequence[Model],
    *,
    device: str = "auto",
    threads: int | None = None,
    hint: Hint = "throughput",
    vote: Voting = "soft",
    weights: Sequence[float] | None = None,
    classes: ClassRule = "same",
    selective: SelectivePrediction | None = None,
    tta: Sequence[TtaKind] = (),
    only: Sequence[str] | None = None,
    decode_processes: int = 0,
    boxes: BoxList | Mapping[str, Sequence[Box]] | None = None,
) -> Predictor[Classification]:
    """Open one classifier, or several classifiers that vote.

    `device`: "auto", "cpu", "cuda", "cuda:N", "openvino" or another name of `providers.PROVIDERS`. `threads`: number of
    threads, None for all usable cores. `hint` applies to the CPU: "throughput" lets each thread process its own images,
    which is fastest for many images; "latency" uses all threads for one image, which is fastest for a single image. If
    `models` is a list, even of length one, results include votes. `selective`: prediction sets with a chosen coverage,
    and rejection of labels. `tta`: test-time augmentation, which averages over views of each image: "hflip", "vflip",
    "crops" (the whole image, its center and its corners), and their combinations. `only`: the classes that can occur;
    the probabilities of all others are left out and the rest renormalized. `decode_processes`: number of decoding
    processes for `predict_iter`, `predict_batch` and `predict_unknown`; with 0, threads decode. Each call starts its
    own processes, which takes a third of a second, so use them for streams of many images where the GPU would otherwise
    wait; files that take images of any size always decode in threads. `boxes`: for models trained on boxes, the boxes
    of each image, from `read_boxes` or path -> boxes; each gives a result of its own, in the place of the image, and an
    image without one gives a `NoBox`. Without `boxes`, such a model predicts `BoxedImage`s.
    Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    sessions, alone, threads = _open_sessions(models, device, threads, hint)
    ensemble = Ensemble(
        sessions, voting=vote, weights=weights, classes=classes, selective=selective, tta=tta, only=only
    )
    if boxes is not None and ensemble.crop is None:
        raise EnsembleError(f"{ensemble.sessions[0].path}: {WITHOUT_BOXES}")
    known = None if boxes is None else box_list(boxes)
    return Predictor(ensemble, with_votes=not alone, threads=threads, decode_processes=decode_processes, boxes=known)


def load_landmarks(
    models: Model | Sequence[Model],
    *,
    device: str = "auto",
    threads: int | None = None,
    hint: Hint = "throughput",
    merge: Merging = "mean",
    weights: Sequence[float] | None = None,
    locator: ModelPath | None = None,
    boxes: Mapping[str, Region | Box] | None = None,
    crop_margin: float | None = None,
    mm_per_px: float | Mapping[str, float] | None = None,
) -> Predictor[Landmarks]:
    """Open one landmark model, or several whose points are merged; `device`, `threads` and `hint` as for `load`.

    `merge`: how the members' points are combined. Models trained on boxes take the box from `boxes`, path -> `Box`, or
    (left, top, width, height) in pixels of the upright photo, or compute it around the points predicted by `locator`,
    another landmark model; `crop_margin` overrides the margin stored in the models. `mm_per_px`: the scale of the
    photos, or path -> scale; it is copied to the results. If `models` is a list, even of length one, results include
    the spread.
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


def load_regression(
    models: Model | Sequence[Model],
    *,
    device: str = "auto",
    threads: int | None = None,
    hint: Hint = "throughput",
    merge: ValueMerging = "mean",
    weights: Sequence[float] | None = None,
    coverage: float | None = None,
    decode_processes: int = 0,
) -> Predictor[Regression]:
    """Open one model that predicts numbers, or several whose values are combined; options as for `load`.

    `merge`: mean or median of the members' values. `coverage`: probability with which intervals should hold the true
    numbers, for a single model. If `models` is a list, even of length one, results include the members' values.
    Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    sessions, alone, threads = _open_sessions(models, device, threads, hint)
    ensemble = RegressionEnsemble(sessions, merging=merge, weights=weights, coverage=coverage)
    return Predictor(ensemble, with_votes=not alone, threads=threads, decode_processes=decode_processes)


def load_multilabel(
    models: Model | Sequence[Model],
    *,
    device: str = "auto",
    threads: int | None = None,
    hint: Hint = "throughput",
    weights: Sequence[float] | None = None,
    coverage: float | None = None,
    decode_processes: int = 0,
) -> Predictor[Multilabel]:
    """Open one model that gives an image several labels, or several models whose probabilities and thresholds are
    averaged; options as for `load`.

    `coverage`: share of an image's labels that its set should hold on average, for a single model. If `models` is a
    list, even of length one, results include the members' labels.
    Raises `ModelFileError`, `EnsembleError` or `DeviceError`.
    """
    sessions, alone, threads = _open_sessions(models, device, threads, hint)
    ensemble = MultilabelEnsemble(sessions, weights=weights, coverage=coverage)
    return Predictor(ensemble, with_votes=not alone, threads=threads, decode_processes=decode_processes)


def _open_sessions(
    models: Model | Sequence[Model], device: str, threads: int | None, hint: Hint
) -> tuple[list[Session], bool, int]:
    """Return the sessions, whether `models` was a single model, and the number of threads."""
    alone = isinstance(models, str | os.PathLike | Session)
    listed = [models] if isinstance(models, str | os.PathLike | Session) else list(models)
    threads = threads or usable_cores()
    per_run = 1 if hint == "throughput" else threads
    sessions = [m if isinstance(m, Session) else Session(m, device=device, threads=per_run) for m in listed]
    return sessions, alone, threads


class Predictor(Generic[Found]):
    """Predict images. Thread-safe; a context manager that frees the sessions. Cannot be used in a forked process.

    A source is a path, encoded bytes, a binary file, a Pillow image, or a uint8 (H, W, 3) RGB array, (H, W, C) for a
    model of C > 3 channels; or one of these with a box, a `BoxedImage`. `boxes`: those of the sources.
    """

    def __init__(
        self,
        ensemble: Members[Found],
        *,
        with_votes: bool,
        threads: int | None = None,
        decode_processes: int = 0,
        boxes: BoxList | None = None,
    ) -> None:
        if decode_processes < 0:
            raise ValueError(f"decode_processes must be 0 or more, got {decode_processes}")
        self._ensemble: Members[Found] | None = ensemble
        self._pid = os.getpid()
        self.with_votes = with_votes
        self._threads = threads or usable_cores()
        self.decode_processes, self.boxes = decode_processes, boxes
        self.class_names, self.keypoint_names = ensemble.class_names, ensemble.keypoint_names
        self.fields = ensemble.fields(with_votes=with_votes)
        if isinstance(self.fields, ClassFields) and isinstance(ensemble, Ensemble) and ensemble.crop is not None:
            is_relative = boxes is not None and boxes.is_relative
            self.fields = replace(self.fields, boxes="relative" if is_relative else "pixels", with_reason=True)
            self.fields = replace(self.fields, classifiers=ensemble.member_names)
        self.member_names = ensemble.member_names
        self.provider, self.fault = ensemble.sessions[0].provider, ensemble.sessions[0].fault
        self._is_cpu = runs_on_cpu(self.provider)

    @property
    def ensemble(self) -> Members[Found]:
        """The members. Raises ValueError once closed, RuntimeError in a fork of the process that loaded them."""
        self._check_process()
        if self._ensemble is None:
            raise ValueError("this predictor is closed")
        return self._ensemble

    def items(self, sources: Iterable[PredictionSource]) -> Iterable[PredictionSource]:
        """Return what is predicted for `sources`, lazily: one item per result, so one for each box."""
        return sources if self.boxes is None else self.boxes.expand(sources)

    def predict(self, source: PredictionSource) -> Found:
        """Predict one image. Raises `ImageReadError` if it cannot be read, or does not have exactly one box."""
        ensemble = self.ensemble
        name = item_name(source)
        items = list(self.items([source]))
        if len(items) > 1:
            raise ImageReadError(name, f"has {len(items)} boxes: predict_iter gives a result for each of them")
        if isinstance(items[0], UnboxedImage):
            raise ImageReadError(name, items[0].answer.error)
        image, box = split_item(items[0])
        batch = ensemble.stack([ensemble.prepare(image, name, box)])
        (result,) = ensemble.results([name], batch, with_votes=self.with_votes)
        return with_box(result, box)

    def predict_batch(self, sources: Sequence[PredictionSource]) -> list[Found | Failure]:
        """Predict several images; an unreadable image gives a `Failure` in its place, boxes several results."""
        return list(self.predict_iter(sources))

    def predict_iter(
        self, sources: Iterable[PredictionSource], *, batch_size: int | None = None
    ) -> Iterator[Found | Failure]:
        """Predict lazily, in input order, with memory bounded by a few batches; with boxes, one result for each.

        `batch_size`: images per run, None for the default of the device; files that take any size always run one. An
        unreadable image gives a `Failure`.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return (result for _, result in self._stream(sources, batch_size, nothing_known, hashes=False))

    def predict_unknown(
        self,
        sources: Iterable[PredictionSource],
        known: Callable[[str, str], Known | None],
        *,
        batch_size: int | None = None,
    ) -> Iterator[tuple[str, Found | Failure | Known]]:
        """Like `predict_iter`, but call `known(name, digest)` first and yield its answer in place of a prediction.

        Also yields the digest of each image: the SHA-256 of its content in hex, "" if it could not be read; that of a
        box contains the box. `known` is
        called from several threads.
        """
        return self._stream(sources, batch_size, known, hashes=True)

    def _stream(
        self,
        sources: Iterable[PredictionSource],
        batch_size: int | None,
        known: Callable[[str, str], Known | None],
        *,
        hashes: bool,
    ) -> Iterator[tuple[str, Found | Failure | Known]]:
        ensemble = self.ensemble
        sources = self.items(iter_opened(sources))
        is_any_size = any(session.takes_any_size for session in ensemble.sessions)
        size = batch_size or (CPU_BATCH if self._is_cpu else max(1, CUDA_BATCH // ensemble.num_views))
        size = 1 if is_any_size else size
        # Inputs of any size are whole photos, and a GPU waits for its batches.
        group = MAX_GROUP if self._is_cpu and not is_any_size else 1
        pads = not self._is_cpu
        stream = Stream(ensemble, known, self.with_votes, size, hashes=hashes, pads=pads, max_group=group)
        callers = self._threads if self._is_cpu else CUDA_CALLERS

        def answers() -> Iterator[tuple[str, Found | Failure | Known]]:
            self._check_process()
            if self.decode_processes and ensemble.preparer is not None and not is_any_size:
                chunks = stream.in_processes(sources, ensemble.preparer, self.decode_processes, callers)
            else:
                chunks = stream.in_threads(sources, self._threads)
            for chunk in chunks:
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
                f"this predictor was loaded in process {self._pid} and cannot be used in the forked "
                f"process {os.getpid()}, which does not have its threads: load it in the child process"
            )
