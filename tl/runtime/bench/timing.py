"""Repeat several works in alternating rounds and say how fast each is, and how much the rounds differ.

Knows clocks and threads. Knows nothing of the works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Work:
    """Something to repeat: `callers` threads do it at the same time, each with a number of its own for every run.

    `call` handles `images` images and takes about `seconds`.
    """

    call: Callable[[int], object]
    images: int
    callers: int
    seconds: float


@dataclass(frozen=True)
class Timing:
    """`images_per_s`: the median of the rounds; `slowest` and `fastest`: of the rounds, too.

    `p50_ms`, `p90_ms`, `p99_ms`: how long one run takes, by nearest rank over the `runs` of all rounds.
    """

    images_per_s: float
    slowest: float
    fastest: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


def minimal_seconds(works: Sequence[Work], rounds: int) -> float:
    """What `time_works` takes at least: one run to warm up, and one per round."""
    return (rounds + 1) * sum(work.seconds for work in works)


def time_works(
    works: Sequence[Work], *, seconds: float, rounds: int, advance: Callable[[], None] = lambda: None
) -> list[Timing]:
    """Warm each work up, then time all in turns, `rounds` times, in about `seconds`; one run each at least."""
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
    """Run until `seconds` are over, once at least; how long each run of each caller took."""
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
