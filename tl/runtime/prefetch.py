"""Do work in threads, a bounded number of items before the consumer, and give results in order.

Knows threads. Knows nothing of the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def prefetch_map(work: Callable[[Item], Done], items: Iterable[Item], *, workers: int, ahead: int) -> Iterator[Done]:
    """`map(work, items)` with up to `ahead` results ready or under way, so that memory stays bounded.

    An exception of `work` is raised at its item's turn. Work not begun is canceled when the consumer stops.
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
