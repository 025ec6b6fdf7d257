"""Serve a local page from a command: its port before any work, its link when it can be opened, and its end in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tl.commands.console import show_json, warn
from tl.errors import MissingExtraError

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

    from tl.serving.local.access import LocalAccess
    from tl.serving.local.app import RevisionStream
    from tl.serving.local.thumbnails import Thumbnails


@contextmanager
def bind_page(port: int) -> Iterator[socket.socket]:
    """Listen on a port of this machine, 0 for a free one. Raises `MissingExtraError`."""
    try:
        from tl.serving.local.access import HOST
        from tl.serving.server import bind
    except ImportError as error:
        raise MissingExtraError(
            f"the page requires additional packages ({error.name} is missing): pip install 'tl-toolkit[serve]'"
        ) from error
    with bind(HOST, port) as listening:
        yield listening


def serve_page(
    build_app: Callable[[LocalAccess], ASGIApp],
    listening: socket.socket,
    stream: RevisionStream,
    thumbnails: Thumbnails,
    *,
    output: Path,
    told: str,
    opens_browser: bool,
    as_json: bool,
) -> None:
    """Serve a page until a signal, and end its stream and thumbnails. `told`: the line before that of the link.

    `as_json`: also print the link for a program, which waits for this line.
    """
    from tl.serving.local.access import LocalAccess
    from tl.serving.local.run import serve_local

    access = LocalAccess(int(listening.getsockname()[1]), warn)

    def started() -> None:
        warn(told)
        warn(f"open {access.link()}")
        if as_json:
            show_json({"url": access.url, "link": access.link(), "port": access.port, "output": str(output)})
            sys.stdout.flush()

    def stopping() -> None:
        stream.stop()
        thumbnails.close()

    app = build_app(access)
    serve_local(app, access, listening, opens_browser=opens_browser, started=started, stopping=stopping)
