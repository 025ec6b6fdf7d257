from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.models import make_model, solid
from tests.runtime.images import encode, noise
from tests.spots import make_spot_model
from tl.errors import DataError, DeviceError, ModelFileError
from tl.runtime.bench.measure import MAX_IMAGES, Bench, advise, run_bench
from tl.runtime.bench.works import BATCH_SIZES, Setting
from tl.runtime.engines.onnxruntime import cuda_fault
from tl.runtime.engines.openvino import openvino_version
from tl.runtime.imaging.preprocessing import build_preprocessing

SMALL = (160, 120)
HAS_OPENVINO = openvino_version() is not None


@pytest.fixture(scope="module")
def bench(color_model: Path) -> Bench:
    return run_bench(color_model, image_wh=SMALL, device="cpu", threads=4, seconds=2.0)


def make_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02}.png").write_bytes(encode(noise(20, 20, i), "PNG"))
    return folder


def test_run_bench__measures_every_way(bench: Bench) -> None:
    settings = [row.setting for row in bench.rows]
    assert set(settings) | set(bench.skipped) == {
        *(Setting("network", "cpu", 4, "throughput", size) for size in BATCH_SIZES),
        *(Setting("network", "cpu", 4, "latency", size) for size in BATCH_SIZES),
        *(Setting("network", "cpu", threads, "latency", 1) for threads in (1, 2)),
        *(Setting("decode", "cpu", threads) for threads in (1, 4)),
        Setting("together", "cpu", 4, "throughput", 1),
    }
    assert len(set(settings)) == len(settings)
    assert set(settings).isdisjoint(bench.skipped)


def test_run_bench__figures_make_sense(bench: Bench) -> None:
    for row in bench.rows:
        timing = row.timing
        assert 0 < timing.slowest <= timing.images_per_s <= timing.fastest
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
        assert timing.runs >= bench.rounds


def test_run_bench__says_what_it_measured(bench: Bench, color_model: Path) -> None:
    assert (bench.model, bench.input_hw) == (str(color_model), (8, 8))
    assert bench.cores == len(os.sched_getaffinity(0))
    assert bench.onnxruntime.startswith("onnxruntime")
    assert bench.images.source == "generated, 160x120 JPEG"
    assert bench.faults == {}


def test_run_bench__one_thread_has_one_way(color_model: Path) -> None:
    bench = run_bench(color_model, image_wh=SMALL, device="cpu", threads=1, seconds=0.2)
    ways = {(row.setting.part, row.setting.hint, row.setting.threads) for row in bench.rows}
    assert ways == {("network", "throughput", 1), ("decode", None, 1), ("together", "throughput", 1)}


@pytest.mark.parametrize(("region", "is_whole"), [("whole", True), ("box", False)])
def test_run_bench__landmarks_of_whole_images(tmp_path: Path, region: str, is_whole: bool) -> None:
    model = make_spot_model(tmp_path / "m.onnx", region=region)
    bench = run_bench(model, image_wh=SMALL, device="cpu", threads=1, seconds=0)
    assert ("together" in {row.setting.part for row in bench.rows}) == is_whole


def test_run_bench__without_time_measures_the_least(color_model: Path) -> None:
    bench = run_bench(color_model, image_wh=SMALL, device="cpu", threads=2, seconds=0)
    network = [row.setting for row in bench.rows if row.setting.part == "network"]
    assert {setting.batch_size for setting in network} == {1}
    assert {setting.batch_size for setting in bench.skipped} == set(BATCH_SIZES[1:])
    assert bench.rounds == 1
    assert all(row.timing.runs <= 2 for row in bench.rows)


def test_run_bench__own_images(color_model: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", 3)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("no image")
    images = run_bench(color_model, images=folder, device="cpu", threads=1, seconds=0).images
    assert (images.source, len(images.contents), images.unreadable) == (str(folder), 3, 1)


def test_run_bench__takes_a_few_of_many_images(color_model: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", MAX_IMAGES + 5)
    images = run_bench(color_model, images=folder, device="cpu", threads=1, seconds=0).images
    assert len(set(images.contents)) == MAX_IMAGES


def test_run_bench__no_image_can_be_read(color_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of its 1 images can be read \(empty file\)"):
        run_bench(color_model, images=tmp_path, device="cpu", seconds=0)
    with pytest.raises(DataError, match="no images found"):
        run_bench(color_model, images=make_folder(tmp_path / "none", 0), device="cpu", seconds=0)


def test_run_bench__faults(tmp_path: Path, color_model: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        run_bench(tmp_path / "missing.onnx")
    with pytest.raises(DeviceError, match="unknown device"):
        run_bench(color_model, device="tpu")


@pytest.mark.skipif(cuda_fault() is None, reason="CUDA works here")
def test_run_bench__cuda_that_does_not_work(color_model: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be used"):
        run_bench(color_model, image_wh=SMALL, device="cuda", seconds=0)
    auto = run_bench(color_model, image_wh=SMALL, threads=1, seconds=0)
    assert {row.setting.device for row in auto.rows} == {"cpu"} | ({"openvino"} if HAS_OPENVINO else set())


@pytest.mark.skipif(cuda_fault() is not None, reason="needs a GPU and onnxruntime-gpu")
def test_run_bench__cuda(color_model: Path) -> None:
    bench = run_bench(color_model, image_wh=SMALL, threads=2, seconds=1)
    assert {row.setting.device for row in bench.rows if row.setting.part != "decode"} >= {"cpu", "cuda"}


@pytest.mark.skipif(not HAS_OPENVINO, reason="the extra openvino is not installed")
def test_run_bench__openvino(color_model: Path) -> None:
    bench = run_bench(color_model, image_wh=SMALL, device="openvino", threads=2, seconds=0)
    assert "openvino 20" in bench.onnxruntime
    ways = {(row.setting.part, row.setting.place, row.setting.hint) for row in bench.rows}
    assert ways == {
        ("network", "openvino", "throughput"),
        ("network", "openvino", "latency"),
        ("decode", "cpu", None),
        ("together", "openvino", "throughput"),
    }
    assert 'load(model, device="openvino", threads=' in advise(bench).lines[0]


def test_run_bench__leaves_no_threads(tmp_path: Path) -> None:
    import threading

    model = make_model(tmp_path / "large.onnx", preprocessing=build_preprocessing((64, 64)))
    (tmp_path / "one.png").write_bytes(encode(solid((1, 2, 3)), "PNG"))
    before = threading.active_count()
    run_bench(model, images=tmp_path, device="cpu", threads=3, seconds=0.1)
    assert threading.active_count() == before
