"""Process items in worker threads, a bounded number of items ahead of the consumer, and yield results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def prefetch_map(work: Callable[[Item], Done], items: Iterable[Item], *, workers: int, ahead: int) -> Iterator[Done]:
    """Return `map(work, items)`, with at most `ahead` results ready or in progress to bound memory.

    An exception raised by `work` is re-raised when its item's turn comes. When the consumer stops, work that has not
    started is canceled.
    """
    pending: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tl-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
