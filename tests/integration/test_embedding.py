"""What docs/how-to/embedding.md promises of threads, forks, memory and silence. tests/docs runs its examples."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tl.runtime
from tests.models import make_model, solid
from tests.runtime.images import encode, noise
from tl.runtime.imaging.preprocessing import build_preprocessing

ROOT = Path(__file__).resolve().parents[2]


def run_python(*words: str | Path, folder: Path = ROOT, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_types__are_packaged() -> None:
    assert (Path(tl.runtime.__file__).parents[1] / "py.typed").is_file()
    assert 'tl = ["py.typed"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("hint", ["throughput", "latency"])
def test_threads__share_a_predictor(color_model: Path, hint: tl.runtime.predictor.Hint) -> None:
    images = [noise(40, 30, seed) for seed in range(16)]
    with tl.runtime.load(color_model, device="cpu", threads=2, hint=hint) as model:
        alone = np.stack([model.predict(image).probabilities for image in images])

        def all_of_them(caller: int) -> np.ndarray:  # type: ignore[type-arg]
            order = np.roll(np.arange(len(images)), caller)
            results = model.predict_batch([images[i] for i in order]) if caller % 2 else map(model.predict, images)
            found = np.stack([one.probabilities for one in results if isinstance(one, tl.runtime.Classification)])
            return found[np.argsort(order)] if caller % 2 else found

        with ThreadPoolExecutor(8) as pool:
            for together in pool.map(all_of_them, range(8)):
                # A batch may sum in a different order than a single image; images differ by 1e-3 or more.
                np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
@pytest.mark.alone  # threads left by other tests would be counted
def test_close__frees_sessions_and_their_threads(color_model: Path) -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    time.sleep(0.2)  # threads of an earlier test may still be shutting down
    before = threads()
    with tl.runtime.load([color_model, color_model], device="cpu", threads=4, hint="latency") as model:
        model.predict(solid((1, 2, 3)))
        sessions = [weakref.ref(session._engine) for session in model.ensemble.sessions]
        assert threads() >= before + 6  # two pools of three threads in addition to the caller
    gc.collect()
    assert [session() for session in sessions] == [None, None]
    assert threads() <= before  # threads of earlier tests may have ended meanwhile


def test_use__is_silent(tmp_path: Path) -> None:
    """Nothing is written to file descriptors 1 and 2, even from C, or to the host's log, whatever happens."""
    make_model(tmp_path / "model.onnx", preprocessing=build_preprocessing((32, 32)))
    make_model(tmp_path / "foreign.onnx", contract=None)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    jpeg = encode(noise(60, 60), "JPEG")
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    code = """
import logging
records = []
logging.root.addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: records.append(record)})())
logging.root.setLevel(0)
import tl.runtime
from tl.errors import TlError
for hint in "throughput", "latency":
    with tl.runtime.load(["model.onnx", "model.onnx"], hint=hint, threads=2) as model:
        model.predict("photo.jpg")
        model.predict_batch(["photo.jpg", "half.jpg", b"", "missing.png"])
tl.runtime.run_selftest("model.onnx")
for fault in (lambda: tl.runtime.load("foreign.onnx"), lambda: tl.runtime.load("broken.onnx"),
              lambda: tl.runtime.load("model.onnx", device="cuda:99"), lambda: model.predict("photo.jpg")):
    try:
        fault()
    except (TlError, ValueError):
        continue
    raise SystemExit("no fault")
ours = [record for record in records if not record.name.startswith("PIL")]
assert not ours, ours
"""
    done = run_python("-W", "error", "-c", code, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Python 3.12 warns when a process with threads forks, so the forks happen in a separate process.
FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
import tl.runtime
image = np.full((20, 20, 3), (9, 200, 9), np.uint8)

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            print(work(), flush=True)
        except RuntimeError as error:
            print("RuntimeError:", error, flush=True)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    print("ended with", status, flush=True)
"""


def run_forks(color_model: Path, code: str) -> list[str]:
    done = run_python("-c", f"{FORK}\npath = {str(color_model)!r}\n{code}", seconds=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
@pytest.mark.parametrize("hint", ["throughput", "latency"])
def test_fork__use_of_the_parents_predictor_is_refused(color_model: Path, hint: str) -> None:
    code = f"""
model = tl.runtime.load(path, device="cpu", threads=4, hint={hint!r})
begun, fresh = model.predict_iter([image] * 40), model.predict_iter([image])
next(begun)
in_child(lambda: model.predict(image))
in_child(lambda: model.predict_batch([image]))
in_child(lambda: next(begun))
in_child(lambda: next(fresh))
print(model.predict(image).label, len(list(begun)))
"""
    lines = run_forks(color_model, code)
    assert [line for line in lines[:8:2] if not line.startswith("RuntimeError: this predictor was loaded in")] == []
    assert [line for line in lines[:8:2] if not line.endswith("load it in the child process")] == []
    assert lines[1:8:2] == ["ended with 0"] * 4
    assert lines[8:] == ["green 39"]  # the parent continues unaffected


@needs_fork
def test_fork__the_child_may_load_its_own(color_model: Path) -> None:
    code = """
model = tl.runtime.load(path, device="cpu", threads=4, hint="latency")
in_child(lambda: tl.runtime.load(path, device="cpu", threads=4, hint="latency").predict(image).label)
in_child(lambda: tl.runtime.load(path, device="cpu", threads=4).predict_batch([image] * 9)[8].label)
"""
    assert run_forks(color_model, code) == ["green", "ended with 0"] * 2


@needs_fork
def test_fork__the_child_may_drop_what_it_inherited(color_model: Path) -> None:
    """onnxruntime alone crashes here: it joins threads that exist only in the parent."""
    code = """
import gc
models = [tl.runtime.load(path, device="cpu", threads=4, hint="latency") for _ in range(2)]
[model.predict(image) for model in models]
def drop():
    models.pop().close()
    models.clear()
    return gc.collect() >= 0
in_child(drop)
print(models[0].predict(image).label)
"""
    assert run_forks(color_model, code) == ["True", "ended with 0", "green"]
