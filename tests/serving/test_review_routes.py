"""The HTTP API of a review: what it answers, what it refuses, and who may ask."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.annotation.review_data import close, duplicates, make_photos, open_review, place, spoil, wrong_label
from tests.annotation.test_reviewed import rows_of
from tl.annotation.page_requests import Seen
from tl.annotation.review import Review
from tl.annotation.review_items import ReviewItems
from tl.data.manifests import read_images

httpx = pytest.importorskip("httpx")
pytest.importorskip("tl.serving.local.app", reason="needs the packages of the extra serve", exc_type=ImportError)

from tests.annotation.review_data import evidence_of  # noqa: E402  # after the packages were found
from tl.serving.local.access import HOST, LocalAccess  # noqa: E402
from tl.serving.local.bodies import LIMITS  # noqa: E402
from tl.serving.review.routes import ReviewApi, build_review_app, open_thumbnails  # noqa: E402
from tl.serving.server import bind, build_server  # noqa: E402


@dataclass
class Running:
    """A page of a review, and a client that has its cookie."""

    review: Review
    access: LocalAccess
    client: Any

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def error(self, status: int, path: str, **body: Any) -> str:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"])

    def seen(self, *names: str) -> list[dict[str, int]]:
        ids = [place(self.review.items, name) for name in names]
        return [{"id": one["id"], "version": one["version"]} for one in self.post("/api/records", ids=ids)["records"]]

    def decide(self, do: str, *names: str, window: str = "w", **more: Any) -> Any:
        return self.post("/api/decide", window=window, images=self.seen(*names), do=do, **more)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return spoil(make_photos(tmp_path / "photos"))


@pytest.fixture
def page(data: Path) -> Iterator[Running]:
    items = ReviewItems(evidence_of(read_images(data)), ())
    wrong, copy, twin = place(items, "ant/wrong.png"), place(items, "bee/copy.png"), place(items, "moth/00.png")
    problems = (wrong_label(wrong), wrong_label(copy, "moth", 0.8), duplicates(copy, twin))
    review, held = open_review(data, data.parent / "reviewed.csv", *problems)
    listening, ready = bind(HOST, 0), threading.Event()
    access = LocalAccess(listening.getsockname()[1])
    thumbnails, api = open_thumbnails(review), ReviewApi(review, ["tl train reviewed.csv"])
    app = build_review_app(api, review, thumbnails, access)
    server = build_server(app, LIMITS, started=ready.set, stopping=api.stream.stop)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    assert ready.wait(30)
    with httpx.Client(base_url=access.url, timeout=60) as client:
        assert client.get(access.link()).status_code == 200
        assert "Review labels" in client.get("/").text
        yield Running(review, access, client)
    server.should_exit = True
    thread.join(60)
    thumbnails.close()
    close(review, held)


def test_api__decides_and_lists(page: Running, data: Path) -> None:
    state = page.get("/api/state", window="w")
    assert [(one["kind"], one["open"]) for one in state["kinds"]] == [("label", 2), ("duplicate", 1)]
    assert "2021" in state["kinds"][0]["source"]
    assert state["commands"] == ["tl train reviewed.csv"]
    answer = page.decide("accept", "ant/wrong.png", "bee/copy.png")
    assert [one["decision"]["label"] for one in answer["records"]] == ["bee", "moth"]
    assert answer["conflicts"] == []
    assert page.get("/api/list", kind="label")["ids"] == []
    assert len(page.get("/api/list", kind="label", status="decided")["ids"]) == 2
    changes = page.get("/api/changes")["changes"]
    assert [(one["path"], one["old_label"], one["new_label"]) for one in changes] == [
        ("ant/wrong.png", "ant", "bee"),
        ("bee/copy.png", "bee", "moth"),
    ]
    page.review.close()
    labels = {image.name: image.label for image in read_images(data.parent / "reviewed.csv")}
    assert labels["photos/ant/wrong.png"] == "bee"
    assert len(rows_of(data.parent / "reviewed.csv")) == 19


def test_api__conflict_undo_and_note(page: Running) -> None:
    before = page.seen("ant/wrong.png")
    page.decide("drop", "ant/wrong.png", window="other")
    answer = page.post("/api/decide", window="w", images=before, do="keep")
    assert (answer["records"], answer["conflicts"][0]["decision"]["do"]) == ([], "drop")
    assert "nothing to undo" in page.error(409, "/api/undo", window="w")
    assert page.post("/api/undo", window="other")["records"][0]["decision"] is None
    assert page.post("/api/redo", window="other")["records"][0]["decision"]["do"] == "drop"
    seen = page.seen("ant/wrong.png")[0]
    assert page.post("/api/note", window="w", text="old photo", **seen)["records"][0]["note"] == "old photo"


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/api/decide", {"window": "w", "images": [], "do": "keep"}, 400, "names no image"),
        ("/api/decide", {"window": "w", "images": [{"id": 99, "version": 0}], "do": "keep"}, 404, "no such image"),
        ("/api/decide", {"window": "w", "images": [{"id": -1, "version": 0}], "do": "keep"}, 404, "no such image"),
        ("/api/decide", {"window": "w", "images": [{"id": 0, "version": 0}] * 2, "do": "keep"}, 400, "each once"),
        ("/api/decide", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "relabel"}, 400, "a label belongs"),
        ("/api/decide", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "burn"}, 400, "must be one of"),
        ("/api/decide", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "keep", "x": 1}, 400, "unknown"),
        ("/api/decide", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "duplicate"}, 400, "no other"),
        (
            *("/api/decide", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "relabel", "label": " "}),
            *(400, "1 to 100 characters"),
        ),
        (
            "/api/decide",
            {"window": "w" * 65, "images": [{"id": 0, "version": 0}], "do": "keep"},
            400,
            "name of a window",
        ),
        ("/api/note", {"window": "w", "id": 0, "version": 0, "text": "x" * 2001}, 400, "at most 2,000"),
        ("/api/records", {"ids": list(range(401))}, 400, "at most 400"),
        ("/api/records", {"ids": ["0"]}, 400, "whole number"),
    ],
)
def test_api__refuses(page: Running, path: str, body: dict[str, Any], status: int, told: str) -> None:
    assert told in page.error(status, path, **body)
    assert page.review.decisions() == {}


def test_api__unknown_kinds_and_addresses(page: Running) -> None:
    assert page.client.get("/api/list", params={"kind": "rare"}).status_code == 404
    assert page.client.get("/api/list", params={"status": "odd"}).status_code == 400
    assert page.client.get("/api/nothing").status_code == 404
    assert page.client.get("/api/decide").status_code == 405


def test_access__needs_the_link_and_the_own_page(page: Running) -> None:
    body = json.dumps({"window": "w", "images": [{"id": 0, "version": 0}], "do": "drop"})
    kind = {"content-type": "application/json"}
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        assert page.client.post("/api/decide", content=body, headers=kind | headers).status_code == 403
    assert page.client.post("/api/decide", content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert page.client.get("/api/state", headers={"host": "evil.example"}).status_code == 403
    with httpx.Client(base_url=page.access.url) as stranger:
        for path in ("/", "/api/state", "/thumb/0", "/app.js"):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/api/decide", content=body, headers=kind).status_code == 401
    assert page.review.decisions() == {}


def test_images__are_shown_and_faults_told(page: Running, data: Path) -> None:
    answer = page.client.get("/thumb/0")
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 66)
    assert page.client.get("/view/0").status_code == 200
    gone = place(page.review.items, "ant/wrong.png")
    (data / "ant/wrong.png").unlink()
    assert page.client.get(f"/thumb/{gone}").status_code == 422
    assert page.client.get("/thumb/999").status_code == 404


def test_events__tell_the_revision(page: Running) -> None:
    with page.client.stream("GET", "/api/events") as stream:
        lines = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data:"))
        first = next(lines)["revision"]
        page.review.decide("w", [Seen(0, 0)], "keep")
        assert next(lines)["revision"] > first
