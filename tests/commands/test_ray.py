"""`tl predict --engine ray`: the rows of a local run, on a cluster of two nodes, one of which may be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.commands.conftest import Outcome, RunTl
from tests.models import make_model
from tl.runtime.output.claim import Claim

# Seconds for a cluster to start, or to notice that a node is dead, on a slow machine.
PATIENCE = 120.0


@dataclass
class TwoNodes:
    """A cluster. `raylet`: process id of the second node."""

    process: subprocess.Popen[str]
    address: str
    raylet: int

    def kill_second(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"

    def second_predicts(self) -> bool:
        """Whether a process of the second node is an actor that predicts now."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                title = (status.parent / "cmdline").read_bytes()
            except (OSError, ValueError):
                continue
            if parent == self.raylet and title.startswith(b"ray::Worker.answer"):
                return True
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """A cluster for tests that leave it as it was."""
    with start_cluster() as nodes:
        yield nodes


@contextmanager
def start_cluster(head_cpus: int = 1) -> Iterator[TwoNodes]:
    pytest.importorskip("ray")
    if not Path("/proc/self/stat").exists():
        pytest.skip("reads /proc, which this system does not have")
    folder = tempfile.mkdtemp(prefix="tl-ray-", dir="/tmp")  # Ray's socket names must be short
    environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.distributed.cluster_nodes", str(head_cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        address, raylet = process.stdout.readline().split()
        yield TwoNodes(process, address, int(raylet))
    finally:
        process.communicate(timeout=PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 500 names of images, large enough to last, and one that is none."""
    folder = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (700, 700, 3), np.uint8)).save(folder / f"{i}.jpg", quality=95)
    (folder / "bad.jpg").write_bytes(b"no image")
    listed = [f"{folder}/{i % 8}.jpg" for i in range(500)]
    listed[7] = f"{folder}/bad.jpg"
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in listed))
    return folder / "list.txt"


@pytest.fixture(scope="module")
def local_rows(names: Path, color_model: Path) -> bytes:
    """The rows of a local run."""
    out = names.with_name("local.csv")
    assert tl("predict", "--files-from", names, "--model", color_model, "--device", "cpu", "-o", out).code == 3
    return out.read_bytes()


def tl(*words: object) -> Outcome:
    """Run the command in a process of its own: Ray leaves threads and handlers behind."""
    done = subprocess.run([sys.executable, "-m", "tl", *map(str, words)], capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tl", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_rows(process: subprocess.Popen[str], out: Path) -> None:
    ledger = Claim(out).ledger
    while not (ledger.exists() and ledger.stat().st_size > 1000):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_predict__a_node_is_killed_in_the_middle(
    names: Path, local_rows: bytes, color_model: Path, tmp_path: Path
) -> None:
    with start_cluster() as two_nodes:
        kill_a_node(two_nodes, names, local_rows, color_model, tmp_path)


def kill_a_node(nodes: TwoNodes, names: Path, local_rows: bytes, color_model: Path, tmp_path: Path) -> None:
    words = ["predict", "--files-from", names, "--model", color_model, "--device", "cpu"]
    out = tmp_path / "ray.csv"
    process = start(*words, "-o", out, "--engine", "ray", "--ray-address", nodes.address)
    wait_for_rows(process, out)
    while not nodes.second_predicts():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    nodes.kill_second()
    assert not out.exists()  # it was in the middle
    shown, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, shown) == (3, ""), error
    assert out.read_bytes() == local_rows
    *before, summary = error.splitlines()
    assert any(line.startswith("a worker on the Ray cluster was lost; its images are") for line in before), error
    assert summary.startswith("499 images predicted, 1 could not be read")


@pytest.mark.slow
def test_predict__interrupted_and_resumed_here_and_there(
    cluster: TwoNodes, names: Path, local_rows: bytes, color_model: Path, tmp_path: Path
) -> None:
    words = ["predict", "--files-from", names, "--model", color_model, "--device", "cpu"]
    ray = ["--engine", "ray", "--ray-address", cluster.address]
    out = tmp_path / "out.csv"
    for number, begun, resumed in ((signal.SIGTERM, ray, []), (signal.SIGINT, ["--threads", 1], ray)):
        process = start(*words, "-o", out, *begun)
        wait_for_rows(process, out)
        process.send_signal(number)
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, error
        assert error.startswith("interrupted after ")
        assert error.endswith("add --resume to continue\n")
        done = tl(*words, "-o", out, *resumed, "--resume")
        assert done.code == 3, done.err
        assert int(done.err.split(" rows kept")[0]) > 0
        assert out.read_bytes() == local_rows
        out.unlink()
        shutil.rmtree(Claim(out).folder)


@pytest.mark.slow
def test_predict__archives_relative_names_and_images_that_are_sent(
    cluster: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile("more.zip", "w") as archive:
        for i in range(40):
            Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(f"{i:02d}.png")
            archive.write(f"{i:02d}.png")
        archive.writestr("empty.png", b"")
    models = [make_model(Path(f"{name}.onnx"), gain=gain) for name, gain in (("a", 0.05), ("b", 0.02))]
    Path("list.txt").write_text("00.png\nmissing.png\n01.png\n")
    words = ["predict", "*.png", "more.zip", "--files-from", "list.txt", "--ensemble", *models, "--vote", "hard"]
    local = tl(*words)
    assert local.code == 3
    for options in [], ["--ray-send-images", "--ray-actors", 1]:
        done = tl(*words, "--engine", "ray", "--ray-address", cluster.address, *options)
        assert (done.code, done.out) == (local.code, local.out), done.err


@pytest.mark.slow
def test_predict__images_on_a_web_server_are_read_by_the_workers(
    cluster: TwoNodes, color_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    paths = [f"/{i:02d}.png" for i in [*range(20), 99]]
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (47.0, 30.0, 0.0), 3: "E", 4: (12.0, 30.0, 0.0)}
    for i in range(20):
        Image.fromarray(np.full((12, 14, 3), 12 * i, np.uint8)).save(tmp_path / f"{i:02d}.png", exif=exif)
    (tmp_path / "05.png").write_bytes(b"no image")
    Image.effect_noise((2048, 1024), 60).save(tmp_path / "06.png")  # more than 1 MiB
    with serve(tmp_path) as (address, readers):
        (tmp_path / "list.txt").write_text("\n".join(f"{address}{path}?token=secret" for path in paths))
        words = ["predict", "--files-from", tmp_path / "list.txt", "-m", color_model, "--device", "cpu"]
        words += ["--max-file-size", 1]
        local = tl(*words, "--exif")
        rows = [line.split(",") for line in local.out.splitlines()]
        assert (len(rows), rows[1][-2], local.out.count("MiB"), "secret" in local.out) == (22, "12.5", 1, False)
        first = rows[0].index("captured")
        plain = "".join(f"{','.join(row[:first] + row[first + 5 :])}\n" for row in rows)
        ray = ["--engine", "ray", "--ray-address", cluster.address]
        for option, has_workers in ("", True), ("--ray-send-images", False), ("--exif", False):
            readers.clear()
            done = tl(*words, *ray, *filter(None, [option]))
            assert (done.code, done.out) == (3, local.out if option == "--exif" else plain), done.err
            assert {path for path, found in readers.items() if True in found} == (set(paths) if has_workers else set())


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, dict[str, set[bool]]]]:
    """Yield the address of a web server, and for each path, whether those who got it were workers of Ray."""
    readers: dict[str, set[bool]] = {}

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            readers.setdefault(path, set()).add(is_of_ray(self.client_address[1]))
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", readers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def is_of_ray(port: int) -> bool:
    """Whether the process that has connected from a port is a worker of Ray, which has another title than `python`."""
    sockets = {
        f"socket:[{line.split()[9]}]"
        for table in ("tcp", "tcp6")
        if (listed := Path(f"/proc/net/{table}")).exists()
        for line in listed.read_text().splitlines()[1:]
        if int(line.split()[1].rpartition(":")[2], 16) == port
    }
    for title in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if title.read_bytes().startswith(b"ray::Worker") and sockets & set(open_files(title.parent)):
                return True
    return False


def open_files(process: Path) -> Iterator[str]:
    for link in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            yield os.readlink(link)


def test_predict__a_worker_that_fits_on_no_node(cluster: TwoNodes, photos: Path, color_model: Path) -> None:
    words = ["predict", photos, "--model", color_model, "--engine", "ray", "--ray-address", cluster.address]
    done = tl(*words, "--threads", 2)  # as the whole cluster has
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "tl: no node of the Ray cluster has room for a worker: a worker needs 2 CPU, but the largest nodes have 1 CPU: "
        "use fewer threads, or add a node\n"
    )


@pytest.mark.slow
def test_predict__all_nodes_with_room_are_lost(names: Path, color_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ray.csv"
    with start_cluster(head_cpus=0) as nodes:
        words = ["predict", "--files-from", names, "--model", color_model, "--engine", "ray", "-o", out]
        words += ["--ray-address", nodes.address]
        code = f"""
import sys
from tl.runtime.distributed import ray_pool
ray_pool._SECONDS_UNTIL_SAID = 1.0
sys.argv = ["tl", *{[*map(str, words)]!r}]
from tl.__main__ import main
main()
"""
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        wait_for_rows(process, out)
        nodes.kill_second()
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, error
    assert error.splitlines()[-1].startswith("tl: no node of the Ray cluster has room for a worker: ")
    assert Claim(out).ledger.exists()  # for --resume


def test_predict__no_cluster(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    words = ["predict", photos, "--model", color_model, "-o", tmp_path / "out.csv", "--engine", "ray"]
    done = tl(*words, "--ray-address", "127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert done.err == "tl: no Ray cluster answers at 127.0.0.1:1: Connection refused\n"
    assert "is not an address of a Ray cluster" in tl(*words, "--ray-address", "here").err
    assert sorted(tmp_path.iterdir()) == [photos]


def test_predict__without_ray(photos: Path, color_model: Path) -> None:
    code = f"""
import sys
sys.modules["ray"] = None
sys.argv = ["tl", "predict", {str(photos)!r}, "--model", {str(color_model)!r}, "--engine", "ray"]
from tl.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tl: prediction on a cluster requires Ray: pip install 'tl-toolkit[ray]'\n"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--engine", "ray", "--explain", "why"], "--explain: not possible with --engine ray"),
        (["--engine", "ray", "--decode-processes", 2], "--decode-processes: not possible with --engine ray"),
        (["--engine", "ray", "--every", "1s"], "--every: not possible with --engine ray"),
        (["--ray-actors", 2, "--ray-send-images"], "--ray-actors, --ray-send-images: applies only to --engine ray"),
    ],
)
def test_predict__flags_that_do_not_go_together(
    run_tl: RunTl, photos: Path, color_model: Path, options: list[object], fault: str
) -> None:
    done = run_tl("predict", photos, "--model", color_model, *options)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"tl: {fault}")
