"""Images from a real S3 server and a web server, through `tl` as its own process: rows, retries, and faults."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.servers import Faults, serve_proxy
from tl.runtime.sources.remote import is_remote, remote_name, shown_name

SECONDS = 120


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Any]]:
    """Address of an S3 server with the empty bucket `photos`, and its client."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **KEYS)
    client.create_bucket(Bucket="photos")
    yield address, client
    client.close()
    server.stop()


KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "hidden"}


@pytest.fixture
def folder(photos: Path) -> Path:
    """The class folders, with a file that is no image, a hidden one and one that cannot be read."""
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden").mkdir()
    shutil.copy(photos / "red" / "0.png", photos / ".hidden" / "0.png")
    shutil.copy(photos / "red" / "0.png", photos / "red0.png")
    (photos / "red" / "broken.png").write_bytes(b"nothing like an image")
    (photos / "red" / "empty.png").write_bytes(b"")
    return photos


@pytest.fixture
def bucket(s3: tuple[str, Any], folder: Path, request: pytest.FixtureRequest) -> str:
    """A prefix of its own with the content of the folder."""
    _, client = s3
    prefix = request.node.name.split("[")[0]
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "photos", f"{prefix}/{path.relative_to(folder).as_posix()}")
    return f"s3://photos/{prefix}"


def tl(*words: object, endpoint: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}), **more}
    command = [sys.executable, "-m", "tl", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=SECONDS, stdin=subprocess.DEVNULL
    )


def rows_of(text: str, root: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(text.splitlines()))
    assert all(row["path"].startswith(f"{root}/") for row in rows)
    return [row | {"path": row["path"].removeprefix(f"{root}/")} for row in rows]


def test_predict__rows_of_a_bucket_equal_those_of_the_folder(
    s3: tuple[str, Any], bucket: str, folder: Path, color_model: Path, tmp_path: Path
) -> None:
    words = ["-m", color_model, "--device", "cpu"]
    local, remote = tl("predict", folder, *words), tl("predict", f"{bucket}/", *words, endpoint=s3[0])
    assert (local.returncode, remote.returncode) == (3, 3), remote.stderr
    expected = rows_of(local.stdout, str(folder))
    assert rows_of(remote.stdout, bucket) == expected
    assert "skipped: 1 hidden, 1 files without an image extension" in remote.stderr
    pattern = tl("predict", f"{bucket}/**/[01].png".replace("//", "/", 1), *words, endpoint=s3[0])
    assert [row["path"] for row in rows_of(pattern.stdout, bucket)] == [
        f"{color}/{i}.png" for color in ("blue", "green", "red") for i in (0, 1)
    ]
    single = tl("predict", f"{bucket}/red/0.png", *words, "-o", tmp_path / "one.jsonl", "--exif", endpoint=s3[0])
    assert single.returncode == 0, single.stderr
    for number in (1, 2):
        shard = ["--shard", f"{number}/2", "-o", tmp_path / "parts"]
        assert tl("predict", bucket, *words, *shard, endpoint=s3[0]).returncode in (0, 3)
    assert tl("predict", "--join", tmp_path / "parts", "-o", tmp_path / "all.csv").returncode == 3
    assert (tmp_path / "all.csv").read_text() == remote.stdout


@pytest.mark.slow
def test_predict__more_objects_than_a_page_lists(s3: tuple[str, Any], color_model: Path, folder: Path) -> None:
    content = (folder / "red" / "0.png").read_bytes()
    for i in range(1005):
        s3[1].put_object(Bucket="photos", Key=f"pages/{i:04d}.png", Body=content)
    done = tl("predict", "s3://photos/pages", "-m", color_model, "--device", "cpu", endpoint=s3[0])
    assert done.returncode == 0, done.stderr
    names = [row["path"] for row in rows_of(done.stdout, "s3://photos/pages")]
    assert names == [f"{i:04d}.png" for i in range(1005)]


@pytest.mark.slow
def test_predict__throttling_and_broken_connections_are_tried_again(
    s3: tuple[str, Any], bucket: str, folder: Path, color_model: Path, tmp_path: Path
) -> None:
    words = ["-m", color_model, "--device", "cpu"]
    expected = rows_of(tl("predict", folder, *words).stdout, str(folder))
    with serve_proxy(s3[0]) as (address, faults):
        faults.planned = {
            "list-type": ["slow", "slow"],
            "red/0.png": ["slow", "break"],
            "blue/1.png": ["break", "busy"],
        }
        done = tl("predict", bucket, *words, endpoint=address)
        assert rows_of(done.stdout, bucket) == expected, done.stderr
        assert sum("blue/1.png" in path for path in faults.seen) >= 3
        faults.planned = {"blue/1.png": ["slow", "always"], "green/0.png": ["deny", "always"]}
        faults.seen.clear()
        done = tl("predict", bucket, *words, "-o", tmp_path / "out.csv", endpoint=address)
        assert done.returncode == 3, done.stderr
        rows = rows_of((tmp_path / "out.csv").read_text(), bucket)
        failed = {row["path"] for row in rows if row["error"]}
        assert failed == {"blue/1.png", "green/0.png", "red/broken.png", "red/empty.png"}
        assert sum("green/0.png" in path for path in faults.seen) == 1  # a refusal is not tried again
        faults.planned = {}
        done = tl("predict", bucket, *words, "-o", tmp_path / "out.csv", "--resume", endpoint=address)
        assert "rows kept from the earlier run" in done.stderr
        assert rows_of((tmp_path / "out.csv").read_text(), bucket) == expected


def test_evaluate__class_folders_in_a_bucket(s3: tuple[str, Any], bucket: str, folder: Path, color_model: Path) -> None:
    words = ["--model", color_model, "--device", "cpu"]
    local, remote = tl("evaluate", folder, *words), tl("evaluate", bucket, *words, endpoint=s3[0])
    assert remote.returncode == local.returncode == 3, remote.stderr
    assert remote.stdout == local.stdout
    assert f"{bucket}/red/broken.png" in remote.stderr
    done = tl("evaluate", bucket, *words, "--report", "page.html", endpoint=s3[0])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--report shows images from files" in done.stderr


@pytest.mark.slow
def test_predict__unusable_places(s3: tuple[str, Any], bucket: str, color_model: Path, tmp_path: Path) -> None:
    words = ["-m", color_model, "--device", "cpu"]

    def refusal(name: str, *more: object, **where: str) -> str:
        done = tl("predict", *([name] if name else []), *more, *words, **where)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "or the bucket 'nowhere' does not exist" in refusal("s3://nowhere/a", endpoint=s3[0])
    assert "s3://nowhere/a: no such object" in refusal("s3:/nowhere/a", endpoint=s3[0])
    assert "no such object or folder" in refusal("s3://photos/nothing/here", endpoint=s3[0])
    assert "none matches it as a pattern" in refusal(f"{bucket}/*.gif", endpoint=s3[0])
    assert "expected the name of a bucket" in refusal("s3://*/a", endpoint=s3[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    error = refusal("s3://photos/a", endpoint=closed)
    assert "the server cannot be reached" in error
    assert "AWS_ENDPOINT_URL" in error
    (tmp_path / "list.txt").write_text("s3://nowhere/a.png\n")
    assert "'nowhere' does not exist" in refusal("", "--files-from", tmp_path / "list.txt", endpoint=s3[0])
    (tmp_path / "list.txt").write_text(f"{closed}/a.png\n")
    assert "the server cannot be reached" in refusal("", "--files-from", tmp_path / "list.txt")
    assert "web servers do not list folders" in refusal(f"{closed}/folder/")
    with serve_proxy(s3[0]) as (address, faults):
        faults.planned = {"photos": ["deny", "always"]}
        error = refusal(bucket, endpoint=address)
    assert "access denied" in error
    assert "hidden" not in error


def test_predict__web_server(folder: Path, color_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    handler = partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with serve_proxy(address) as (proxy, faults):
            faults.planned = {"green/1.png": ["break", "busy"], "blue/0.png": ["slow", "always"]}
            names = [
                "red/0.png?X-Amz-Signature=hidden&v=2",
                "green/1.png",
                "absent.png",
                "red/broken.png",
                "blue/0.png",
            ]
            lines = [f"{proxy}/{name}\n" for name in names]
            (tmp_path / "list.txt").write_text("".join(lines).replace("http://", "http://me:hidden@", 1))
            done = tl("predict", "--files-from", tmp_path / "list.txt", "-m", color_model, "--device", "cpu")
            assert done.returncode == 3, done.stderr
            rows = rows_of(done.stdout, proxy)
    finally:
        server.shutdown()
        server.server_close()
    assert [row["path"] for row in rows] == ["red/0.png?v=2", *names[1:]]
    assert [row["label"] for row in rows] == ["red", "green", "", "", ""]
    assert [row["error"] for row in rows][2::2] == ["no such object", "HTTP 503 Service Unavailable"]
    assert "hidden" not in done.stdout + done.stderr


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


class _Counting(_Quiet):
    gets: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.gets[self.path.lstrip("/")] += 1
        super().do_GET()


def test_predict__reads_each_address_once_and_links_it(folder: Path, color_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    _Counting.gets.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Counting, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    names = [f"{color}/{i}.png" for color in ("red", "green", "blue") for i in (0, 1)]
    try:
        lines = [f"{address}/{name}?token=hidden\n" for name in names]
        (tmp_path / "list.txt").write_text("".join(lines).replace("http://", "http:/"))
        words = ["--files-from", tmp_path / "list.txt", "-m", color_model, "--device", "cpu", "--to", "labelstudio"]
        done = tl("predict", *words, "-o", tmp_path / "tasks.json")
        refused = tl("predict", *words, "-o", tmp_path / "new.json", "--image-root", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert _Counting.gets == {f"{name}?token=hidden": 1 for name in names}
    tasks = json.loads((tmp_path / "tasks.json").read_bytes())
    assert [task["data"]["image"] for task in tasks] == [f"{address}/{name}" for name in names]
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert "all images are addresses" in refused.stderr


def test_predict__missing_extra(color_model: Path, tmp_path: Path) -> None:
    (tmp_path / "s3fs").mkdir()
    (tmp_path / "s3fs" / "__init__.py").write_text("raise ImportError('not installed')")
    path = os.pathsep.join([str(tmp_path), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])])
    done = tl("predict", "s3://photos/a", "-m", color_model, PYTHONPATH=path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "pip install 'tl-toolkit[s3]'" in done.stderr


def test_names() -> None:
    assert all(map(is_remote, ("s3://b/a", "gs://b/a", "az://b/a", "abfs://b/a", "http://h/a", "HTTPS://h/a")))
    assert not any(map(is_remote, ("photos/a", "s3", "s3:", "C:/a", "a/s3://b", b"s3://b/a", None)))
    assert (remote_name("s3:/b/a"), remote_name("S3://b/a"), remote_name("b/a")) == ("s3://b/a", "s3://b/a", "")
    assert shown_name("s3://b/a?b@c.png") == "s3://b/a?b@c.png"
    assert shown_name("https://me:pw@h:1/a.png") == shown_name("https:/me:pw@h:1/a.png") == "https://h:1/a.png"
    assert shown_name("https://h/a?id=3&sig=x&se=1&sp=r&token=t") == "https://h/a?id=3"
    assert Faults().next("a") == ""
