"""Who may ask: tokens, Host and Origin headers, and what the page may load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.conftest import RED, Running, StartServer, images, source
from tl.errors import ConfigError
from tl.serving.access import Access, is_loopback
from tl.serving.metrics import endpoint_of
from tl.serving.server import bind


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[", "a:b"])
def test_host__of_another_site_is_refused(server: Running, host: str) -> None:
    headers = {"Host": host.format(port=server.port)}
    told = server.error(403, "GET", "/info", headers=headers)
    assert told.startswith("this server does not answer for the host ")
    assert told.endswith(f"use http://127.0.0.1:{server.port}/")
    assert server.error(403, "POST", "/predict", headers=headers, files=images(RED)) == told


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST", "127.1.2.3", "[::1]"])
def test_host__of_this_machine(server: Running, host: str) -> None:
    assert server.client.get("/info", headers={"Host": f"{host}:{server.port}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "http://["},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_origin__of_another_site_is_refused(server: Running, headers: dict[str, str]) -> None:
    told = server.error(403, "POST", "/predict", files=images(RED), headers=headers)
    assert told == "requests from pages of other sites are not accepted"
    assert server.error(403, "POST", "/v2/models/color/infer", json={}, headers=headers) == told


def test_origin__of_the_own_page(server: Running) -> None:
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert server.client.post("/predict", files=images(RED), headers=headers).status_code == 200


def test_token__is_required_by_the_api_only(start: StartServer, files: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>tl</p>")
    (page / "app.js").write_text("1")
    running = start(source(files["color"]), token="sécret", page=page)
    for path in ("/info", "/metrics", "/openapi.json", "/v2", "/v2/models/color", "/v2/models/color/ready"):
        told = running.error(401, "GET", path)
        assert told == "a token is required: send the header 'Authorization: Bearer TOKEN', or ?token=TOKEN"
        assert running.error(401, "GET", path, params={"token": "secret"}) == told
        assert running.error(401, "GET", path, headers={"Authorization": "Bearer x"}) == told
        assert running.error(401, "GET", path, headers={"Authorization": "Basic sécret".encode()}) == told
    assert running.client.post("/predict", files=images(RED)).headers["www-authenticate"] == "Bearer"
    for path in ("/", "/app.js", "/v2/health/live", "/v2/health/ready"):
        assert running.client.get(path).status_code == 200
    shown = {b"authorization": "Bearer sécret".encode()}
    assert running.client.post("/predict", files=images(RED), headers=shown).status_code == 200  # type: ignore[arg-type]
    assert running.client.post("/predict", files=images(RED), params={"token": "sécret"}).status_code == 200


def test_page__is_served_with_a_strict_policy(start: StartServer, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>tl</p>")
    running = start(source(files["color"]), page=tmp_path)
    answer = running.client.get("/")
    assert (answer.text, answer.status_code) == ("<p>tl</p>", 200)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert running.client.get("/info").headers["cache-control"] == "no-store"
    for path in ("/../conftest.py", "/%2e%2e/conftest.py", "/..%2f..%2fetc/passwd"):
        assert running.error(404, "GET", path)


def test_access__hosts_of_other_machines_need_no_host_check() -> None:
    scope = {"type": "http", "method": "GET", "path": "/info", "query_string": b"token=a", "headers": [(b"host", b"x")]}
    assert Access("0.0.0.0", 80, "a").refuse(scope) is None
    assert Access("0.0.0.0", 80, "b").refuse(scope) is not None
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "lab")] == [True] * 3 + [
        False
    ] * 3


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/predict", "/predict"),
        ("/v2/models/a", "/v2/models/NAME"),
        ("/v2/models/infer", "/v2/models/NAME"),
        ("/v2/models/a/versions/1/infer", "/v2/models/NAME/infer"),
        ("/v2/models/a/ready", "/v2/models/NAME/ready"),
        ("/v2/models/a/b/c/d/e", "page"),
        ("/app.js", "page"),
    ],
)
def test_endpoint_of__has_few_values(path: str, endpoint: str) -> None:
    assert endpoint_of(path) == endpoint


def test_bind__a_port_that_is_used() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is used by another program: choose") as raised:
            bind("127.0.0.1", port)
    assert raised.value.options == ("port=0",)
    with pytest.raises(ConfigError, match=r"cannot listen on port 0 of 192\.0\.2\.1: "):
        bind("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="cannot listen on port 0 of not a host: "):
        bind("not a host", 0)
