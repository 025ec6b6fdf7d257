"""Serve a local page until a signal: print its link, open a browser, stop in order."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable
from html import escape
from pathlib import Path

from starlette.types import ASGIApp

from tl.serving.local.access import LocalAccess
from tl.serving.local.bodies import LIMITS
from tl.serving.server import build_server

# A browser that is started takes a while until it reads its first page.
_SECONDS_TO_OPEN = 30


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
            folder.append(write_link_page(access.link()))
            # Some browsers return only when they are closed.
            threading.Thread(target=_open_browser, args=(folder[0],), daemon=True).start()

    folder: list[Path] = []
    server = build_server(app, LIMITS, started=say_started, stopping=stopping)
    try:
        server.run([listening])
    finally:
        for one in folder:
            shutil.rmtree(one, ignore_errors=True)


def write_link_page(link: str) -> Path:
    """Write a page that leads to a link, into a new folder that only this user can read; returns the folder.

    The command line of a browser can be seen by all users of a machine, and the link must not be in it.
    """
    # Browsers of Snap, as on Ubuntu, see neither the folder of temporary files nor hidden ones.
    place = Path.home() if Path("/snap").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="tl-open-", dir=place))  # mode 0700
    page = folder / "open.html"
    page.touch(mode=0o600)
    refresh = f'<meta http-equiv="refresh" content="0; url={escape(link)}">'
    page.write_text(f'<!doctype html><meta charset="utf-8"><title>tl</title>{refresh}\n', encoding="utf-8")
    return folder


def _open_browser(folder: Path) -> None:
    webbrowser.open((folder / "open.html").as_uri())
    time.sleep(_SECONDS_TO_OPEN)
    shutil.rmtree(folder, ignore_errors=True)


def has_desktop() -> bool:
    """Return whether a browser can show a window; without a desktop, a text browser would take over the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
