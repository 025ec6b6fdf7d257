"""Limits of size, number and time: each has its own status, and a slow client holds nobody up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.serving.conftest import RED, Running, StartServer, images, source
from tl.serving.limits import Limits

HEAD = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
WAIT_S = 30.0


@contextmanager
def connected(running: Running, text: str = "", rest: bytes = b"") -> Iterator[socket.socket]:
    """A connection over which the beginning of a request was sent."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT_S) as connection:
        connection.sendall(text.format(port=running.port).encode() + rest)
        yield connection


def answered(connection: socket.socket) -> tuple[int, dict[str, str], str]:
    """Status, headers and the error of an answer; status 0 if the connection was closed without one."""
    content = b""
    while b"\r\n\r\n" not in content or b"}" not in content:
        part = connection.recv(4096)
        if not part:
            break
        content += part
    head, _, body = content.decode().partition("\r\n\r\n")
    if not head:
        return 0, {}, ""
    lines = head.splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)["error"]


@contextmanager
def busy_workers(running: Running) -> Iterator[None]:
    """Occupy the only worker until the end of the block."""
    end, begun = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        end.wait(WAIT_S)

    running.workers.run([occupy])
    assert begun.wait(WAIT_S)
    try:
        yield
    finally:
        end.set()


def in_background(running: Running, found: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(running.predict(RED).status_code))
    thread.start()
    return thread


def wait_until(is_true: object) -> None:
    ends = time.monotonic() + WAIT_S
    while not is_true():  # type: ignore[operator]
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_limits__must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_images must be above 0, got 0"):
        Limits(max_images=0)


def test_body__too_large(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_body_mb=1))
    told = running.error(413, "POST", "/predict", files=images(bytes(2 << 20)))
    assert told == "the limit of a request is 1 MiB: send fewer or smaller images"

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert running.error(413, "POST", "/predict", content=chunks(), headers=headers) == told
    assert running.error(413, "POST", "/v2/models/color/infer", content=chunks()) == told
    assert running.labels(RED) == ["red"]
    assert running.load.buffered_bytes == 0


def test_body__too_much_in_memory(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_body_mb=2, max_buffer_mb=1))
    with connected(running, HEAD + "Content-Length: 2000000\r\n\r\n", bytes(1_000_000)):
        wait_until(lambda: running.load.buffered_bytes == 1_000_000)
        told = running.error(503, "POST", "/predict", files=images(RED + bytes(100_000)))
        assert told == "requests of 1 MiB are in progress: try again"
    wait_until(lambda: running.load.buffered_bytes == 0)
    assert running.labels(RED) == ["red"]


def test_body__sent_too_slowly(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(receive_s=0.3))
    with connected(running, HEAD + "Content-Length: 1000\r\n\r\n", b"--b") as slow:
        assert running.labels(RED) == ["red"]
        status, _, told = answered(slow)
    assert (status, told) == (408, "the request was not received within 0.3 s")


def test_headers__sent_too_slowly(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), idle_s=0.4)
    with connected(running, "GET /info HT") as slow, connected(running) as silent:
        assert running.labels(RED) == ["red"]
        with _closed():
            for _ in range(100):
                slow.sendall(b"T")  # each byte would restart a timeout between two bytes
                time.sleep(0.05)
            pytest.fail("the connection is still open")
        with _closed():
            assert silent.recv(100) == b""


def _closed() -> suppress:
    """A connection that the server has closed: an end, or a reset."""
    return suppress(ConnectionError)


def test_slow_clients__hold_nobody_up(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_requests=2))
    begun = [connected(running, HEAD + "Content-Length: 1000\r\n\r\n", b"--b") for _ in range(50)]
    slow = [one.__enter__() for one in begun]
    assert all(running.labels(RED) == ["red"] for _ in range(5))
    for connection in slow:
        connection.close()


def test_slow_reader__holds_nobody_up_and_is_closed(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), idle_s=0.5, limits=Limits(max_requests=1))
    request = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.settimeout(WAIT_S)
        lazy.connect(("127.0.0.1", running.port))
        with _closed():
            for _ in range(200):  # far more answers than the buffers between the two take
                lazy.sendall(request)
            assert running.labels(RED) == ["red"]
            time.sleep(0.5)
            while lazy.recv(1 << 20):
                pass
        assert running.labels(RED) == ["red"]


def test_requests__too_many(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_requests=2))
    found: list[int] = []
    with busy_workers(running):
        threads = [in_background(running, found) for _ in range(2)]
        wait_until(lambda: running.load.requests == 2)
        answer = running.predict(RED)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "2 requests are being predicted, and 2 are allowed: try again"}
        assert running.client.get("/info").status_code == 200
    for thread in threads:
        thread.join(WAIT_S)
    assert found == [200, 200]
    assert running.labels(RED) == ["red"]


def test_requests__of_a_client_that_is_gone_take_no_place(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_requests=1))
    body = b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + RED + b"\r\n--b--\r\n"
    with busy_workers(running):
        with connected(running, HEAD + f"Content-Length: {len(body)}\r\n\r\n", body):
            wait_until(lambda: running.load.requests == 1)
        wait_until(lambda: running.load.requests == 0)
        assert running.load.buffered_bytes == 0
    assert running.labels(RED) == ["red"]


def test_prediction__takes_too_long(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(timeout_s=0.2))
    with busy_workers(running):
        told = running.error(504, "POST", "/predict", files=images(RED))
    assert told == "the prediction did not finish within 0.2 s: send fewer images at once"
    assert running.labels(RED) == ["red"]
    assert running.load.requests == 0


def test_connections__too_many(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_connections=3), idle_s=5.0)
    assert running.labels(RED) == ["red"]  # the client's own connection, which it keeps
    with connected(running), connected(running), connected(running) as fourth:
        status, headers, told = answered(fourth)
        assert (status, told, headers["retry-after"]) == (503, "too many connections: try again", "1")
        assert running.labels(RED) == ["red"]
