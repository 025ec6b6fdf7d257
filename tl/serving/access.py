"""Who may ask: the token, the Host header and the Origin header. Sets security headers and counts requests.

Source: the OWASP cheat sheets "Cross-Site Request Forgery Prevention" (Origin, Sec-Fetch-Site) and "HTTP Headers".
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tl.serving.metrics import Metrics

# The page may load and send nothing but from and to its own server. Explanations are data URLs, previews are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",  # the token may be in the page's address
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# Answered without a token: probes of a cluster have none, and the files of the page are public.
_HEALTH = ("/v2/health/live", "/v2/health/ready")
_API = ("/predict", "/info", "/metrics", "/openapi.json", "/v2")


@dataclass(frozen=True)
class Access:
    """`token`: what requests must show, None for none. `host`, `port`: where the server listens."""

    host: str
    port: int
    token: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach the server."""
        return is_loopback(self.host)

    def refuse(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason for refusing a request, None if it is accepted."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.is_local and not self._is_own(host):
            return 403, f"this server does not answer for the host {host!r}: use {url_of(self.host, self.port)}"
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            is_foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
            if is_foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                return 403, "requests from pages of other sites are not accepted"
        if self.token is not None and needs_token(scope["path"]) and not self._shows_token(headers, scope):
            return 401, "a token is required: send the header 'Authorization: Bearer TOKEN', or ?token=TOKEN"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this machine: a page of another site, whose name resolves here, names itself."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        return port == self.port and (name == self.host.lower() or is_loopback(name))

    def _shows_token(self, headers: Headers, scope: Scope) -> bool:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(shown.strip().encode(), (self.token or "").encode())


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def url_of(host: str, port: int) -> str:
    """Return the address of a server's page."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def needs_token(path: str) -> bool:
    """Return whether a path is part of the API, health checks excepted."""
    return path not in _HEALTH and any(path == one or path.startswith(f"{one}/") for one in _API)


class Gate:
    """ASGI middleware around the application: refuses, counts, sets headers. Every refusal is `{"error": ...}`."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    headers[name] = value
                if needs_token(scope["path"]):
                    headers["cache-control"] = "no-store"
            await send(message)

        refused = self._access.refuse(scope)
        with self._metrics.in_flight():
            try:
                if refused is None:
                    await self._app(scope, receive, send_on)
                else:
                    await error_response(*refused)(scope, receive, send_on)
            finally:
                self._metrics.count_request(scope["path"], status, time.perf_counter() - started)


def error_response(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    more: dict[str, str] = {"www-authenticate": "Bearer"} if status == 401 else {}
    return json_response({"error": reason}, status, more | (headers or {}))


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a value as JSON."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")
