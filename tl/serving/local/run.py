"""Serve a local page until a signal: print its link, open a browser, stop in order."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable

from starlette.types import ASGIApp

from tl.serving.local.access import LocalAccess
from tl.serving.local.bodies import LIMITS
from tl.serving.server import build_server


def serve_local(
    app: ASGIApp,
    access: LocalAccess,
    listening: socket.socket,
    *,
    opens_browser: bool,
    started: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, and return when the requests in progress are answered.

    `listening`: of `server.bind`. `started`: called when it listens; it prints `access.link()`. `stopping`: called as
    soon as a signal came, to end what would never end by itself, such as streams.
    """

    def say_started() -> None:
        started()
        if opens_browser and has_desktop():
            # Some browsers return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(access.link(),), daemon=True).start()

    server = build_server(app, LIMITS, started=say_started, stopping=stopping)
    server.run([listening])


def has_desktop() -> bool:
    """Return whether a browser can show a window; without a desktop, a text browser would take over the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
