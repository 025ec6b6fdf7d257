"""Limits of requests: their size, number and time. Reads bodies within them; every limit has its own HTTP error.

A client that sends or reads slowly occupies its connection and the bytes it has sent, and no place among the requests
that are predicted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tl.runtime.imaging.decode import MAX_PIXELS
from tl.serving.workers import Jobs

Answer = TypeVar("Answer")
_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    `max_body_mb`: MiB of one request. `max_images`: images of one request. `max_megapixels`: million pixels of an
    image, as its header states them. `max_requests`: requests that are predicted or wait for it. `timeout_s`: seconds
    until the prediction of a request must be finished. `receive_s`: seconds in which a client must send a request.
    `max_buffer_mb`: MiB of all bodies that are being received or predicted. `max_connections`: open connections.
    """

    max_body_mb: int = 64
    max_images: int = 64
    max_megapixels: float = MAX_PIXELS / 1e6
    max_requests: int = 64
    timeout_s: float = 60.0
    receive_s: float = 60.0
    max_buffer_mb: int = 1024
    max_connections: int = 512

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def shown(self) -> dict[str, Any]:
        """Return what a client should know, as plain values."""
        shown = ("max_body_mb", "max_images", "max_megapixels", "max_requests", "timeout_s", "receive_s")
        return {name: getattr(self, name) for name in shown}


# Where the scope of a request has its `Connection`, and the time when its prediction must be finished.
CONNECTION, _ENDS = "tl.connection", "tl.ends"


class Connection:
    """Tells the request in progress that its client is gone. There is one at a time on a connection."""

    is_lost = False
    _tell: Callable[[], object] = staticmethod(lambda: None)

    def when_lost(self, tell: Callable[[], object]) -> None:
        """Call `tell` when the connection is lost, at once if it is already."""
        self._tell = tell
        if self.is_lost:
            tell()

    def lose(self) -> None:
        """The connection is lost."""
        self.is_lost = True
        self._tell()


class Load:
    """What is in progress: bytes of bodies, and requests that are predicted. For the event loop's thread only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffered_bytes = 0
        self.requests = 0

    @contextmanager
    def buffer(self) -> Iterator[_Buffer]:
        """Yield a buffer for one body, whose bytes count until the end of the block."""
        buffer = _Buffer(self)
        try:
            yield buffer
        finally:
            self.buffered_bytes -= buffer.counted

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place among the requests that are predicted. Raises 503 if there is none."""
        if self.requests >= self.limits.max_requests:
            raise _busy(f"{self.requests} requests are being predicted, and {self.limits.max_requests} are allowed")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def wait(self, request: Request, jobs: Jobs[Answer]) -> list[Answer]:
        """Return the results of jobs, in order. Raises 504 `timeout_s` after the request's first jobs.

        Also raises what a job raises.

        Jobs that have not started by then, or when the client is gone, are cancelled.
        """
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()
        connection = request.scope.get(CONNECTION) or Connection()
        connection.when_lost(lambda: _finish(finished))
        jobs.when_done(lambda: loop.call_soon_threadsafe(_finish, finished))
        ends = request.scope.setdefault(_ENDS, loop.time() + self.limits.timeout_s)
        timer = loop.call_at(ends, _finish, finished)
        try:
            await finished
        finally:
            timer.cancel()
            jobs.cancel()
        if not jobs.is_done and connection.is_lost:
            raise HTTPException(400, "the client closed the connection before it had the answer")
        if not jobs.is_done:
            raise HTTPException(
                504, f"the prediction did not finish within {self.limits.timeout_s:g} s: send fewer images at once"
            )
        return jobs.results()


def _finish(finished: asyncio.Future[None]) -> None:
    if not finished.done():
        finished.set_result(None)


class _Buffer:
    """The body of one request. `counted`: its bytes in the load."""

    def __init__(self, load: Load) -> None:
        self.counted = 0
        self._load = load

    async def read(self, request: Request) -> bytes:
        """Return the whole body. Raises 400, 408, 413, 415 or 503 for one that is not accepted."""
        limits = self._load.limits
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "compressed requests are not accepted: send images as they are")
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > limits.max_body_mb * _MIB:
            raise _too_large(limits)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(limits.receive_s):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    self._count(len(parts[-1]))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise HTTPException(408, f"the request was not received within {limits.receive_s:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client closed the connection before it had sent the request") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _count(self, size: int) -> None:
        limits = self._load.limits
        self.counted += size
        self._load.buffered_bytes += size
        if self.counted > limits.max_body_mb * _MIB:
            raise _too_large(limits)
        if self._load.buffered_bytes > limits.max_buffer_mb * _MIB:
            raise _busy(f"requests of {limits.max_buffer_mb} MiB are in progress")


def _too_large(limits: Limits) -> HTTPException:
    # The connection stays open, so that the client, which still sends, reads this answer; `server` ends it in time.
    return HTTPException(413, f"the limit of a request is {limits.max_body_mb} MiB: send fewer or smaller images")


def _busy(why: str) -> HTTPException:
    return HTTPException(503, f"{why}: try again", headers={"retry-after": "1"})
