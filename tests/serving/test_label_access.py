"""Who may open a local page: links that work once, cookies, other sites, other hosts, and addresses of all kinds."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.annotation.photos import make_photos
from tests.serving.label_server import Labeling, labeling
from tl.annotation.opening import SessionPlan
from tl.serving.local.access import LocalAccess
from tl.serving.local.run import has_desktop, write_link_page

PATHS = ("/api/state", "/api/list?view=all", "/api/events", "/api/image/0/info", "/thumb/0", "/view/0", "/app.js")
POSTS = ("records", "label", "note", "undo", "redo", "classes", "model", "model/cancel")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labeling]:
    folder = tmp_path_factory.mktemp("access")
    with labeling(SessionPlan(make_photos(folder / "photos", 12), folder / "labels.csv")) as page:
        yield page


@pytest.fixture
def stranger(page: Labeling) -> Iterator[httpx.Client]:
    """A client without a cookie."""
    with httpx.Client(base_url=page.client.base_url, timeout=30) as client:
        yield client


def test_session__is_required_for_everything(page: Labeling, stranger: httpx.Client) -> None:
    for path in PATHS:
        answer = stranger.get(path)
        assert (answer.status_code, list(answer.json())) == (401, ["error"]), path
    for path in POSTS:
        assert stranger.post(f"/api/{path}", json={}).status_code == 401
    for cookie in ("", "x", "tl", "ü".encode().decode("latin-1")):
        headers = [(b"cookie", f"{page.access.cookie}={cookie}".encode("latin-1"))]
        assert stranger.get("/api/state", headers=headers).status_code == 401  # type: ignore[arg-type]
    shown = page.client.cookies[page.access.cookie]
    assert stranger.get("/api/state", headers={"Cookie": f"tl-1={shown}"}).status_code == 401
    assert page.client.get("/api/state").status_code == 200


def test_link__works_once(page: Labeling, stranger: httpx.Client) -> None:
    link = page.access.link()
    assert page.access.link() == link  # until it is used
    answer = stranger.get(link)
    # Not a redirect, with which the browser would not send the cookie after a click on a page of another site.
    assert answer.status_code == 200
    assert 'http-equiv="refresh" content="0; url=/"' in answer.text
    assert answer.headers["cache-control"] == "no-store"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"tl-{page.access.port}=")
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "Max-Age" not in cookie  # ends with the browser
    assert link.partition("token=")[2] not in answer.text
    with httpx.Client(base_url=page.client.base_url) as other:
        used = other.get(link)
        assert used.status_code == 401
        assert "set-cookie" not in used.headers
        assert other.get("/api/state").status_code == 401
        assert other.get(page.access.link()).status_code == 200
    assert stranger.get("/api/state").status_code == 200  # others' links end nobody's session
    assert stranger.get(link).status_code == 200  # whoever is in already, may use an old bookmark


@pytest.mark.parametrize("token", ["", "x", "%00", "ü", "a" * 5000])
def test_link__of_a_wrong_token(page: Labeling, stranger: httpx.Client, token: str) -> None:
    before = page.access.link()
    answer = stranger.get("/", params={"token": token})
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script" not in answer.text
    assert "open the" in answer.text.lower() or "opened by the link" in answer.text
    assert token not in answer.text or len(token) < 2
    assert page.access.link() == before  # nobody can use up another's link


def test_link__is_not_used_up_by_programs_that_look_ahead(page: Labeling, stranger: httpx.Client) -> None:
    link = page.access.link()
    assert stranger.head(link).status_code == 401
    assert stranger.get(link, headers={"Sec-Purpose": "prefetch"}).status_code == 503
    assert stranger.get(link).status_code == 200


def test_link__a_fresh_one_is_shown_at_most_once_a_second(page: Labeling, stranger: httpx.Client) -> None:
    time.sleep(1.1)
    page.said.clear()
    for _ in range(20):
        assert stranger.get("/").status_code == 401
    assert 1 <= len(page.said) <= 3
    assert page.said[0] == f"open {page.access.link()}"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "0.0.0.0:{port}"]
)
def test_host__of_another_site_is_refused(page: Labeling, host: str) -> None:
    headers = {"Host": host.format(port=page.access.port)}
    told = page.error(403, "GET", "/api/state", headers=headers)
    assert told.startswith("this server does not answer for the host ")
    page.error(403, "GET", "/", headers=headers)
    page.error(403, "POST", "/api/undo", headers=headers, json={"window": "w"})
    assert page.client.get(page.access.link(), headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_origin__of_another_site_is_refused(page: Labeling, headers: dict[str, str]) -> None:
    body = {"window": "w", "images": [{"id": 0, "version": 0}], "do": "skip"}
    told = page.error(403, "POST", "/api/label", json=body, headers=headers)
    assert told == "requests from pages of other sites are not accepted"
    assert page.records(0)[0]["status"] == "open"
    if "Sec-Fetch-Site" in headers:
        for path in PATHS:
            assert page.client.get(path, headers=headers).status_code == 403


def test_origin__of_the_own_page(page: Labeling) -> None:
    headers = {"Origin": page.access.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    answer = page.client.post("/api/records", json={"ids": [0]}, headers=headers)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers


def test_answers__have_strict_headers(page: Labeling) -> None:
    for path in ("/", "/api/state", "/thumb/0", "/gone"):
        headers = page.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    assert page.client.get("/api/state").headers["cache-control"] == "no-store"
    # Numbers of images mean other photos after a new start: what a browser keeps, it has to ask for again.
    thumb = page.client.get("/thumb/0")
    assert thumb.headers["cache-control"] == "private, no-cache"
    kept = page.client.get("/thumb/0", headers={"If-None-Match": thumb.headers["etag"]})
    assert (kept.status_code, kept.content) == (304, b"")


def test_run__numbers_of_another_run_are_refused(page: Labeling, stranger: httpx.Client) -> None:
    run = page.client.get("/api/state").headers["tl-run"]
    body = {"window": "w", "images": [{"id": 0, "version": 0}], "do": "skip"}
    told = page.error(409, "POST", "/api/label", json=body, headers={"tl-run": "of another"})
    assert "started anew" in told
    assert page.records(0)[0]["status"] == "open"
    assert page.client.get("/api/state", headers={"tl-run": run}).headers["tl-run"] == run
    assert "tl-run" not in stranger.get("/api/state").headers  # 401


def test_session__beside_cookies_of_any_form(page: Labeling, stranger: httpx.Client) -> None:
    shown = f"{page.access.cookie}={page.client.cookies[page.access.cookie]}"
    for other in ('a={"b": 1}', "a,b=[1]", "=;;", 'x="', "ü=é", "$Version"):
        for text in (f"{other}; {shown}", f"{shown}; {other}", f"{other};{shown}"):
            headers = [(b"cookie", text.encode("utf-8"))]
            assert stranger.get("/api/state", headers=headers).status_code == 200, text  # type: ignore[arg-type]


ODD = [
    "/thumb/../../../../etc/passwd", "/thumb/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/thumb/..%5c..%5cetc", "/thumb/0/../1x",
    "/thumb/-1", "/thumb/+1", "/thumb/01", "/thumb/1.0", "/thumb/1e0", "/thumb/0x1", "/thumb/12", "/thumb/%00",
    "/thumb/99999999999999999999", "/thumb/%D9%A3", "/thumb/", "/thumb", "/thumb/0%0a", "/thumb/NaN", "//etc/passwd",
    "/view/12", "/view/../labels.csv", "/api/image/12/info", "/api/image/-1/info", "/api/image/../../x/info",
    "/..%2f..%2flabels.csv", "/%2e%2e/labels.csv", "/photos/0000-red.png", "/labels.csv", "/.labels.csv.tl/lock",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
def test_addresses__lead_nowhere_else(page: Labeling, path: str) -> None:
    """Sent as they are, as a client would normalize them."""
    cookie = f"{page.access.cookie}={page.client.cookies[page.access.cookie]}"
    with socket.create_connection(("127.0.0.1", page.access.port), 30) as connection:
        host = f"Host: 127.0.0.1:{page.access.port}\r\nCookie: {cookie}\r\nConnection: close"
        connection.sendall(f"GET {path} HTTP/1.1\r\n{host}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"404", b"405", b"400"), answer[:300]
    assert b"root:" not in answer
    assert b"path,label" not in answer


def test_access__many_sessions_do_not_fill_the_memory() -> None:
    access = LocalAccess(1)
    first = access.open_session(access.link().partition("=")[2])
    sessions = [access.open_session(access.link().partition("=")[2]) for _ in range(200)]
    assert first is not None
    assert None not in sessions

    def is_known(session: str | None) -> bool:
        return access.has_session({"headers": [(b"cookie", f"a=b; tl-1={session}".encode())]})

    assert is_known(sessions[-1])
    assert not is_known(first)
    assert access.open_session("") is None


def test_write_link_page__is_of_this_user_alone() -> None:
    """Other users see command lines of browsers, so that the link is in a file."""
    folder = write_link_page("http://127.0.0.1:1/?token=a")
    try:
        page = folder / "open.html"
        assert 'content="0; url=http://127.0.0.1:1/?token=a"' in page.read_text(encoding="utf-8")
        if os.name == "posix":
            assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, page)] == [0o700, 0o600]
    finally:
        shutil.rmtree(folder)


def test_has_desktop__not_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_desktop()
    monkeypatch.delenv("DISPLAY")
    assert not has_desktop()


def test_folder__links_out_of_it_are_never_read(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 6)
    secret = make_photos(tmp_path / "secret", 1) / "0000-red.png"
    (photos / "link.png").symlink_to(secret)
    (photos / "folder").symlink_to(secret.parent)
    (photos / "own.png").symlink_to(photos / "0000-red.png")
    with labeling(SessionPlan(photos, tmp_path / "labels.csv")) as page:
        names = [record["name"] for record in page.records(*page.listed("all"))]
        assert sorted(names) == sorted([*(path.name for path in photos.glob("0*.png")), "own.png"])
        assert any("links out of the folder" in line for line in page.said)
        changed = names.index("0001-green.png")
        (photos / "0001-green.png").unlink()
        (photos / "0001-green.png").symlink_to(secret)  # after the folder was listed
        for path in (f"/thumb/{changed}", f"/view/{changed}"):
            assert page.error(422, "GET", path) == "is a link out of the folder"
        assert page.get(f"/api/image/{changed}/info")["error"] == "is a link out of the folder"
        (photos / "0002-blue.png").unlink()
        gone = names.index("0002-blue.png")
        assert page.error(422, "GET", f"/thumb/{gone}") == "No such file or directory"
