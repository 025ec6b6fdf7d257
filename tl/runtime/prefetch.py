"""Process items in worker threads, a bounded number of items ahead of the consumer, and yield results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


# Work that `stop` cannot end, such as reading from a dead network drive, must not keep this thread forever.
_SECONDS_BETWEEN_STOPS, _MAX_STOPS = 0.1, 50


def prefetch_map(
    work: Callable[[Item], Done],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Done]:
    """Return `map(work, items)`, with at most `ahead` results ready or in progress to bound memory.

    An exception raised by `work` is re-raised when its item's turn comes. When the consumer stops, work that has not
    started is canceled. On Ctrl-C, `stop` is called for up to 5 s, until the work in progress has ended.
    """
    pending: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tl-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                del item  # it may be large, and the next one may wait until it is freed
                if len(pending) > ahead:
                    yield _first(pending, stop)
            while pending:
                yield _first(pending, stop)
        finally:
            for future in pending:
                future.cancel()


def _first(pending: deque[Future[Done]], stop: Callable[[], None]) -> Done:
    """Remove the first future and return its result."""
    try:
        return pending[0].result()
    except KeyboardInterrupt:
        for future in pending:
            future.cancel()
        for _ in range(_MAX_STOPS):
            if not wait(pending, _SECONDS_BETWEEN_STOPS).not_done:
                break
            stop()
        raise
    finally:
        pending.popleft()
