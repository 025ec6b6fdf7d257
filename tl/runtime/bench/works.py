"""What `bench` repeats: runs of the network, decoding, and the predictor as a whole.

Knows sessions, the predictor and encoded images. Does not know how long to repeat (`bench`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError, ImageReadError
from tl.runtime.bench.timing import Work
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.contract import Contract
from tl.runtime.predictor import CPU_BATCH, CUDA_BATCH, Hint, Predictor, load, load_landmarks
from tl.runtime.session import Session

Call = Callable[[int], object]  # takes the number of the run
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Setting:
    """`part`: "network", "decode" (with resizing) or "together" (`predict_iter` as it is). The others as for `load`.

    `hint` and `batch_size` are None where they mean nothing.
    """

    part: str
    device: str
    threads: int
    hint: Hint | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Images:
    """Encoded images to measure with. `source`: their folder, or what was made up. `unreadable`: how many more."""

    source: str
    contents: tuple[bytes, ...]
    unreadable: int = 0

    def readable(self, preprocessing: Preprocessing) -> tuple[Images, NDArray[np.uint8]]:
        """Those that can be read, and as a network's input: uint8 (N, H, W, 3). Raises `DataError` if none can."""
        contents, inputs, reason = [], [], ""
        for content in self.contents:
            try:
                inputs.append(load_input(content, preprocessing))
                contents.append(content)
            except ImageReadError as error:
                reason = error.reason
        if not inputs:
            raise DataError(f"{self.source}: none of its {len(self.contents)} images can be read ({reason})")
        return Images(self.source, tuple(contents), len(self.contents) - len(contents)), np.stack(inputs)


def network_works(session: Session, inputs: NDArray[np.uint8], device: str, threads: int) -> dict[Setting, Work]:
    """Runs of every batch size. `session`: of the same file on the CPU with one thread.

    On the CPU, `threads` callers with a thread each, and one caller with all `threads`; with fewer, batches of one.
    """
    if device != "cpu":
        alone = _by_batch_size(_runner(Session(session.path, device=device), inputs), callers=1)
        return {Setting("network", device, 1, None, size): work for size, work in alone.items()}
    each = _by_batch_size(_runner(session, inputs), callers=threads)
    works = {Setting("network", "cpu", threads, "throughput", size): work for size, work in each.items()}
    if threads == 1:
        return works
    for fewer in _powers_of_two_below(threads):
        run = _runner(Session(session.path, device="cpu", threads=fewer), inputs)
        works[Setting("network", "cpu", fewer, "latency", 1)] = _measured(run(1), 1, 1)
    run = _runner(Session(session.path, device="cpu", threads=threads), inputs)
    alone = _by_batch_size(run, callers=1)
    return works | {Setting("network", "cpu", threads, "latency", size): work for size, work in alone.items()}


def decode_works(images: Images, preprocessing: Preprocessing, threads: int) -> dict[Setting, Work]:
    """Encoded image to network's input, with one thread and with all."""
    contents = images.contents

    def decode(run: int) -> None:
        load_input(contents[run % len(contents)], preprocessing)

    return {Setting("decode", "cpu", callers): _measured(decode, 1, callers) for callers in sorted({1, threads})}


def together_work(contract: Contract, model: str, images: Images, device: str, threads: int) -> tuple[Setting, Work]:
    """Encoded images to results, as `predict_iter` does it when nothing else is asked for."""
    predictor: Predictor[Any]
    if contract.task == "landmarks":
        predictor = load_landmarks(model, device=device, threads=threads)
    else:
        predictor = load(model, device=device, threads=threads)
    batch_size = CPU_BATCH if device == "cpu" else CUDA_BATCH
    count = (4 if device == "cpu" else 1) * threads * batch_size  # so that every thread has work most of the time
    sources = [images.contents[i % len(images.contents)] for i in range(count)]

    def predict(run: int) -> None:
        for _ in predictor.predict_iter(sources):
            pass

    return Setting("together", device, threads, "throughput", batch_size), _measured(predict, count, 1)


def _runner(session: Session, inputs: NDArray[np.uint8]) -> Callable[[int], Call]:
    """For a batch size, what runs the network on such a batch."""
    repeats = -(-max(BATCH_SIZES) // len(inputs))
    images = np.concatenate([inputs] * repeats)
    outputs = session.contract.outputs if session.contract else session.outputs

    def of_size(size: int) -> Call:
        return lambda _: session.run(images[:size], outputs)

    return of_size


def _by_batch_size(of_size: Callable[[int], Call], *, callers: int) -> dict[int, Work]:
    one = _measured(of_size(1), 1, callers)
    larger = {size: Work(of_size(size), size, callers, size * one.seconds) for size in BATCH_SIZES[1:]}
    return {1: one, **larger}


def _measured(call: Call, images: int, callers: int) -> Work:
    """With its seconds measured: the second call's, because the first one warms up."""
    call(0)
    started = time.perf_counter()
    call(1)
    return Work(call, images, callers, time.perf_counter() - started)


def _powers_of_two_below(number: int) -> list[int]:
    return [1 << i for i in range(number.bit_length()) if 1 << i < number]
