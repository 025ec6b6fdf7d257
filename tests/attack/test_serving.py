"""A server under attack: broken and oversized requests, killed clients. It gives no wrong answer afterwards."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.models import make_cam_model, make_model, solid
from tests.runtime.tiny_images import IMAGES

pytest.importorskip("uvicorn")
HOST = "127.0.0.1"


def request(port: int, path: str, body: bytes, kind: str = "multipart/form-data; boundary=b", *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}:{port}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *more, "", ""]).encode() + body


def encoded(color: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(solid(color, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = encoded((200, 10, 10)), encoded((10, 10, 200))


def form(*contents: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--b--\r\n"


def ask(port: int, content: bytes, seconds: float = 60) -> tuple[int, bytes]:
    """Send bytes; return the status and the body of the answer, status 0 without one in so many seconds."""
    with socket.create_connection((HOST, port), timeout=seconds) as connection:
        with suppress(ConnectionError, TimeoutError):  # it may answer and close before it got everything
            connection.sendall(content)
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
                head, found, body = answer.partition(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].split(b"\r")[0]
                if found and len(body) >= int(length or 0):
                    break
        except (ConnectionError, TimeoutError):  # a request that is cut off is waited for
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def kilobytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Cut, flip, repeat or insert bytes."""
    at, count = draw.randrange(len(content)), draw.randrange(1, 40)
    kind = draw.randrange(4)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + count :]
    if kind == 2:
        return content[:at] + draw.randbytes(count) + content[at + count :]
    return content[:at] + content[max(0, at - count) :]


def broken_request(draw: random.Random, port: int) -> bytes:
    """A request that is damaged somewhere: its image, form, tensor, JSON, headers or first line; or too large."""
    image = damaged(draw, draw.choice([*IMAGES.values()]))
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [7] * 192}
    plain = json.dumps({"inputs": [tensor]}).encode()
    infer, kind = "/v2/models/color/infer", "application/json"
    binary = f"Inference-Header-Content-Length: {draw.choice([0, 1, len(plain), 10**12, -1])}"
    return draw.choice(
        [
            lambda: request(port, "/predict", form(image)),
            lambda: request(port, "/predict?model=cam&explain=1", form(image, b"")),
            lambda: request(port, "/predict", damaged(draw, form(image))),
            lambda: damaged(draw, request(port, "/predict", form(image))),
            lambda: request(port, "/predict", bytes(3 << 20)),
            lambda: request(port, "/predict", form(*[image] * 100)),
            lambda: request(port, infer, damaged(draw, plain), kind),
            lambda: request(port, infer, plain + draw.randbytes(20), kind, binary),
            lambda: damaged(draw, request(port, infer, plain, kind)),
            lambda: draw.randbytes(200),
            lambda: b"GET /" + b"a" * draw.choice([10, 70_000]) + b" HTTP/1.1\r\n\r\n",
        ]
    )()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Port and process of a server of small limits."""
    make_model(tmp_path / "color.onnx")
    make_cam_model(tmp_path / "cam.onnx")
    words = ["serve", "color.onnx", "cam.onnx", "--port", "0", "--json", "--device", "cpu", "--threads", "2"]
    limits = ["--max-body-mb", "2", "--max-images", "20", "--receive-timeout", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tl", *words, *limits],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["port"]), process.pid
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def check_serves(port: int) -> None:
    """The right answers, to several clients at once, which try again while the server is busy."""
    found: list[list[str]] = []

    def good() -> None:
        status, ends = 503, time.monotonic() + 60
        while status == 503 and time.monotonic() < ends:
            status, body = ask(port, request(port, "/predict", form(RED, BLUE)))
        found.append([one["label"] for one in json.loads(body)["results"]] if status == 200 else [body.decode()])

    threads = [threading.Thread(target=good) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [["red", "blue"]] * 8


def test_server__a_thousand_broken_requests(port: tuple[int, int]) -> None:
    number, pid = port
    statuses: set[int] = set()

    def attack(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(125):
            status, body = ask(number, broken_request(draw, number), 0.5)
            statuses.add(status)
            if status >= 400 and body.startswith(b"{"):
                assert list(json.loads(body)) == ["error"]

    attack(0)  # libraries are loaded, buffers have their size
    before = kilobytes(pid)
    with ThreadPoolExecutor(8) as attackers:
        list(attackers.map(attack, range(1, 9)))
    assert statuses <= {0, 200, 400, 403, 404, 405, 408, 413, 415, 503}
    assert {200, 400, 413} <= statuses
    assert kilobytes(pid) < before + 50_000
    check_serves(number)


# Sends requests of many images without end, and is killed in the middle of one.
CLIENT = """
import socket, sys
content = sys.stdin.buffer.read()
while True:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        print("begun", flush=True)
        for _ in range(50):
            connection.sendall(content)
"""


def kill_clients(port: int, count: int) -> None:
    content, draw = request(port, "/predict", form(*[RED] * 5)), random.Random(0)
    for _ in range(count):
        words = [sys.executable, "-c", CLIENT, str(port)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(content)
            client.stdin.close()
            assert client.stdout.readline() == b"begun\n"
            time.sleep(draw.uniform(0, 0.1))
            client.kill()
    check_serves(port)
    ends = time.monotonic() + 60
    while b"tl_requests_in_flight 1.0" not in ask(port, metrics_request(port))[1]:  # this one
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_server__killed_clients(port: tuple[int, int]) -> None:
    number, pid = port
    kill_clients(number, 10)  # buffers have their size
    before = kilobytes(pid)
    kill_clients(number, 20)
    assert kilobytes(pid) < before + 50_000


def metrics_request(port: int) -> bytes:
    return f"GET /metrics HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
