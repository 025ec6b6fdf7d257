"""Requirements on a machine with a CUDA GPU: training, export, prediction, votes, every task, serving, errors.

Marked `cuda`; skipped where torch or onnxruntime cannot use a GPU. benchmarks/gpu.sh runs these on a bare GPU machine.
With TL_TEST_DEVICE=cpu, those that do not depend on CUDA itself run on the CPU, which shows that the tests are right.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl.runtime
from tests.annotation.photos import make_embedding_model, make_photos
from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_model, solid
from tests.serving.models import make_multilabel_model, make_regression_model
from tests.spots import make_spot_model, save_spots
from tests.trainer.conftest import _torch_as_before as _torch_as_before
from tests.trainer.landmarks.make import make_landmark_config, make_spots, moved_spots
from tests.trainer.make import StopsAt, make_class_folders, make_config, read_rows, weights_of
from tl.annotation.feature_sources import open_source
from tl.annotation.features import PhotoFeatures
from tl.errors import DeviceError, RunInterrupted
from tl.exporter.any_size.convert import to_any_size
from tl.exporter.export import export_run
from tl.exporter.merging.merge import merge
from tl.exporter.precision import Lowering, export_lowered
from tl.progress import Silent
from tl.runtime.engines.onnxruntime import cuda_fault
from tl.runtime.results import Classification
from tl.runtime.session import Session
from tl.serving.workers import Batching, Workers
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

DEVICE = os.environ.get("TL_TEST_DEVICE", "cuda")
PROVIDER = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[DEVICE]
IS_DRY = DEVICE == "cpu"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not IS_DRY and not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
FAULT = None if IS_DRY else cuda_fault()
with_runtime = pytest.mark.skipif(FAULT is not None, reason=f"onnxruntime cannot use CUDA: {FAULT}")
PRECISIONS = ["fp32"] if IS_DRY else ["fp32", "bf16", "fp16"]  # the CPU trains in fp32
of_cuda_alone = pytest.mark.skipif(IS_DRY, reason="tests CUDA itself")

CUDA: dict[str, Any] = {"device": DEVICE, "epochs": 6, "optimizer": "adamw", "lr": 0.01, "workers": 2}
# CUDA sums in another order than the CPU; TF32 is off in model files. A wrong channel or size differs by 1e-2 or more.
SUMS = 1e-4
# fp16 has 11 bits, about three digits.
HALF = 2e-2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("data") / "photos", 20)


@pytest.fixture(scope="module")
def cuda_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(make_config(photos, tmp_path_factory.mktemp("runs") / "run", **CUDA), Silent()).run


@pytest.fixture(scope="module")
def cuda_model(cuda_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(cuda_run, tmp_path_factory.mktemp("models") / "m.onnx", Silent()).path


def on(path: Path | list[Path], device: str) -> Any:
    return tl.runtime.load(path, device=device)


# --- training


@pytest.mark.parametrize("precision", PRECISIONS)
def test_train__every_precision_learns(photos: Path, tmp_path: Path, precision: str) -> None:
    run = train(make_config(photos, tmp_path / "run", **CUDA, precision=precision), Silent()).run
    history = read_rows(run.folder / "history.csv")
    assert all(np.isfinite(float(row["train_loss"])) for row in history)
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["top1_accuracy"] > 0.9  # three plain colors


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_train__every_optimizer_clipped_averaged_and_accumulated(photos: Path, tmp_path: Path, optimizer: str) -> None:
    options = {**CUDA, "optimizer": optimizer, "lr": 0.003, "epochs": 2}
    options |= {"precision": PRECISIONS[-1], "clip_norm": 1.0, "ema_decay": 0.9, "accumulate": 2, "augment": "standard"}
    run = train(make_config(photos, tmp_path / "run", **options), Silent()).run
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights_of(run).values())


@pytest.mark.parametrize("precision", PRECISIONS[-2:])
def test_train__resumed_goes_on_where_it_stopped(photos: Path, tmp_path: Path, precision: str) -> None:
    config = make_config(photos, tmp_path / "stopped", **CUDA, precision=precision)
    with pytest.raises(RunInterrupted):
        train(config, StopsAt(3))
    run = Run(tmp_path / "stopped")
    assert train(run.load_config(), Silent(), resume=run).run == run
    assert [row["epoch"] for row in read_rows(run.folder / "history.csv")] == [str(n) for n in range(1, 7)]
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["top1_accuracy"] > 0.9


def test_train__features_on_a_trunk_trained_on_cuda(photos: Path, cuda_run: Run, tmp_path: Path) -> None:
    config = make_config(photos, tmp_path / "r", method="features", weights=str(cuda_run.folder), device=DEVICE)
    run = train(config, Silent()).run
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["top1_accuracy"] > 0.9


@of_cuda_alone
def test_train__nonexistent_cuda_device(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="'cuda:99': this machine has"):
        train(make_config(photos, tmp_path / "r", device="cuda:99"), Silent())


# --- model files


@with_runtime
def test_session__runs_on_cuda_and_as_the_cpu(cuda_model: Path, photos: Path) -> None:
    with on(cuda_model, DEVICE) as gpu, on(cuda_model, "cpu") as cpu:
        assert gpu.provider == PROVIDER
        images = sorted(map(str, photos.rglob("*.png")))
        for ours, theirs in zip(gpu.predict_batch(images), cpu.predict_batch(images), strict=True):
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)


@with_runtime
def test_predict_iter__any_batch_size_and_bad_images(cuda_model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [*sorted(map(str, photos.rglob("*.png"))) * 3, str(tmp_path / "bad.png")]
    with on(cuda_model, DEVICE) as model:
        wanted = list(model.predict_iter(images))
        for size in (1, 7, 64):
            found = list(model.predict_iter(images, batch_size=size))
            assert [result.path for result in found] == images
            assert found[-1].error
            for ours, theirs in zip(found[:-1], wanted[:-1], strict=True):
                np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)


@with_runtime
def test_selftest__on_cuda(cuda_model: Path) -> None:
    assert tl.runtime.run_selftest(cuda_model, device=DEVICE).samples == 4


@with_runtime
def test_verify__command_on_cuda(cuda_model: Path, run_tl: RunTl) -> None:
    done = run_tl("verify", cuda_model, "--device", DEVICE)
    assert done.code == 0, done.err


@with_runtime
def test_predict__command_on_cuda(cuda_model: Path, photos: Path, tmp_path: Path, run_tl: RunTl) -> None:
    done = run_tl("predict", photos, "--model", cuda_model, "--device", DEVICE, "-o", tmp_path / "out.csv")
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "out.csv")
    assert len(rows) == 60
    assert sum(Path(row["path"]).parent.name == row["label"] for row in rows) > 54


@of_cuda_alone
@with_runtime
def test_doctor__finds_no_fault(run_tl: RunTl) -> None:
    done = run_tl("doctor", "--json")
    findings = {each["name"]: each for each in json.loads(done.out)}
    assert findings["cuda"]["ok"] is True, findings
    assert findings["session cuda"]["ok"] is True, findings


@with_runtime
def test_export_lowered__fp16_on_cuda(cuda_run: Run, photos: Path, tmp_path: Path) -> None:
    lowering = Lowering("fp16", device=DEVICE, keep_slower=True, min_agreement=0.9)
    done = export_lowered(cuda_run, tmp_path / "half.onnx", Silent(), lowering)
    quantization = done.contract.quantization
    assert quantization is not None
    assert quantization.provider == PROVIDER
    assert quantization.max_abs_diff < HALF
    assert tl.runtime.run_selftest(done.path, device=DEVICE).samples == 4


@with_runtime
def test_merge__on_cuda_as_the_separate_files(tmp_path: Path) -> None:
    members = [make_model(tmp_path / f"{gain}.onnx", gain=gain) for gain in (0.05, -0.02, 0.01)]
    merged = merge(members, tmp_path / "e.onnx", Silent()).path
    images = [solid(color) for color in ((200, 30, 20), (100, 110, 90), (20, 180, 60), (0, 0, 0))]
    with on(members, "cpu") as apart, on([merged], DEVICE) as together:
        for ours, theirs in zip(together.predict_batch(images), apart.predict_batch(images), strict=True):
            assert ours.label == theirs.label
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)


@with_runtime
def test_any_size__on_cuda_as_the_file_of_fixed_size_on_the_cpu(cuda_run: Run, photos: Path, tmp_path: Path) -> None:
    fixed = export_run(cuda_run, tmp_path / "fixed.onnx", Silent()).path
    images = sorted(map(str, photos.rglob("*.png")))
    whole = to_any_size(fixed, tmp_path / "any.onnx", images, Silent()).path
    assert tl.runtime.run_selftest(whole, device=DEVICE).samples == 4
    with on(whole, DEVICE) as gpu, on(fixed, "cpu") as cpu:
        found, wanted = list(gpu.predict_batch(images)), list(cpu.predict_batch(images))
    assert [result.label for result in found] == [result.label for result in wanted]


@with_runtime
@pytest.mark.parametrize(
    ("make", "load", "field"),
    [
        (make_multilabel_model, tl.runtime.load_multilabel, "probabilities"),
        (make_regression_model, tl.runtime.load_regression, "values"),
    ],
)
def test_predict__several_labels_and_numbers(
    tmp_path: Path, make: Callable[[Path], Path], load: Callable[..., Any], field: str
) -> None:
    model = make(tmp_path / "m.onnx")
    images = [solid(color) for color in ((200, 30, 20), (100, 110, 90), (20, 180, 60))]
    with load(model, device=DEVICE) as gpu, load(model, device="cpu") as cpu:
        for ours, theirs in zip(gpu.predict_batch(images), cpu.predict_batch(images), strict=True):
            np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), atol=SUMS)


@with_runtime
def test_workers__batches_of_several_requests(cuda_model: Path, photos: Path) -> None:
    sizes: list[int] = []
    contents = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    with on(cuda_model, DEVICE) as gpu, on(cuda_model, "cpu") as cpu:
        workers = Workers(2, batching=Batching(8, 20.0), seen=sizes.append)
        requests = [workers.predict(gpu, contents[n : n + 3]) for n in range(20)]
        for n, jobs in enumerate(requests):
            done = threading.Event()
            jobs.when_done(done.set)
            assert done.wait(60)
            wanted = cpu.predict_batch(contents[n : n + 3])
            for ours, theirs in zip(jobs.results(), wanted, strict=True):
                assert isinstance(ours, Classification)
                np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)
        workers.close()
    assert sum(sizes) == 60
    assert 1 < max(sizes) <= 8


@with_runtime
def test_photo_features__of_a_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(map(str, make_photos(tmp_path / "photos", 12).rglob("*.png")))
    model = make_embedding_model(tmp_path / "m.onnx")
    found = {}
    for device in (DEVICE, "cpu"):
        monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / f"cache-{device}"))  # features are kept for every device
        photos = PhotoFeatures(paths, open_source(model, device=device))
        photos.run(threading.Event())
        found[device] = photos.matrix
    np.testing.assert_allclose(found[DEVICE], found["cpu"], atol=SUMS)


@with_runtime
def test_landmarks__trained_exported_and_found_on_cuda(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "data")
    run = train(make_landmark_config(data, tmp_path / "run", device=DEVICE), Silent()).run
    done = export_run(run, tmp_path / "m.onnx", Silent())
    images = sorted(map(str, (tmp_path / "data" / "images").glob("*.png")))
    load = tl.runtime.load_landmarks
    with load(done.path, device=DEVICE) as gpu, load(done.path, device="cpu") as cpu:
        assert gpu.provider == PROVIDER
        for ours, theirs in zip(gpu.predict_batch(images), cpu.predict_batch(images), strict=True):
            np.testing.assert_allclose(ours.keypoints_xy, theirs.keypoints_xy, atol=0.05)  # pixels of the photo


@with_runtime
def test_landmarks__of_several_models_on_cuda(tmp_path: Path) -> None:
    models = [make_spot_model(tmp_path / f"{shift}.onnx", shift=shift) for shift in (0.0, 2.0)]
    image = save_spots(tmp_path / "p.png", moved_spots(0))
    load = tl.runtime.load_landmarks
    with load(models, device=DEVICE) as gpu, load(models, device="cpu") as cpu:
        np.testing.assert_allclose(gpu.predict(image).keypoints_xy, cpu.predict(image).keypoints_xy, atol=0.01)


@of_cuda_alone
@with_runtime
@pytest.mark.parametrize("device", ["cuda:99", "cuda:8"])
def test_session__nonexistent_gpu_number(cuda_model: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=f"device '{device}' cannot be used"):
        Session(cuda_model, device=device)


@of_cuda_alone
@with_runtime
def test_session__auto_takes_cuda(cuda_model: Path) -> None:
    assert Session(cuda_model, device="auto").provider == PROVIDER
