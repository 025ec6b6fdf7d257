"""Processes that do one piece of work after the other, and end when they are told to or when their parent is gone.

Knows processes and signals. Does not know what they do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait as wait_for
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
# After Ctrl-C the process had the signal too; one sent to the parent alone is passed on after the first time.
_SECONDS_TO_STOP_BY_ITSELF, _SECONDS_TO_STOP = 5.0, 20.0


class Worker:
    """One process for one piece of work at a time, so that what kills it is known by its work."""

    def __init__(self) -> None:
        self._open()

    def begin(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do `work` there. The future raises `BrokenProcessPool` if the process is killed meanwhile."""
        try:
            self._work: Future[T] = self._pool.submit(work, *args, **kwargs)
        except BrokenProcessPool:  # it died while it had nothing to do
            self._open()
            self._work = self._pool.submit(work, *args, **kwargs)
        return self._work

    def renew(self) -> None:
        """Go on in a new process."""
        self._pool.shutdown(wait=True)
        self._open()

    def stop(self) -> None:
        """End the process. Work under way is interrupted as by Ctrl-C, and has some time to save what it has."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        work = getattr(self, "_work", None)
        if work is not None and wait([work], timeout=_SECONDS_TO_STOP_BY_ITSELF).not_done:
            with suppress(OSError, BrokenProcessPool):
                os.kill(self._pid.result(timeout=1), signal.SIGINT)
            if wait([work], timeout=_SECONDS_TO_STOP).not_done:
                with suppress(OSError):
                    os.kill(self._pid.result(timeout=1), signal.SIGTERM)
        self._pool.shutdown(wait=True)

    def _open(self) -> None:
        # A fork would inherit torch's and onnxruntime's threads, which do not come along.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
        self._pid: Future[int] = self._pool.submit(os.getpid)


def _end_with_parent() -> None:
    """An orphan would work on, where nobody knows of it, in files that its successor takes up."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="tl-parent").start()
