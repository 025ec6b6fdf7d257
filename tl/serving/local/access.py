"""Who may open a local page: whoever has the link that the terminal shows, which works once and sets a cookie.

Other users of this machine can reach the port, but do not see the terminal. `tl.serving.access` checks where requests
come from. Source: the OWASP cheat sheet "Session Management".
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tl.serving.access import PAGE_HEADERS, Access, error_response, url_of

HOST = "127.0.0.1"
# Browsers that may have the page open; the oldest has to use a new link.
_MAX_SESSIONS = 64
_SECONDS_BETWEEN_LINKS = 1.0
_CLOSED = "This page is opened by the link that the terminal shows; a link works once. Use the newest one there."
_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tl</title></head>'
    f"<body><p>{_CLOSED}</p></body></html>"
)
# Not a redirect: after a click on a page of another site, a browser would not send a strict cookie with it.
_OPENED = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tl</title>'
    '<link rel="icon" href="icon.svg"><meta http-equiv="refresh" content="0; url=/"></head>'
    '<body><p><a href="/">Open the page</a></p></body></html>'
)
# A page says which run of the command its numbers of images are from; they mean nothing to another.
RUN_HEADER = b"tl-run"
_OTHER_RUN = "the command was started anew: load this page again"


class LocalAccess:
    """One-time links and the sessions they opened. Thread-safe. `say` prints a line in the terminal."""

    def __init__(self, port: int, say: Callable[[str], None] = lambda line: None) -> None:
        self.port, self.cookie = port, f"tl-{port}"
        self.run = secrets.token_hex(8)
        self._origin = Access(HOST, port)
        self._say = say
        self._lock = threading.Lock()
        self._token = ""
        self._sessions: deque[str] = deque(maxlen=_MAX_SESSIONS)
        self._said_at = -_SECONDS_BETWEEN_LINKS

    @property
    def url(self) -> str:
        """The address of the page, which needs a cookie."""
        return url_of(HOST, self.port)

    def link(self) -> str:
        """Return a link that opens the page once: the one that was not used yet, or else a new one."""
        with self._lock:
            self._token = self._token or secrets.token_urlsafe(32)
            return f"{self.url}?token={self._token}"

    def say_link(self) -> None:
        """Print the link, at most once a second."""
        now = time.monotonic()
        with self._lock:
            if now - self._said_at < _SECONDS_BETWEEN_LINKS:
                return
            self._said_at = now
        self._say(f"open {self.link()}")

    def refuse_origin(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason for refusing a request because of where it comes from, None to accept."""
        refused = self._origin.refuse(scope)
        if refused is None and scope["path"] != "/":  # the link itself may be on a page of another site
            came = dict(scope["headers"]).get(b"sec-fetch-site", b"none")
            if came not in (b"none", b"same-origin"):
                return 403, "requests from pages of other sites are not accepted"
        return refused

    def has_session(self, scope: Scope) -> bool:
        """Return whether a request shows the cookie of a session."""
        # Cookies of other servers of this machine come too, and may have any form.
        texts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
        pairs = [part.strip().partition("=") for text in texts for part in text.split(";")]
        shown = [value for name, _, value in pairs if name == self.cookie]
        with self._lock:
            sessions = list(self._sessions)
        return any(_is_same(one, session) for one in shown for session in sessions)

    def open_session(self, token: str) -> str | None:
        """Use up the one-time token: returns the value of a new session's cookie, None for a wrong or used token."""
        with self._lock:
            if not self._token or not _is_same(token, self._token):
                return None
            self._token = ""
            self._sessions.append(secrets.token_urlsafe(32))
            return self._sessions[-1]


def _is_same(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), expected.encode())


class LocalGate:
    """ASGI middleware around a local page: nothing at all is answered without a session, and not to other sites."""

    def __init__(self, app: ASGIApp, access: LocalAccess) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_api = scope["path"].startswith("/api/")

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == b"cache-control" for name, _ in headers):
                    # A file of the page may be another one after an update of tl.
                    headers.append((b"cache-control", b"no-store" if is_api else b"no-cache"))
                if is_api and message["status"] != 401:
                    headers.append((RUN_HEADER, self._access.run.encode()))
                message["headers"] = [*headers, *PAGE_HEADERS]
            await send(message)

        answer = self._answer(scope)
        await (self._app if answer is None else answer)(scope, receive, send_on)

    def _answer(self, scope: Scope) -> Response | None:
        """Return what is answered without asking the application, None if it may be asked."""
        if refused := self._access.refuse_origin(scope):
            return error_response(*refused)
        is_page = scope["path"] == "/" and scope["method"] == "GET"
        shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0] if is_page else ""
        if shown and _is_prefetch(scope):
            return error_response(503, "a link that works once is not fetched in advance")
        session = self._access.open_session(shown) if shown else None
        is_known = session is not None or self._access.has_session(scope)
        if shown and is_known:
            return self._opened(session)
        if is_known:
            run = dict(scope["headers"]).get(RUN_HEADER)
            return error_response(409, _OTHER_RUN) if run not in (None, self._access.run.encode()) else None
        if is_page:
            self._access.say_link()
            return HTMLResponse(_PAGE, 401, {"cache-control": "no-store"})
        return error_response(401, _CLOSED)

    def _opened(self, session: str | None) -> Response:
        """Return the way to the page without the token, which then stays in no history."""
        answer = HTMLResponse(_OPENED, headers={"cache-control": "no-store"})
        if session is not None:
            same_site: Literal["strict"] = "strict"
            answer.set_cookie(self._access.cookie, session, path="/", httponly=True, samesite=same_site)
        return answer


def _is_prefetch(scope: Scope) -> bool:
    return any(name in (b"sec-purpose", b"purpose") and b"prefetch" in value for name, value in scope["headers"])
