from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.runtime.prefetch import prefetch_map


def ahead_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tl-ahead")]


class Source:
    """Numbers from 0, counting how many were taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.size):
            self.taken += 1
            yield number


@given(items=st.lists(st.integers(), max_size=30), workers=st.integers(1, 4), ahead=st.integers(0, 10))
def test_map_ahead__equals_map(items: list[int], workers: int, ahead: int) -> None:
    assert list(prefetch_map(str, items, workers=workers, ahead=ahead)) == [str(item) for item in items]


def test_map_ahead__order_holds_when_later_items_are_faster() -> None:
    def slow_start(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return item

    assert list(prefetch_map(slow_start, range(8), workers=4, ahead=8)) == list(range(8))


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_map_ahead__takes_a_bounded_number_of_items(ahead: int) -> None:
    source = Source(1000)
    results = prefetch_map(str, source, workers=2, ahead=ahead)
    assert source.taken == 0
    for given_out in range(1, 20):
        next(results)
        assert source.taken <= given_out + ahead
    results.close()  # type: ignore[attr-defined]


def test_map_ahead__works_in_parallel() -> None:
    meeting = threading.Barrier(3, timeout=10)  # passes only if three calls run at once
    assert len(list(prefetch_map(lambda item: meeting.wait(), range(3), workers=3, ahead=3))) == 3


def test_map_ahead__never_more_threads_than_workers() -> None:
    names = set(prefetch_map(lambda item: threading.current_thread().name, range(50), workers=2, ahead=10))
    assert len(names) <= 2


def test_map_ahead__exception_at_its_turn() -> None:
    results = prefetch_map(lambda item: 1 // item, [1, -1, 0, 1], workers=2, ahead=10)
    assert [next(results), next(results)] == [1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert ahead_threads() == []


def test_map_ahead__exception_of_the_items_comes_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(prefetch_map(str, broken(), workers=2, ahead=4))
    assert ahead_threads() == []


def test_map_ahead__stopping_cancels_what_has_not_begun() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            gate.wait(10)
        return item

    results = prefetch_map(work, range(100), workers=1, ahead=20)
    assert next(results) == 0
    threading.Timer(0.1, gate.set).start()  # lets the running call end while the pool shuts down
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2
    assert ahead_threads() == []


def test_map_ahead__no_items() -> None:
    assert list(prefetch_map(str, [], workers=2, ahead=3)) == []


def test_map_ahead__no_workers_is_a_programming_fault() -> None:
    with pytest.raises(ValueError):
        list(prefetch_map(str, [1], workers=0, ahead=3))
