"""Start and stop: the socket, the HTTP server, deadlines of connections, and a stop that finishes what is in progress.

The only file that imports uvicorn.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tl.errors import ConfigError
from tl.serving.limits import Limits

# Seconds in which a client must send the headers of a request, or take some of an answer.
IDLE_S = 15.0
_FULL = b'{"error":"too many connections: try again"}'


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which does not listen yet. `port`: 0 for a free one. Raises `ConfigError` if that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is used by another program: choose another port, or let the system choose one",
                options=["port=0"],
            ) from error
        raise ConfigError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    found.set_inheritable(False)
    return found


def serve(
    app: ASGIApp, listening: socket.socket, limits: Limits, *, started: Callable[[], None], idle_s: float = IDLE_S
) -> None:
    """Serve until SIGINT or SIGTERM, then finish the requests in progress and return. Call it in the main thread."""
    config = uvicorn.Config(
        app,
        http=_protocol(limits.max_connections, idle_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(idle_s) or 1,
        timeout_graceful_shutdown=int(limits.timeout_s) + 1,
    )
    _Server(config, started).run([listening])


class _Server(uvicorn.Server):
    """A server that ends by returning: uvicorn's own raises the signal again, which is not an orderly exit."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._say_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the first signal stop the server in order, and a second SIGINT at once."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _protocol(max_connections: int, idle_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with deadlines, which it lacks: its own timeout ends with the first byte of a request."""

    class Protocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _unsent = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                head = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
                end = f"content-length: {len(_FULL)}\r\nconnection: close\r\n\r\n"
                transport.write((head + end).encode() + _FULL)
                transport.close()
            self._restart()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._timer is not None and self.cycle is not None and not self.cycle.response_complete:
                self._timer.cancel()  # the application has a request, and deadlines of its own
                self._timer = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._unsent = self.transport.get_write_buffer_size()
            self._restart()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _restart(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(idle_s, self._expire)

        def _expire(self) -> None:
            """Close a connection without the headers of a request, or whose client does not read its answer."""
            unsent = self.transport.get_write_buffer_size()
            if 0 < unsent < self._unsent:
                self._unsent = unsent
                self._restart()
            else:
                self.transport.abort()

    return Protocol
