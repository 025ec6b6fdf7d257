"""`tl serve` as a process: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.models import make_contract, make_model

pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")


@contextmanager
def serving(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address. A shell in the background ignores SIGINT, which children inherit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tl", "serve", *map(str, words), "--port", "0", "--json", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        yield process, json.loads(line)["url"]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve__finishes_what_is_in_progress(color_model: Path, photos: Path, number: signal.Signals) -> None:
    image = next(photos.rglob("*.png")).read_bytes()
    with serving(color_model, "--threads", "1") as (process, url):
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {url.split('/')[2]}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        )
        part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + image
        body = part + b"\r\n--b--\r\n"
        with socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])), timeout=60) as begun:
            begun.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:50])
            while httpx.get(f"{url}metrics").text.find("tl_requests_in_flight 2.0") < 0:  # that one and this one
                time.sleep(0.02)
            process.send_signal(number)
            time.sleep(0.3)
            begun.sendall(body[50:])
            answer = b""
            while part := begun.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["results"][0]["path"] == "a.png"
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err.splitlines() == [f"serving color at {url}; Ctrl-C stops", "stopped"]


def test_serve__models_and_an_ensemble(color_model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other.onnx", gain=0.03)
    words = [color_model, "--ensemble", color_model, other, "--vote", "hard", "--vote-weights", "1,2"]
    with serving(*words, "--max-images", "3") as (_, url):
        info = httpx.get(f"{url}info").json()
        assert [one["name"] for one in info["models"]] == ["color", "ensemble"]
        assert info["models"][1]["member_names"] == ["color", "other"]
        assert info["limits"]["max_images"] == 3
        assert httpx.get(url).status_code == 200


def test_serve__a_token_from_the_environment(color_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_SERVE_TOKEN", "secret")
    with serving(color_model, "--host", "0.0.0.0") as (_, url):
        local = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{local}info").status_code == 401
        assert httpx.get(f"{local}info", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_serve__faults_in_one_line(run_tl: RunTl, color_model: Path, tmp_path: Path, photos: Path) -> None:
    foreign = make_model(tmp_path / "foreign.onnx", contract=None)
    wrong = make_model(tmp_path / "wrong.onnx", contract=make_contract(gain=0.01))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, told in (
            ((), "give at least one model file, or --ensemble a.onnx b.onnx c.onnx"),
            ((color_model, "--port", port), f"port {port} of 127.0.0.1 is used by another program: choose another"),
            ((color_model, "--host", "0.0.0.0"), "--host 0.0.0.0: other machines can reach this address: also give"),
            ((foreign,), f"{foreign}: an ONNX file of another tool: make it a model file with tl adopt"),
            ((wrong,), f"{wrong}: on CPUExecutionProvider the golden samples differ by"),
            ((tmp_path / "none.onnx",), f"{tmp_path / 'none.onnx'}: No such file"),
            ((photos,), f"{photos}: is a folder of images, not a model file"),
            ((color_model, color_model), "two models are named color: rename one of the files"),
        ):
            outcome = run_tl("serve", *words, *(() if "--port" in words else ("--port", 0)))
            assert (outcome.code, outcome.out) == (1, "")
            assert outcome.err.startswith(f"tl: {told}"), outcome.err
            assert len(outcome.err.splitlines()) == 1 + (port in words)
    assert outcome.err.count("hint") == 0


def test_serve__a_missing_package_names_the_extra(color_model: Path) -> None:
    code = f"""
import sys
sys.modules["uvicorn"] = None
sys.argv = ["tl", "serve", {str(color_model)!r}]
from tl.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "tl: serving requires additional packages (uvicorn is missing): pip install 'tl-toolkit[serve]'\n"
    )


def test_serve__needs_no_torch(color_model: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "sklearn"):
    sys.modules[name] = None
sys.argv = ["tl", "serve", {str(color_model)!r}, "--port", "0", "--device", "cpu", "--json"]
from tl.cli import main
main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["models"] == ["color"]
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert told.startswith("serving color at ")
