"""A page of `tl label` in a thread of this process, with a real socket, and a client that has the cookie."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.serving.page_steps import Step, click, focus, until
from tests.serving.web_driver import Driven, drive
from tl.annotation.feature_sources import open_source
from tl.annotation.model_job import MakeModel
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.session import LabelSession
from tl.serving.label.routes import build_label_app
from tl.serving.local.access import HOST, LocalAccess
from tl.serving.local.app import RevisionStream
from tl.serving.local.bodies import LIMITS
from tl.serving.local.thumbnails import Thumbnails
from tl.serving.server import bind, build_server

Json = dict[str, Any]
# Class -> its key.
KEYS = {"red": "1", "green": "2", "blue": "3"}
FOCUS_GRID = focus("#grid")
MESSAGE = ".toast-text"
# The image with the focus, when its record is there. Images outside of the grid are those that fade away.
NAMED = "#grid .tile.active:not([title=''])"


def show(view: str) -> list[Step]:
    """Open a view, and wait until it is what is shown: until then, keys and tiles are those of the view before."""
    return [click(f"#view-{view}"), until("#view-title", view.capitalize())]


@dataclass
class Labeling:
    """A running page. `said`: lines of the terminal."""

    session: LabelSession
    access: LocalAccess
    client: httpx.Client
    said: list[str] = field(default_factory=list)

    def get(self, path: str, **query: Any) -> Json:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def post(self, path: str, body: Any) -> Json:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def error(self, status: int, method: str, path: str, **options: Any) -> str:
        """The text of an error, which must be one line of JSON."""
        answer = self.client.request(method, path, **options)
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
        text = str(answer.json()["error"])
        assert "\n" not in text
        return text

    def records(self, *ids: int) -> list[Json]:
        found: list[Json] = self.post("/api/records", {"ids": ids})["records"]
        return found

    def label(self, ids: list[int], label: str | None = None, do: str = "label", window: str = "w") -> Json:
        """Act on images as they are now."""
        seen = [{"id": one["id"], "version": one["version"]} for one in self.records(*ids)]
        body = {"window": window, "images": seen, "do": do}
        return self.post("/api/label", body | ({"label": label} if label is not None else {}))

    def listed(self, view: str, **query: Any) -> list[int]:
        found: list[int] = self.get("/api/list", view=view, **query)["ids"]
        return found

    def wait(self, is_so: Callable[[Json], Any], seconds: float = 30) -> Json:
        """Wait for a state, and return it."""
        ends = time.monotonic() + seconds
        while not is_so(state := self.get("/api/state", window="w")):
            assert time.monotonic() < ends, state
            time.sleep(0.02)
        return state


@contextmanager
def labeling(plan: SessionPlan, model: Path | None = None, make: MakeModel | None = None) -> Iterator[Labeling]:
    """Serve a session. `model`: computes features, None for a session without."""
    said: list[str] = []
    opens = None if model is None else (lambda: open_source(model, None, "cpu", 1))
    with open_session(plan, opens, said.append, make) as session:
        listening, ready = bind(HOST, 0), threading.Event()
        access = LocalAccess(listening.getsockname()[1], said.append)
        thumbnails = Thumbnails(session.photos.locate, len(session.photos), threads=2)
        stream = RevisionStream(lambda: session.revision)

        def stop() -> None:
            stream.stop()
            thumbnails.close()

        app = build_label_app(session, thumbnails, stream, access)
        server = build_server(app, LIMITS, started=ready.set, stopping=stop)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            with httpx.Client(base_url=access.url.rstrip("/"), timeout=60) as client:
                assert client.get(access.link()).status_code == 200
                yield Labeling(session, access, client, said)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def look(page: Labeling, npm: Path, tmp_path: Path, steps: list[Step], **job: Any) -> Driven:
    """Drive the page; all that it asks for must be of its server."""
    driven = drive(npm, page.access.link(), steps, tmp_path, script="drive_images.mjs", ready=NAMED, **job)
    assert all(url.startswith((page.access.url, "blob:", "data:", "file:")) for url in driven.requests)
    return driven
