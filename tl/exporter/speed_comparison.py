"""Which of two model files is faster on this machine, as `tl.runtime` would run them for many images?

Knows sessions and alternating rounds. Does not know what the files are or whether their answers agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.progress import Progress
from tl.runtime.bench.works import Work, time_works
from tl.runtime.devices import graphics_cards, processor_model, usable_cores
from tl.runtime.predictor import CPU_BATCH, CUDA_BATCH
from tl.runtime.prefetch import prefetch_map
from tl.runtime.session import Session

# Nine of eleven rounds or more would be won by chance in 3% of all cases (sign test).
ROUNDS, WON_ROUNDS = 11, 9
_SECONDS_A_ROUND = 0.8


@dataclass(frozen=True)
class SpeedComparison:
    """How fast the new file is relative to the old one: `speedup` is the median of `rounds` rounds.

    `slowest`, `fastest`: of the rounds; `faster_rounds`: in how many the new file was faster. `threads` callers ran
    batches of `batch_size` on `provider`, which is `processor`.
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
        """Whether the new file won so many rounds that it was hardly chance."""
        return self.faster_rounds >= WON_ROUNDS


def compare_speed(old: Path, new: Path, images: NDArray[np.uint8], device: str, progress: Progress) -> SpeedComparison:
    """Run two files in turns on `images`, uint8 (N, H, W, 3). Raises `DeviceError`."""
    sessions = [Session(path, device=device, threads=1, require_contract=False) for path in (old, new)]
    provider = sessions[0].provider
    batch, threads = (CPU_BATCH, usable_cores()) if provider == "CPUExecutionProvider" else (CUDA_BATCH, 1)
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
    """The probabilities (N, C) of `images`, uint8 (N, H, W, 3), in batches that suit the device."""
    size, workers = (CPU_BATCH, usable_cores()) if session.provider == "CPUExecutionProvider" else (CUDA_BATCH, 1)

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
    """Runs a batch; another one each time, because the time of some operators depends on the numbers."""
    starts = len(images) - batch + 1
    return lambda number: session.run(images[number % starts :][:batch], ["probabilities"])


def _processor(provider: str) -> str:
    """The model of what `provider` computes on, "unknown" where the system does not say."""
    if provider == "CUDAExecutionProvider":
        return (graphics_cards() or ["unknown"])[0]
    return processor_model()
