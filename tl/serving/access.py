"""Who may ask: the token, the Host header and the Origin header. Sets security headers and counts requests.

Source: the OWASP cheat sheets "Cross-Site Request Forgery Prevention" (Origin, Sec-Fetch-Site) and "HTTP Headers".
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tl.serving.metrics import Metrics

Handler = Callable[[Request], Awaitable[Response]]
_log = logging.getLogger(__name__)
# The page may load and send nothing but from and to its own server. Explanations are data URLs, previews are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PAGE_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),  # the token may be in the page's address
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
_API_HEADERS = [*PAGE_HEADERS, (b"cache-control", b"no-store")]
# Answered without a token: probes of a cluster have none, and the files of the page are public.
_HEALTH = ("/v2/health/live", "/v2/health/ready")
_API = ("/predict", "/info", "/metrics", "/openapi.json", "/v2")


@dataclass(frozen=True)
class Access:
    """`token`: what requests must show, None for none. `host`, `port`: where the server listens."""

    host: str
    port: int
    token: str | None = None

    @cached_property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach the server."""
        return is_loopback(self.host)

    def refuse(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason for refusing a request, None if it is accepted."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.is_local and not self._is_own(host):
            return 403, f"this server does not answer for the host {host!r}: use {url_of(self.host, self.port)}"
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get(b"origin", b"").decode("latin-1").lower()
            is_foreign = origin not in ("", f"http://{host}".lower(), f"https://{host}".lower())
            if is_foreign or headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
                return 403, "requests from pages of other sites are not accepted"
        if self.token is not None and needs_token(scope["path"]) and not self._shows_token(headers, scope):
            return 401, "a token is required: send the header 'Authorization: Bearer TOKEN', or ?token=TOKEN"
        return None

    @cached_property
    def _own_hosts(self) -> set[str]:
        """The usual Host headers of this machine."""
        return {f"{host}:{self.port}" for host in ("127.0.0.1", "localhost")}

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine: a page of another site, whose name resolves here, names itself."""
        if host in self._own_hosts:
            return True
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        return port == self.port and (name == self.host.lower() or is_loopback(name))

    def _shows_token(self, headers: Mapping[bytes, bytes], scope: Scope) -> bool:
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0].encode()
        return hmac.compare_digest(shown.strip(), (self.token or "").encode())


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def url_of(host: str, port: int) -> str:
    """Return the address of a server's page."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@lru_cache(256)
def needs_token(path: str) -> bool:
    """Return whether a path is part of the API, health checks excepted."""
    return path not in _HEALTH and any(path == one or path.startswith(f"{one}/") for one in _API)


class Gate:
    """ASGI middleware around the application: refuses, counts, sets headers. Every refusal is `{"error": ...}`.

    `direct`: path of a POST -> its handler, called without the application's router and middleware, which cost as much
    as the rest of a request of one small image.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, direct: Mapping[str, Handler]) -> None:
        self._app, self._access, self._metrics, self._direct = app, access, metrics, direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, path = time.perf_counter(), 500, scope["path"]

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    *(_API_HEADERS if needs_token(path) else PAGE_HEADERS),
                ]
            await send(message)

        refused = self._access.refuse(scope)
        with self._metrics.in_flight():
            try:
                if refused is not None:
                    await error_response(*refused)(scope, receive, send_on)
                elif scope["method"] == "POST" and path in self._direct:
                    response = await _answer(self._direct[path], Request(scope, receive))
                    await response(scope, receive, send_on)
                else:
                    await self._app(scope, receive, send_on)
            finally:
                self._metrics.count_request(path, status, time.perf_counter() - started)


async def _answer(handler: Handler, request: Request) -> Response:
    try:
        return await handler(request)
    except HTTPException as error:
        return error_response(error.status_code, error.detail, dict(error.headers or {}))
    except Exception:
        _log.exception("a fault of this program")
        return internal_error()


def internal_error() -> Response:
    """Return the answer to a request that a fault of this program ended, without its details."""
    return error_response(500, "internal error: the server's log says more")


def http_error(request: Request, error: Exception, place: str, advice: str = "") -> Response:
    """Return the answer to a request that ended in an `HTTPException`. `place`: what the path is called in it."""
    if not isinstance(error, HTTPException):
        raise error
    status, reason = error.status_code, error.detail
    if status == 404 and reason == "Not Found":
        reason = f"there is nothing at {place}{advice}"
        # The page's folder, which is mounted at /, has no such file; a route may have the path for another method.
        if any(route.matches(request.scope)[0] is Match.PARTIAL for route in request.app.routes):
            status = 405
    if status == 405:
        reason = f"{request.method} is not answered at {place}"
    return error_response(status, reason, dict(error.headers or {}))


def error_response(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    more: dict[str, str] = {"www-authenticate": "Bearer"} if status == 401 else {}
    return json_response({"error": reason}, status, more | (headers or {}))


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a value as JSON."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")
