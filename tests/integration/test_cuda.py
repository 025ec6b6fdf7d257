"""Requirements on a machine with a CUDA GPU: training, export, prediction, votes, landmarks, errors.

Marked `cuda`; skipped where torch or onnxruntime cannot use a GPU. benchmarks/gpu.sh runs these on a bare GPU machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl.runtime
from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_model, solid
from tests.spots import make_spot_model, save_spots
from tests.trainer.conftest import _torch_as_before as _torch_as_before
from tests.trainer.landmarks.make import make_landmark_config, make_spots, moved_spots
from tests.trainer.make import StopsAt, make_class_folders, make_config, read_rows, weights_of
from tl.errors import DeviceError, RunInterrupted
from tl.exporter.export import export_run
from tl.exporter.merging.merge import merge
from tl.exporter.precision import Lowering, export_lowered
from tl.progress import Silent
from tl.runtime.engines.onnxruntime import cuda_fault
from tl.runtime.session import Session
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
with_runtime = pytest.mark.skipif(cuda_fault() is not None, reason=f"onnxruntime cannot use CUDA: {cuda_fault()}")

CUDA: dict[str, Any] = {"device": "cuda", "epochs": 6, "optimizer": "adamw", "lr": 0.01, "workers": 2}
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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_train__every_precision_learns(photos: Path, tmp_path: Path, precision: str) -> None:
    run = train(make_config(photos, tmp_path / "run", **CUDA, precision=precision), Silent()).run
    history = read_rows(run.folder / "history.csv")
    assert all(np.isfinite(float(row["train_loss"])) for row in history)
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["top1_accuracy"] > 0.9  # three plain colors


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_train__every_optimizer_clipped_averaged_and_accumulated(photos: Path, tmp_path: Path, optimizer: str) -> None:
    options = {**CUDA, "optimizer": optimizer, "lr": 0.003, "epochs": 2}
    extra = {"precision": "fp16", "clip_norm": 1.0, "ema_decay": 0.9, "accumulate": 2, "augment": "standard"}
    run = train(make_config(photos, tmp_path / "run", **options, **extra), Silent()).run
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights_of(run).values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_train__resumed_goes_on_where_it_stopped(photos: Path, tmp_path: Path, precision: str) -> None:
    config = make_config(photos, tmp_path / "stopped", **CUDA, precision=precision)
    with pytest.raises(RunInterrupted):
        train(config, StopsAt(3))
    run = Run(tmp_path / "stopped")
    assert train(run.load_config(), Silent(), resume=run).run == run
    assert [row["epoch"] for row in read_rows(run.folder / "history.csv")] == [str(n) for n in range(1, 7)]
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["top1_accuracy"] > 0.9


def test_train__features_on_a_trunk_trained_on_cuda(photos: Path, cuda_run: Run, tmp_path: Path) -> None:
    config = make_config(photos, tmp_path / "r", method="features", weights=str(cuda_run.folder), device="cuda")
    run = train(config, Silent()).run
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["top1_accuracy"] > 0.9


def test_train__nonexistent_cuda_device(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="'cuda:99': this machine has"):
        train(make_config(photos, tmp_path / "r", device="cuda:99"), Silent())


# --- model files


@with_runtime
def test_session__runs_on_cuda_and_as_the_cpu(cuda_model: Path, photos: Path) -> None:
    with on(cuda_model, "cuda") as gpu, on(cuda_model, "cpu") as cpu:
        assert gpu.provider == "CUDAExecutionProvider"
        images = sorted(map(str, photos.rglob("*.png")))
        for ours, theirs in zip(gpu.predict_batch(images), cpu.predict_batch(images), strict=True):
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)


@with_runtime
def test_predict_iter__any_batch_size_and_bad_images(cuda_model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [*sorted(map(str, photos.rglob("*.png"))) * 3, str(tmp_path / "bad.png")]
    with on(cuda_model, "cuda") as model:
        wanted = list(model.predict_iter(images))
        for size in (1, 7, 64):
            found = list(model.predict_iter(images, batch_size=size))
            assert [result.path for result in found] == images
            assert found[-1].error
            for ours, theirs in zip(found[:-1], wanted[:-1], strict=True):
                np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)


@with_runtime
def test_selftest__on_cuda(cuda_model: Path) -> None:
    assert tl.runtime.run_selftest(cuda_model, device="cuda").samples == 4


@with_runtime
def test_verify__command_on_cuda(cuda_model: Path, run_tl: RunTl) -> None:
    done = run_tl("verify", cuda_model, "--device", "cuda")
    assert done.code == 0, done.err


@with_runtime
def test_predict__command_on_cuda(cuda_model: Path, photos: Path, tmp_path: Path, run_tl: RunTl) -> None:
    done = run_tl("predict", photos, "--model", cuda_model, "--device", "cuda", "-o", tmp_path / "out.csv")
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "out.csv")
    assert len(rows) == 60
    assert sum(Path(row["path"]).parent.name == row["label"] for row in rows) > 54


@with_runtime
def test_doctor__finds_no_fault(run_tl: RunTl) -> None:
    done = run_tl("doctor", "--json")
    findings = {each["name"]: each for each in json.loads(done.out)}
    assert findings["cuda"]["ok"] is True, findings
    assert findings["session cuda"]["ok"] is True, findings


@with_runtime
def test_export_lowered__fp16_on_cuda(cuda_run: Run, photos: Path, tmp_path: Path) -> None:
    lowering = Lowering("fp16", device="cuda", keep_slower=True, min_agreement=0.9)
    done = export_lowered(cuda_run, tmp_path / "half.onnx", Silent(), lowering)
    quantization = done.contract.quantization
    assert quantization is not None
    assert quantization.provider == "CUDAExecutionProvider"
    assert quantization.max_abs_diff < HALF
    assert tl.runtime.run_selftest(done.path, device="cuda").samples == 4


@with_runtime
def test_merge__on_cuda_as_the_separate_files(tmp_path: Path) -> None:
    members = [make_model(tmp_path / f"{gain}.onnx", gain=gain) for gain in (0.05, -0.02, 0.01)]
    merged = merge(members, tmp_path / "e.onnx", Silent()).path
    images = [solid(color) for color in ((200, 30, 20), (100, 110, 90), (20, 180, 60), (0, 0, 0))]
    with on(members, "cpu") as apart, on([merged], "cuda") as together:
        for ours, theirs in zip(together.predict_batch(images), apart.predict_batch(images), strict=True):
            assert ours.label == theirs.label
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=SUMS)


@with_runtime
def test_landmarks__trained_exported_and_found_on_cuda(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "data")
    run = train(make_landmark_config(data, tmp_path / "run", device="cuda"), Silent()).run
    done = export_run(run, tmp_path / "m.onnx", Silent())
    images = sorted(map(str, (tmp_path / "data" / "images").glob("*.png")))
    load = tl.runtime.load_landmarks
    with load(done.path, device="cuda") as gpu, load(done.path, device="cpu") as cpu:
        assert gpu.provider == "CUDAExecutionProvider"
        for ours, theirs in zip(gpu.predict_batch(images), cpu.predict_batch(images), strict=True):
            np.testing.assert_allclose(ours.keypoints_xy, theirs.keypoints_xy, atol=0.05)  # pixels of the photo


@with_runtime
def test_landmarks__of_several_models_on_cuda(tmp_path: Path) -> None:
    models = [make_spot_model(tmp_path / f"{shift}.onnx", shift=shift) for shift in (0.0, 2.0)]
    image = save_spots(tmp_path / "p.png", moved_spots(0))
    load = tl.runtime.load_landmarks
    with load(models, device="cuda") as gpu, load(models, device="cpu") as cpu:
        np.testing.assert_allclose(gpu.predict(image).keypoints_xy, cpu.predict(image).keypoints_xy, atol=0.01)


@with_runtime
@pytest.mark.parametrize("device", ["cuda:99", "cuda:8"])
def test_session__nonexistent_gpu_number(cuda_model: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=f"device '{device}' cannot be used"):
        Session(cuda_model, device=device)


@with_runtime
def test_session__auto_takes_cuda(cuda_model: Path) -> None:
    assert Session(cuda_model, device="auto").provider == "CUDAExecutionProvider"
