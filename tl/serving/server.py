"""Start and stop: the socket, the HTTP server, deadlines of connections, and a stop that finishes what is in progress.

The only file that imports uvicorn.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tl.errors import ConfigError
from tl.serving.limits import CONNECTION, Connection, Limits

# Seconds in which a client must send the headers of a request, or take some of an answer.
IDLE_S = 15.0
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
    b'content-length: 43\r\nconnection: close\r\n\r\n{"error":"too many connections: try again"}'
)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which does not listen yet. `port`: 0 for a free one. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = _bound(family, kind, protocol, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is used by another program: choose another port, or let the system choose one",
                options=["port=0"],
            ) from error
        raise ConfigError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    found.set_inheritable(False)
    return found


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def build_server(
    app: ASGIApp,
    limits: Limits,
    *,
    started: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
    idle_s: float = IDLE_S,
) -> uvicorn.Server:
    """Return a server, whose `run` takes the sockets of `bind` and returns when it was stopped.

    SIGINT, SIGTERM or `should_exit` stop it: it finishes the requests in progress. `started`: called when it listens.
    `stopping`: called when it begins to stop, to end answers that would go on forever.
    """
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"max_connections": limits.max_connections, "idle_s": idle_s}),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(idle_s) or 1,
        timeout_graceful_shutdown=int(limits.timeout_s) + 1,
    )
    return _Server(config, started, stopping)


class _Server(uvicorn.Server):
    """A server that ends by returning: uvicorn's own raises the signal again, which is not an orderly exit."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started, self._say_stopping = started, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, and finish the requests in progress."""
        self._say_stopping()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the first signal stop the server in order, and a second SIGINT at once."""
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with a limit of connections, and deadlines that do not start again with each byte."""

    max_connections = 0
    idle_s = 0.0
    _since = 0.0  # when the connection was opened, or its last answer was given
    _unsent = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one connection too many."""
        super().connection_made(transport)
        self._connection = Connection()
        if len(self.connections) > self.max_connections:
            transport.write(_FULL)
            transport.close()
        self._since = self.loop.time()
        self._look()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._since, self._unsent = self.loop.time(), self.transport.get_write_buffer_size()

    def on_message_begin(self) -> None:
        """Let the request know its connection."""
        super().on_message_begin()
        cast("dict[str, object]", self.scope)[CONNECTION] = self._connection

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request in progress."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._connection.lose()

    def _look(self) -> None:
        """Close a connection that waits for the headers of a request, or for its client to read, for too long."""
        unsent, now = self.transport.get_write_buffer_size(), self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self._since = now  # the application has a request, and deadlines of its own
        if 0 < unsent < self._unsent:  # a slow client, but it reads
            self._since, self._unsent = now, unsent
        if now - self._since >= self.idle_s:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.idle_s / 4, self._look)
