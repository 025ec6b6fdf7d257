from __future__ import annotations

import threading
import time

import pytest

from tl.runtime.bench.works import Work, minimal_seconds, time_works


def sleeper(seconds: float, images: int = 1, callers: int = 1) -> Work:
    return Work(lambda run: time.sleep(seconds), images, callers, seconds)


def test_time_works__rates_and_percentiles_of_a_known_work() -> None:
    (timing,) = time_works([sleeper(0.01, images=4)], seconds=0.3, rounds=3)
    # Never faster than the sleep. How much slower depends on the machine, so only the order is checked.
    assert 0 < timing.slowest <= timing.images_per_s <= timing.fastest <= 400
    assert 10 <= timing.p50_ms <= timing.p90_ms <= timing.p99_ms
    assert timing.runs >= 3


def test_time_works__figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the work advances: 1 s per run, 2 s in the last round."""
    now, runs = 0.0, 0

    def call(run: int) -> None:
        nonlocal now, runs
        runs += 1
        now += 1.0 if runs <= 7 else 2.0

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    # Of 17 s, one warm-up run and one run for each of 3 rounds are already spent: each round repeats for 4 s.
    (timing,) = time_works([Work(call, 10, 1, 1.25)], seconds=17, rounds=3)
    # 1 warm-up run, then 4 + (2 of 1 s and 1 of 2 s) + 2 of 2 s.
    assert timing.runs == 9
    assert (timing.slowest, timing.fastest) == (5.0, 10.0)
    assert timing.images_per_s == 7.5
    assert (timing.p50_ms, timing.p90_ms, timing.p99_ms) == (1000, 2000, 2000)


def test_time_works__callers_work_at_the_same_time() -> None:
    together = threading.Barrier(4)
    (timing,) = time_works([Work(lambda run: together.wait(60), 1, 4, 0.0)], seconds=0, rounds=3)
    assert timing.runs == 12


def test_time_works__works_take_turns() -> None:
    log: list[str] = []
    works = [Work(lambda run, name=name: log.append(name), 1, 1, 0.0) for name in "ab"]  # type: ignore[misc]
    steps: list[int] = []
    time_works(works, seconds=0, rounds=3, advance=lambda: steps.append(len(log)))
    assert "".join(log) == "ab" + 3 * "ab"  # the first run of each is a warm-up
    assert len(steps) == 6


def test_time_works__every_run_has_its_own_number() -> None:
    taken: list[int] = []
    lock = threading.Lock()

    def call(run: int) -> None:
        with lock:
            taken.append(run)
        time.sleep(0.005)

    time_works([Work(call, 1, 3, 0.005)], seconds=0.2, rounds=1)
    assert sorted(taken[:3]) == [0, 1, 2]  # the warm-up
    assert len(set(taken[3:])) == len(taken[3:]) >= 3


def test_time_works__uses_its_time() -> None:
    works = [sleeper(0.02), sleeper(0.05)]
    assert minimal_seconds(works, 3) == pytest.approx(4 * 0.07)
    started = time.perf_counter()
    time_works(works, seconds=1.0, rounds=3)
    assert time.perf_counter() - started > 0.8  # how much longer depends on other load


@pytest.mark.parametrize("callers", [1, 3])
def test_time_works__faults_come_through(callers: int) -> None:
    def fail(run: int) -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        time_works([Work(fail, 1, callers, 0.0)], seconds=0, rounds=1)
