"""Decoding in processes: the same results as in threads, and no leftovers however it ends."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from tests.models import make_model, solid
from tests.runtime.images import encode, noise
from tl.errors import WorkerError
from tl.runtime import Classification, Failure, ImageSource, Predictor, load
from tl.runtime.decode_pool import DecodePool, check_can_start
from tl.runtime.decode_worker import decode_chunk, slot_arrays, slot_bytes
from tl.runtime.imaging.pipeline import Preparer, build_views
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.sources.memory_files import UnreadableFile

ROOT = Path(__file__).parents[2]
PREPARER = Preparer((build_preprocessing((8, 8)),))


@pytest.fixture
def model(color_model: Path) -> Iterator[Predictor[Classification]]:
    with load(color_model, device="cpu", threads=2, decode_processes=2) as predictor:
        yield predictor


def test_decode_chunk__more_than_three_channels() -> None:
    preparer = Preparer((build_preprocessing((6, 8), channels=("0", "1", "2", "3")), build_preprocessing((4, 4))))
    memory = mmap.mmap(-1, slot_bytes(preparer, 2))
    arrays = slot_arrays(memory, 0, preparer, 2)
    assert [one.shape for one in arrays.values()] == [(2, 6, 8, 4), (2, 4, 4, 3)]
    image = encode(np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8), "PNG")
    assert decode_chunk([image, b"no image"], arrays, preparer, hashes=False)[0][1] is None
    for preprocessing, inputs in preparer(image).items():
        assert (arrays[preprocessing][0] == inputs[0]).all()


def children() -> set[int]:
    """Child processes that have not been reaped."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "decode_worker" in line}


def is_over(pid: int) -> bool:
    """Whether a process has ended; a zombie counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def make_folder(folder: Path) -> list[str]:
    """Valid images of many kinds, and every kind of invalid file."""
    folder.mkdir()
    for n in range(9):
        (folder / f"good{n}.jpg").write_bytes(encode(noise(20 + 40 * (n % 3), 30, n), "JPEG"))
    (folder / "alpha.png").write_bytes(encode(Image.new("RGBA", (9, 9), (200, 0, 0, 90)), "PNG"))
    (folder / "deep.png").write_bytes(encode(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900, "PNG"))
    (folder / "cut.jpg").write_bytes((folder / "good1.jpg").read_bytes()[:-40])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no image at all")
    (folder / "naïve\udcff.png").write_bytes(encode(solid((1, 2, 200)), "PNG"))
    os.mkfifo(folder / "pipe.png")
    return [*sorted(str(path) for path in folder.iterdir()), str(folder / "missing.png")]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Failure):
        return bool(one == other)
    return one.as_dict() == other.as_dict() and np.array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("tta", [(), ("hflip", "crops")])
def test_predict_iter__processes_equal_threads(tmp_path: Path, batch_size: int, tta: Any) -> None:
    models = [
        make_model(tmp_path / "a.onnx"),
        make_model(tmp_path / "b.onnx", preprocessing=build_preprocessing((12, 20), "letterbox"), gain=0.02),
    ]
    sources: list[ImageSource] = [*make_folder(tmp_path / "photos"), encode(noise(), "PNG"), b"", noise(seed=5)]
    sources += [Path(str(sources[0])), noise()[::2, ::-1]]

    def streams() -> list[BinaryIO]:
        return [BytesIO(encode(noise(seed=7), "PNG")), BytesIO(), UnreadableFile("archive.zip/bad.png", "encrypted")]

    with load(models, device="cpu", threads=2, tta=tta) as predictor:
        expected = list(predictor.predict_iter([*sources, *streams()], batch_size=batch_size))
        predictor.decode_processes = 2
        found = list(predictor.predict_iter([*sources, *streams()], batch_size=batch_size))
    assert sum(isinstance(each, Failure) for each in expected) == 8
    assert len(expected) == len(found)
    assert [(a, b) for a, b in zip(expected, found, strict=True) if not same(a, b)] == []


def test_predict_unknown__processes_equal_threads(tmp_path: Path, color_model: Path) -> None:
    sources = make_folder(tmp_path / "photos")

    def known(name: str, digest: str) -> str | None:
        assert digest
        return "kept" if Path(name).name in ("good2.jpg", "cut.jpg") else None

    answers = []
    for processes in 0, 2:
        with load(color_model, device="cpu", decode_processes=processes) as predictor:
            found = predictor.predict_unknown(sources, known, batch_size=4)
            answers.append([(digest, each if isinstance(each, str) else each.as_dict()) for digest, each in found])
    assert answers[0] == answers[1]
    assert [answer for _, answer in answers[1]].count("kept") == 2


def test_predict_iter__in_order_with_uneven_work(model: Predictor[Classification]) -> None:
    slow, quick = (
        encode(noise(900, 900), "PNG", compress_level=1),
        [encode(solid((0, n, 255 - n)), "PNG") for n in range(60)],
    )
    sources = [slow if n % 7 == 0 else quick[n] for n in range(60)]
    model.decode_processes = 0
    expected = list(model.predict_iter(sources, batch_size=2))
    model.decode_processes = 3
    assert all(map(same, expected, model.predict_iter(sources, batch_size=2)))


def test_predict_iter__faults_of_the_program_are_raised(model: Predictor[Classification]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        model.predict_batch([np.zeros((4, 4), np.uint8)])
    with pytest.raises(TypeError, match="int"):
        model.predict_batch([3])  # type: ignore[list-item]

    def broken() -> Iterator[ImageSource]:
        yield solid((1, 2, 3))
        raise KeyError("of the source")

    with pytest.raises(KeyError, match="of the source"):
        list(model.predict_iter(broken(), batch_size=1))
    assert children() == set()


def test_predict_iter__nothing(model: Predictor[Classification]) -> None:
    assert model.predict_batch([]) == []


# --- shutdown


def endless() -> Iterator[ImageSource]:
    while True:
        yield solid((1, 2, 3))


def test_predict_iter__dropped_leaves_nothing(model: Predictor[Classification]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = model.predict_iter(endless(), batch_size=2)
        for _ in range(20):
            next(results)
        assert len(children()) == 2
        del results
        gc.collect()
    assert children() == set()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_predict_iter__killed_worker_is_an_error(model: Predictor[Classification]) -> None:
    def sources() -> Iterator[ImageSource]:
        for n in range(1000):
            if n == 20:
                os.kill(min(children()), signal.SIGKILL)
            yield encode(noise(300, 300), "PNG") if n % 2 else f"photo{n}.png"

    with pytest.raises(WorkerError, match=r"killed by SIGKILL"):
        list(model.predict_iter(sources(), batch_size=2))
    assert children() == set()


def test_submit__all_workers_killed_names_the_chunk() -> None:
    data = encode(noise(), "PNG")
    with DecodePool(PREPARER, 1, batch_size=4, hashes=False) as pool:
        (worker,) = children()
        os.kill(worker, signal.SIGSTOP)
        futures = [pool.submit(chunk) for chunk in (["a.png", data, data, data], ["b.png"], ["c.png"])]
        wait_until(lambda: pool._tasks.qsize() == 1)  # the first two have been dispatched
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"a\.png, unnamed data, unnamed data and 1 more"):
            futures[0].result(20)
        for future in [*futures[1:], pool.submit(["d.png"])]:
            with pytest.raises(WorkerError):
                future.result(20)


SCRIPT = """
import sys, time
import tl.runtime
assert tl.runtime.__file__.startswith(sys.argv[2]), tl.runtime.__file__
model = tl.runtime.load(sys.argv[1], device="cpu", decode_processes=2)
with open(sys.argv[3], "rb") as file:
    data = file.read()
def sources():
    for n in range(int(sys.argv[4])):
        yield data
for n, result in enumerate(model.predict_iter(sources(), batch_size=2)):
    if n == 6:
        print(result.label, flush=True)
"""


def start_script(tmp_path: Path, model: Path, count: int) -> subprocess.Popen[str]:
    """A script without a __main__ guard, from another folder, with modules that only it can import."""
    (tmp_path / "script.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}")
    (tmp_path / "photo.png").write_bytes(encode(solid((9, 200, 9)), "PNG"))
    words = [str(tmp_path / "script.py"), str(model), str(ROOT), str(tmp_path / "photo.png"), str(count)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_script__without_a_guard(tmp_path: Path, color_model: Path) -> None:
    out, err = start_script(tmp_path, color_model, 30).communicate(timeout=60)
    assert (out, err) == ("green\n", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_script__killed_leaves_no_processes(tmp_path: Path, color_model: Path, number: signal.Signals) -> None:
    with start_script(tmp_path, color_model, 10**9) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "green\n"
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(script.pid)], capture_output=True, text=True)
        workers = [int(pid) for pid in listed.stdout.split()]
        assert len(workers) == 2
        script.send_signal(number)
        try:
            script.communicate(timeout=30)
        finally:  # where Ctrl-C is ignored, as in a shell's background, the test fails instead of waiting for ever
            script.kill()
    wait_until(lambda: all(map(is_over, workers)))


def test_worker__imports_no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, tl.runtime.decode_worker; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"onnxruntime", "torch", "typer"}.isdisjoint(ran.stdout.split())


def test_check_can_start__needs_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/labelmaker")
    with pytest.raises(WorkerError, match="runs in 'labelmaker'"):
        check_can_start()


def test_decode_pool__that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    with pytest.raises(WorkerError, match=r"2 decoding processes cannot be started: .*No such file"):
        DecodePool(PREPARER, 2, batch_size=1, hashes=False)


def test_decode_pool__slots_are_used_again_with_views() -> None:
    preparer = Preparer((build_preprocessing((8, 8)), build_preprocessing((6, 4))), build_views(["hflip"]))
    with DecodePool(preparer, 1, batch_size=2, hashes=True) as pool:
        for seed in range(3 * pool.slots):
            image = noise(20, 20, seed)
            chunk = pool.submit([b"", image]).result(20)
            assert [reason for _, reason in chunk.outcomes] == ["empty file", None]
            for preprocessing, inputs in preparer(image).items():
                np.testing.assert_array_equal(chunk.inputs[preprocessing], inputs)
            pool.release(chunk)


def test_load__impossible_number_of_processes(color_model: Path) -> None:
    with pytest.raises(ValueError, match="decode_processes"):
        load(color_model, device="cpu", decode_processes=-1)
