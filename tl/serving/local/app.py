"""The application of a local page: its routes, its files, answers to errors, and the stream of revisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tl.annotation.page_requests import Kind, Refused
from tl.errors import OutputError, TlError
from tl.serving.access import error_response, http_error, internal_error, json_response
from tl.serving.local.access import LocalAccess, LocalGate
from tl.serving.static import mount_page
from tl.text import encodable

Answer = TypeVar("Answer")
_STATUS: dict[Kind, int] = {"invalid": 400, "unknown": 404, "conflict": 409}
# Revisions are looked for and told this often.
_SECONDS_BETWEEN_REVISIONS = 0.2
# A line that says nothing, so that the loss of a connection is noticed.
_SECONDS_BETWEEN_SIGNS = 10.0
# Browsers allow six connections to a server, and each stream keeps one: further windows ask from time to time.
_MAX_STREAMS = 4


def build_local_app(routes: Sequence[BaseRoute], folders: Sequence[Path], access: LocalAccess) -> ASGIApp:
    """Return the application. `folders`: of the page, the first of which has its index.html."""
    found = [folder for folder in folders if folder.is_dir()]
    app = Starlette(
        routes=[*routes, *([mount_page(*found)] if found else [])],
        exception_handlers={
            HTTPException: _http_error,
            Refused: _refused,
            TlError: _expected_error,
            Exception: _internal_error,
        },
    )
    app.router.redirect_slashes = False
    return LocalGate(app, access)


def get(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    """Return the route of a GET."""
    return Route(path, handler, methods=["GET"])


def post(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    """Return the route of a POST."""
    return Route(path, handler, methods=["POST"])


async def in_thread(function: Callable[..., Answer], *args: Any) -> Answer:
    """Call a function that may wait for a lock or a disk, without keeping other requests waiting."""
    return await run_in_threadpool(function, *args)


class RevisionStream:
    """Server-sent events of a revision: `data: {"revision": 18}`, at once and then whenever it has changed.

    `revision` returns the current one. Streams end when `stop` is called, so that the server can stop.
    """

    def __init__(self, revision: Callable[[], int]) -> None:
        self._revision = revision
        self._streams = 0
        self._is_stopped = False

    def stop(self) -> None:
        """End all streams soon. May be called from any thread."""
        self._is_stopped = True

    async def answer(self, request: Request) -> Response:
        """Answer GET /api/events."""
        if self._streams >= _MAX_STREAMS:
            return error_response(503, "too many windows listen: ask for the state from time to time")
        self._streams += 1  # at once: other requests may come before the first event is sent
        return _Stream(
            self._end_one, self._events(), headers={"cache-control": "no-store"}, media_type="text/event-stream"
        )

    async def _events(self) -> AsyncIterator[str]:
        told, waited = -1, 0.0
        while not self._is_stopped:
            revision = self._revision()
            if revision != told:
                told, waited = revision, 0.0
                yield f'data: {{"revision": {revision}}}\n\n'
            elif waited >= _SECONDS_BETWEEN_SIGNS:
                waited = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(_SECONDS_BETWEEN_REVISIONS)
            waited += _SECONDS_BETWEEN_REVISIONS

    def _end_one(self) -> None:
        self._streams -= 1


class _Stream(StreamingResponse):
    """A stream that tells its end, even if it never began."""

    def __init__(self, ended: Callable[[], None], events: AsyncIterator[str], **options: Any) -> None:
        super().__init__(events, **options)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _http_error(request: Request, error: Exception) -> Response:
    return http_error(request, error, "this address")


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return json_response({"error": error.reason}, _STATUS[error.kind])


async def _expected_error(request: Request, error: Exception) -> Response:
    """An error of the machine: a full disk is 507, anything else 422."""
    return error_response(507 if isinstance(error, OutputError) else 422, encodable(str(error)))


async def _internal_error(request: Request, error: Exception) -> Response:
    """A fault of this program: its details are in the terminal, which has the traceback, not in the answer."""
    return internal_error()
