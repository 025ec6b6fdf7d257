"""Compare the throughput of two open model files on this machine, run as `tl.runtime` would for many images.

Alternates rounds of both sessions. Does not check whether their outputs agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.progress import Progress
from tl.runtime.bench.works import Work, time_works
from tl.runtime.devices import graphics_cards, processor_model, usable_cores
from tl.runtime.predictor import CPU_BATCH, CUDA_BATCH
from tl.runtime.prefetch import prefetch_map
from tl.runtime.providers import runs_on_cpu
from tl.runtime.session import Session

# Winning nine or more of eleven rounds by chance has a probability of 3% (sign test).
ROUNDS, WON_ROUNDS = 11, 9
_SECONDS_A_ROUND = 0.8


@dataclass(frozen=True)
class SpeedComparison:
    """Speed of the new file relative to the old one: `speedup` is the median over `rounds` rounds.

    `slowest`, `fastest`: extremes over the rounds; `faster_rounds`: number of rounds in which the new file was faster.
    `threads` callers ran batches of `batch_size`, those of the new file on `provider`, with hardware `processor`.
    """

    speedup: float
    slowest: float
    fastest: float
    rounds: int
    faster_rounds: int
    provider: str
    processor: str
    threads: int
    batch_size: int

    @property
    def is_faster(self) -> bool:
        """Whether the new file won so many rounds that chance is unlikely."""
        return self.faster_rounds >= WON_ROUNDS


def compare_speed(old: Session, new: Session, images: NDArray[np.uint8], progress: Progress) -> SpeedComparison:
    """Run two files alternately on `images`, uint8 (N, H, W, 3), each opened for one thread. Raises `DeviceError`."""
    sessions, provider = (old, new), new.provider
    batch, threads = (CPU_BATCH, usable_cores()) if runs_on_cpu(provider) else (CUDA_BATCH, 1)
    works = [_work(session, images, batch, threads) for session in sessions]
    progress.start("comparing fp32", ROUNDS, "rounds")
    ratios = []
    for _ in range(ROUNDS):
        before, after = time_works(works, seconds=_SECONDS_A_ROUND, rounds=1)
        ratios.append(after.images_per_s / before.images_per_s)
        progress.advance(note=f"{ratios[-1]:.2f} x")
    return SpeedComparison(
        speedup=float(np.median(ratios)),
        slowest=min(ratios),
        fastest=max(ratios),
        rounds=ROUNDS,
        faster_rounds=sum(ratio > 1 for ratio in ratios),
        provider=provider,
        processor=_processor(provider),
        threads=threads,
        batch_size=batch,
    )


def run_all(session: Session, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities (N, C) of `images`, uint8 (N, H, W, 3), in batches sized for the device."""
    size, workers = (CPU_BATCH, usable_cores()) if runs_on_cpu(session.provider) else (CUDA_BATCH, 1)

    def run(start: int) -> NDArray[np.float32]:
        return session.run(images[start : start + size], ["probabilities"])[0]

    return np.concatenate(list(prefetch_map(run, range(0, len(images), size), workers=workers, ahead=2 * workers)))


def _work(session: Session, images: NDArray[np.uint8], batch: int, callers: int) -> Work:
    repeated = np.concatenate([images] * -(-batch // len(images)))
    call = _caller(session, repeated, batch)
    call(0)
    started = time.perf_counter()
    call(1)
    return Work(call, batch, callers, time.perf_counter() - started)


def _caller(session: Session, images: NDArray[np.uint8], batch: int) -> Callable[[int], object]:
    """Run a different batch each time, because the run time of some operators depends on the values."""
    starts = len(images) - batch + 1
    return lambda number: session.run(images[number % starts :][:batch], ["probabilities"])


def _processor(provider: str) -> str:
    """The hardware model that `provider` runs on, "unknown" if the system does not report it."""
    if runs_on_cpu(provider):
        return processor_model()
    return (graphics_cards() or ["unknown"])[0]
