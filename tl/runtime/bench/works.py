"""Run the measurements of `tl bench`: networks, decoding and both together, on real or synthetic images.

Rounds alternate between the measurements. `measure` derives the recommendations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tl.errors import DataError, ImageReadError
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.contract import Contract, Precision
from tl.runtime.predictor import (
    CPU_BATCH,
    CUDA_BATCH,
    Hint,
    Predictor,
    load,
    load_landmarks,
    load_multilabel,
    load_regression,
)
from tl.runtime.providers import runs_on_cpu
from tl.runtime.session import Session

# Size of a phone photo: 12 megapixels. At quality 90, a synthetic one has about 0.2 bytes per pixel, like many photos.
PHONE_WH = (4000, 3000)
_TILE = 512
# Amplitude ratio between octaves of detail: 0.5 gives JPEGs of 0.13 bytes per pixel, 0.7 of 0.32.
_FALLOFF = 0.6


def sample_jpeg(size_wh: tuple[int, int] = PHONE_WH, seed: int = 0) -> bytes:
    """Return a synthetic JPEG (quality 90, 4:2:0) of `size_wh` pixels with detail at every scale, fixed by `seed`."""
    tile = _clouds(seed)
    width, height = size_wh
    repeats = (-(-height // _TILE), -(-width // _TILE), 1)
    image = np.ascontiguousarray(np.tile(tile, repeats)[:height, :width])
    encoded: bytes = simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420")
    return encoded


def _clouds(seed: int) -> NDArray[np.uint8]:
    """Return the sum of noise with 4, 8, 16 ... cells per side: uint8 (_TILE, _TILE, 3)."""
    generator = np.random.default_rng(seed)
    image = np.full((_TILE, _TILE, 3), 128, np.float32)
    cells, contrast = 4, 60.0
    while cells <= _TILE:
        noise = generator.standard_normal((cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[:, :, channel]).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
            image[:, :, channel] += contrast * np.asarray(layer)
        cells, contrast = 2 * cells, contrast * _FALLOFF
    return image.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Work:
    """A repeatable measurement: `callers` threads run it at the same time, each run with a unique number.

    `call` processes `images` images and takes about `seconds`.
    """

    call: Callable[[int], object]
    images: int
    callers: int
    seconds: float


@dataclass(frozen=True)
class Timing:
    """Speed of one setting. `images_per_s`: median of the rounds; `slowest`, `fastest`: their minimum and maximum.

    `p50_ms`, `p90_ms`, `p99_ms`: duration of one run, by nearest rank over the `runs` of all rounds.
    """

    images_per_s: float
    slowest: float
    fastest: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


def minimal_seconds(works: Sequence[Work], rounds: int) -> float:
    """Return the minimum duration of `time_works`: one warm-up run and one run per round."""
    return (rounds + 1) * sum(work.seconds for work in works)


def time_works(
    works: Sequence[Work], *, seconds: float, rounds: int, advance: Callable[[], None] = lambda: None
) -> list[Timing]:
    """Warm up, then time all works in turn, `rounds` times, in about `seconds`; at least one run each."""
    for work in works:
        _repeat(work, 0.0)
    spare = max(0.0, seconds - minimal_seconds(works, rounds)) / (rounds * max(1, len(works)))
    rates: list[list[float]] = [[] for _ in works]
    runs: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for i, work in enumerate(works):
            by_caller = _repeat(work, spare)
            rates[i].append(sum(work.images * len(times) / sum(times) for times in by_caller))
            runs[i] += [one for times in by_caller for one in times]
            advance()
    return [_summarize(*measured) for measured in zip(rates, runs, strict=True)]


def _repeat(work: Work, seconds: float) -> list[list[float]]:
    """Run for `seconds`, at least once; return the duration of each run of each caller."""
    begin = threading.Barrier(work.callers)

    def repeat(caller: int) -> list[float]:
        begin.wait()
        times: list[float] = []
        last = time.perf_counter()
        end = last + seconds
        while not times or last < end:
            work.call(caller + work.callers * len(times))
            now = time.perf_counter()
            times.append(now - last)
            last = now
        return times

    if work.callers == 1:
        return [repeat(0)]
    with ThreadPoolExecutor(work.callers, thread_name_prefix="tl-timing") as pool:
        return list(pool.map(repeat, range(work.callers)))


def _summarize(rates: Sequence[float], runs: Sequence[float]) -> Timing:
    p50, p90, p99 = 1000 * np.percentile(runs, [50, 90, 99], method="inverted_cdf")
    return Timing(
        images_per_s=float(np.median(rates)),
        slowest=min(rates),
        fastest=max(rates),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        runs=len(runs),
    )


Call = Callable[[int], object]  # argument: number of the run
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Setting:
    """`part`: "network", "decode" (with resizing) or "together" (`predict_iter`). Other fields as for `load`.

    `hint` and `batch_size` are None where they do not apply; `precision` only where a device has a choice of them.
    """

    part: str
    device: str
    threads: int
    hint: Hint | None = None
    batch_size: int | None = None
    precision: Precision | None = None

    @property
    def place(self) -> str:
        """The device and, where a file has more than one there, the precision."""
        return self.device if self.precision is None else f"{self.device} {self.precision}"


@dataclass(frozen=True)
class Images:
    """Encoded images to measure with. `source`: folder or description. `unreadable`: number of unreadable images."""

    source: str
    contents: tuple[bytes, ...]
    unreadable: int = 0

    def readable(self, preprocessing: Preprocessing) -> tuple[Images, list[NDArray[np.uint8]]]:
        """Return the readable images, and their inputs, uint8 (H, W, 3) each. Raises `DataError` if none is readable.

        Inputs are all of one size, except of a graph that takes any size.
        """
        contents, inputs, reason = [], [], ""
        for content in self.contents:
            try:
                inputs.append(load_input(content, preprocessing))
                contents.append(content)
            except ImageReadError as error:
                reason = error.reason
        if not inputs:
            raise DataError(f"{self.source}: none of its {len(self.contents)} images can be read ({reason})")
        return Images(self.source, tuple(contents), len(self.contents) - len(contents)), inputs


def network_works(
    session: Session, inputs: Sequence[NDArray[np.uint8]], device: str, threads: int
) -> dict[Setting, Work]:
    """Return measurements of the network for all batch sizes. `session`: same file on the CPU with one thread.

    On the CPU: `threads` callers with one thread each, and one caller with all `threads`; with fewer threads, batches
    of one only. A graph that takes any size is measured with single images, resizing included.
    """
    sizes = (1,) if session.takes_any_size else BATCH_SIZES
    if device == "openvino":
        return _openvino_works(session, inputs, threads, sizes)
    if device != "cpu":
        alone = _by_batch_size(_runner(Session(session.path, device=device), inputs), sizes, callers=1)
        return {Setting("network", device, 1, None, size): work for size, work in alone.items()}
    each = _by_batch_size(_runner(session, inputs), sizes, callers=threads)
    works = {Setting("network", "cpu", threads, "throughput", size): work for size, work in each.items()}
    if threads == 1:
        return works
    for fewer in _powers_of_two_below(threads):
        run = _runner(Session(session.path, device="cpu", threads=fewer), inputs)
        works[Setting("network", "cpu", fewer, "latency", 1)] = _measured(run(1), 1, 1)
    run = _runner(Session(session.path, device="cpu", threads=threads), inputs)
    alone = _by_batch_size(run, sizes, callers=1)
    return works | {Setting("network", "cpu", threads, "latency", size): work for size, work in alone.items()}


def _openvino_works(
    session: Session, inputs: Sequence[NDArray[np.uint8]], threads: int, sizes: Sequence[int]
) -> dict[Setting, Work]:
    """Return the same measurements for OpenVINO, in fp32 and, if the contract allows it here, in bf16."""
    works: dict[Setting, Work] = {}
    default = Session(session.path, device="openvino", threads=1)
    choices: tuple[Literal["fp32", "bf16"] | None, ...] = ("fp32", "bf16") if default.precision == "bf16" else (None,)
    for precision in choices:
        each = Session(session.path, device="openvino", threads=1, precision=precision)
        for size, work in _by_batch_size(_runner(each, inputs), sizes, callers=threads).items():
            works[Setting("network", "openvino", threads, "throughput", size, precision)] = work
        if threads > 1:
            run = _runner(Session(session.path, device="openvino", threads=threads, precision=precision), inputs)
            works[Setting("network", "openvino", threads, "latency", 1, precision)] = _measured(run(1), 1, 1)
    return works


def decode_works(images: Images, preprocessing: Preprocessing, threads: int) -> dict[Setting, Work]:
    """Return measurements from encoded image to network input, with one thread and with all threads."""
    contents = images.contents

    def decode(run: int) -> None:
        load_input(contents[run % len(contents)], preprocessing)

    return {Setting("decode", "cpu", callers): _measured(decode, 1, callers) for callers in sorted({1, threads})}


def together_work(contract: Contract, model: str, images: Images, device: str, threads: int) -> tuple[Setting, Work]:
    """Return a measurement from encoded images to results, by `predict_iter` with its default settings."""
    predictor: Predictor[Any]
    if contract.task == "landmarks":
        predictor = load_landmarks(model, device=device, threads=threads)
    elif contract.task == "multilabel":
        predictor = load_multilabel(model, device=device, threads=threads)
    elif contract.task == "regression":
        predictor = load_regression(model, device=device, threads=threads)
    else:
        predictor = load(model, device=device, threads=threads)
    is_cpu = runs_on_cpu(predictor.provider)
    batch_size = CPU_BATCH if is_cpu else CUDA_BATCH
    count = (4 if is_cpu else 1) * threads * batch_size  # keeps every thread busy most of the time
    sources = [images.contents[i % len(images.contents)] for i in range(count)]

    def predict(run: int) -> None:
        for _ in predictor.predict_iter(sources):
            pass

    computed = predictor.ensemble.sessions[0].precision
    precision: Precision | None = "bf16" if computed == "bf16" else None
    setting = Setting("together", device, threads, "throughput", batch_size, precision)
    return setting, _measured(predict, count, 1)


def _runner(session: Session, inputs: Sequence[NDArray[np.uint8]]) -> Callable[[int], Call]:
    """Return a function that, for a batch size, returns a call that runs the network on such a batch."""
    outputs = session.contract.outputs if session.contract else session.outputs

    if session.takes_any_size:
        return lambda _: lambda run: session.run(inputs[run % len(inputs)][None], outputs)
    repeats = -(-max(BATCH_SIZES) // len(inputs))
    images = np.concatenate([np.stack(inputs)] * repeats)

    def of_size(size: int) -> Call:
        return lambda _: session.run(images[:size], outputs)

    return of_size


def _by_batch_size(of_size: Callable[[int], Call], sizes: Sequence[int], *, callers: int) -> dict[int, Work]:
    one = _measured(of_size(1), 1, callers)
    larger = {size: Work(of_size(size), size, callers, size * one.seconds) for size in sizes[1:]}
    return {1: one, **larger}


def _measured(call: Call, images: int, callers: int) -> Work:
    """Return a `Work` with its measured duration: that of the second call, because the first one warms up."""
    call(0)
    started = time.perf_counter()
    call(1)
    return Work(call, images, callers, time.perf_counter() - started)


def _powers_of_two_below(number: int) -> list[int]:
    return [1 << i for i in range(number.bit_length()) if 1 << i < number]
