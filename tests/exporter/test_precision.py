from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.exporter.test_export import assert_nothing_private, moved_run
from tests.trainer.make import Listener, read_rows
from tl.errors import ConfigError, DataError, DeviceError, PrecisionError
from tl.exporter import precision as precision_module
from tl.exporter import speed_comparison as speed_module
from tl.exporter.export import Exported
from tl.exporter.precision import Lowering, _check_worth_keeping, _compare, _Trial, describe, export_lowered
from tl.exporter.quantization import INT8_WAYS
from tl.progress import Silent
from tl.runtime.engines.openvino import has_bf16, openvino_version
from tl.runtime.model_file.conversions import Quantization
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.predictor import load
from tl.runtime.session import Session
from tl.trainer.run_folder.run import Run

ROOT = Path(__file__).resolve().parents[2]
# Kept whether or not it is faster, because that depends on the machine.
INT8 = Lowering("int8", calibration_images=9, device="cpu", keep_slower=True)
FP16 = Lowering("fp16", device="cpu", keep_slower=True)

FOUND = Quantization(
    method="int8",
    calibration_images=100,
    seed=0,
    images=400,
    top1_agreement=0.995,
    max_abs_diff=0.2,
    speedup=1.5,
    slowest=1.25,
    fastest=1.75,
    rounds=11,
    faster_rounds=11,
    provider="CPUExecutionProvider",
    processor="Pocket calculator",
    threads=2,
    batch_size=1,
    kept_slower=False,
)


@pytest.fixture(scope="module", autouse=True)
def _short_rounds() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed_module, "_SECONDS_A_ROUND", 0.02)
        yield


@pytest.fixture(scope="module")
def int8(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_lowered(finished_run, tmp_path_factory.mktemp("int8") / "m.onnx", Silent(), INT8)


@pytest.fixture(scope="module")
def fp16(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_lowered(finished_run, tmp_path_factory.mktemp("fp16") / "m.onnx", Silent(), FP16)


@pytest.fixture(params=["int8", "fp16"])
def lowered(request: pytest.FixtureRequest) -> Exported:
    done: Exported = request.getfixturevalue(request.param)
    return done


def test_export_lowered__contract_says_what_was_measured(lowered: Exported, exported: Exported) -> None:
    contract = Session(lowered.path, device="cpu", threads=1).contract
    assert contract == lowered.contract
    found = contract.quantization
    assert found is not None
    assert found.method.startswith(contract.precision)
    assert (found.images, found.top1_agreement) == (6, 1.0)  # a fifth of each class of 12, rounded; three plain colors
    assert found.calibration_images == (9 if contract.precision == "int8" else 0)
    assert found.provider == "CPUExecutionProvider"
    assert found.slowest <= found.speedup <= found.fastest
    assert found.kept_slower == (found.faster_rounds < speed_module.WON_ROUNDS)
    # Everything else is as in fp32, including parity with torch, which applies to the fp32 graph.
    assert contract.parity.tolerance == 1e-4
    for name in ("class_names", "preprocessing", "conformal", "temperature", "task"):
        assert getattr(contract, name) == getattr(exported.contract, name)
    assert (contract.outputs, contract.ood) == (("probabilities", "embedding"), None)  # precision is too low
    assert exported.contract.quantization is None


def test_export_lowered__predicts_nearly_as_validated(lowered: Exported, finished_run: Run, photos: Path) -> None:
    rows = read_rows(finished_run.folder / "predictions_val.csv")
    with load(lowered.path, device="cpu", threads=1) as predictor:
        results = predictor.predict_batch([photos / row["path"] for row in rows])
    worst = 0.0
    for row, result in zip(rows, results, strict=True):
        shown = [float(row[f"p:{name}"]) for name in ("blue", "green", "red")]
        assert result.label == row["label"]  # type: ignore[union-attr]
        worst = max(worst, float(np.abs(result.probabilities - shown).max()))  # type: ignore[union-attr]
    assert worst <= lowered.contract.quantization.max_abs_diff + 1.1e-4  # type: ignore[union-attr]  # export's bound


def test_export_lowered__passes_verify_with_a_wider_tolerance(lowered: Exported) -> None:
    test = run_selftest(lowered.path, device="cpu", threads=1)
    assert test.tolerance == {"int8": 0.1, "fp16": 0.02}[lowered.contract.precision]
    assert test.max_abs_diff <= 1e-2  # the same graph on the same machine; batches may round differently


def test_export_lowered__one_small_public_file(
    lowered: Exported, exported: Exported, finished_run: Run, photos: Path
) -> None:
    assert list(lowered.path.parent.iterdir()) == [lowered.path]
    assert_nothing_private(lowered.path, photos.parent, finished_run.folder.parent, lowered.path.parent)
    model = onnx.load(lowered.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert lowered.path.stat().st_size < exported.path.stat().st_size


@pytest.mark.slow
def test_export_lowered__runs_on_the_oldest_runtime(lowered: Exported) -> None:
    python = os.environ.get("TL_OLDEST_PYTHON")
    if python is None or not Path(python).exists():
        pytest.skip("needs a venv with the oldest supported versions: make test sets TL_OLDEST_PYTHON")
    code = (
        "import onnxruntime, tl.runtime\n"
        "assert onnxruntime.__version__.startswith('1.18.'), onnxruntime.__version__\n"
        f"print(tl.runtime.run_selftest({str(lowered.path)!r}, device='cpu').max_abs_diff)"
    )
    command = [Path(python).absolute(), "-c", code]  # not resolved: the python of a venv is a symlink
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < lowered.contract.golden.tolerance[lowered.contract.precision]


@pytest.mark.slow
def test_export_lowered__the_same_seed_gives_the_same_graph(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A single method: which of several is selected depends on their speed, which varies on a busy machine.
    monkeypatch.setattr(precision_module, "INT8_WAYS", INT8_WAYS[:1])
    made = [export_lowered(finished_run, tmp_path / f"{i}.onnx", Silent(), INT8).path for i in range(2)]
    assert onnx.load(made[0]).graph == onnx.load(made[1]).graph
    other = export_lowered(finished_run, tmp_path / "other.onnx", Silent(), dataclasses.replace(INT8, seed=7))
    assert onnx.load(other.path).graph != onnx.load(made[0]).graph  # different images, different ranges


def test_export_lowered__too_little_agreement_leaves_no_file(finished_run: Run, tmp_path: Path) -> None:
    listener = Listener()
    never = dataclasses.replace(INT8, min_agreement=1.01)
    with pytest.raises(
        PrecisionError,
        match=r"int8 was rejected: .*100.0% \(6 of 6 .*speed [\d.]+ x .*required: 101.0%.*no file was written",
    ):
        export_lowered(finished_run, tmp_path / "out" / "m.onnx", listener, never)
    assert not (tmp_path / "out").exists()
    assert listener.tasks[-4:] == [*(f"int8, variant {i} of 3" for i in (1, 2, 3)), "comparing fp32"]


def test_export_lowered__no_faster_leaves_no_file(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "WON_ROUNDS", speed_module.ROUNDS + 1)  # more than all rounds
    strict = dataclasses.replace(FP16, keep_slower=False)
    with pytest.raises(PrecisionError, match=r"fp16 was rejected: .*required: faster than fp32 .*no file was written"):
        export_lowered(finished_run, tmp_path / "m.onnx", Silent(), strict)
    assert list(tmp_path.iterdir()) == []


def test_export_lowered__refusals_before_any_work(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.txt: expected a file name that ends in .onnx"):
        export_lowered(finished_run, tmp_path / "model.txt", Silent(), INT8)
    run = moved_run(finished_run, photos, tmp_path)
    for path in run.image_paths("train"):
        Path(path).unlink()
    with pytest.raises(DataError, match="training images no longer exist, but int8 ranges are calibrated on them"):
        export_lowered(run, tmp_path / "m.onnx", Silent(), INT8)
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(DataError, match="validation images no longer exist, but lower precision is compared on them"):
        export_lowered(run, tmp_path / "m.onnx", Silent(), FP16)
    assert not (tmp_path / "m.onnx").exists()


def test_lowering__bf16_is_openvino_only() -> None:
    for device in ("cpu", "cuda:1"):
        with pytest.raises(ConfigError, match=f"bf16 is computed by OpenVINO only, not on device '{device}'") as caught:
            Lowering("bf16", device=device)
        assert caught.value.options == ("device=openvino",)
    assert {Lowering("bf16", device=device).lower_device for device in ("auto", "openvino")} == {"openvino"}


@pytest.mark.skipif(openvino_version() is None, reason="the extra openvino is not installed")
def test_export_lowered__bf16_is_the_fp32_graph_and_a_record(finished_run: Run, tmp_path: Path) -> None:
    if not has_bf16():
        with pytest.raises(DeviceError, match="this processor has no bf16, so OpenVINO would use fp32"):
            export_lowered(finished_run, tmp_path / "m.onnx", Silent(), Lowering("bf16"))
        return
    # Agreement of a network that was trained for seconds may be low; whether it is kept is tested by hand above.
    lowering = Lowering("bf16", keep_slower=True, min_agreement=0.5)
    done = export_lowered(finished_run, tmp_path / "m.onnx", Silent(), lowering)
    types = {tensor.data_type for tensor in onnx.load(done.path).graph.initializer}
    assert not types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    found = done.contract.quantization
    assert found is not None
    assert (done.contract.precision, found.provider, found.calibration_images) == ("bf16", "OpenVINO", 0)
    assert found.method.startswith("bf16 inside OpenVINO, compared with onnxruntime on the CPU")
    assert run_selftest(done.path, device="cpu").tolerance == 1e-4  # computed in fp32 there, and as exact
    slow = run_selftest(done.path, device="openvino")
    assert (slow.precision, slow.tolerance) == ("bf16", 1e-1)


def test_compare__held_out_labels_change_where_those_of_seen_images_do_not() -> None:
    # The conversion halves the odds of the first class. Images that the network has seen (0.9) keep their labels;
    # held-out probabilities of 0.6 and 0.8 have odds of 1.5 and 4, which become 0.75 and 2.
    wanted = np.array([[0.9, 0.1], [0.9, 0.1]], np.float32)
    found = np.array([[4.5 / 5.5, 1 / 5.5]] * 2, np.float32)
    assert _compare(found, wanted, None)[0] == 1.0
    assert _compare(found, wanted, np.array([[0.6, 0.4], [0.8, 0.2]]))[0] == 0.5


def test_compare__by_hand() -> None:
    wanted = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [1, 0]], np.float32)
    found = np.array([[0.5, 0.5], [0.25, 0.75], [0.25, 0.75], [0.75, 0.25]], np.float32)
    assert _compare(found, wanted, None) == (0.75, 0.25)
    found[0] = np.nan  # its argmax would be class 0, as expected
    assert _compare(found, wanted, None) == (0.5, math.inf)


def check(lowering: Lowering, **changes: object) -> None:
    found = dataclasses.replace(FOUND, **changes)  # type: ignore[arg-type]
    trial = _Trial("way", onnx.ModelProto(), Path("x"), found.top1_agreement, found.max_abs_diff)
    _check_worth_keeping(found, trial, lowering)


def refused(lowering: Lowering, **changes: object) -> PrecisionError:
    with pytest.raises(PrecisionError) as refusal:
        check(lowering, **changes)
    return refusal.value


def test_check_worth_keeping__both_numbers_in_one_line_and_the_options() -> None:
    plain = Lowering("int8")
    check(plain)
    check(plain, top1_agreement=0.99)
    far = refused(plain, top1_agreement=0.9875)
    assert str(far) == (
        "int8 was rejected: top-1 agreement with fp32 98.8% (395 of 400 validation images: at least 97.1% with 95% "
        "confidence; probabilities differ by at most 0.2), speed 1.50 x fp32 (1.25 to 1.75 in 11 rounds) on "
        "CPUExecutionProvider (Pocket calculator); required: 99.0% agreement; no file was written"
    )
    assert far.options == ("precision=fp16", "min_agreement=0.987")
    slow = refused(plain, kept_slower=True, speedup=0.5)
    assert "speed 0.50 x" in str(slow)
    assert "required: faster than fp32 in at least 9 of 11 rounds; no file" in str(slow)
    assert slow.options == ("keep_slower",)
    both = refused(plain, kept_slower=True, top1_agreement=0.5)
    assert "required: 99.0% agreement and faster than fp32" in str(both)


def test_check_worth_keeping__keep_slower_forgives_speed_alone() -> None:
    kept = Lowering("fp16", keep_slower=True)
    check(kept, kept_slower=True)
    far = refused(kept, kept_slower=True, top1_agreement=0.5)
    assert far.options == ("min_agreement=0.5",)  # fp16 has no calibration images


def test_check_worth_keeping__numbers_that_are_none_are_never_close() -> None:
    assert refused(Lowering("fp16", min_agreement=0.0), max_abs_diff=math.inf).options == ()


def test_describe__includes_the_basis_of_the_figures() -> None:
    text = describe(dataclasses.replace(FOUND, images=6, top1_agreement=1.0))
    assert "100.0% (6 of 6 validation images: at least 61.0% with 95% confidence;" in text


def test_quantization__survives_the_contracts_json(int8: Exported) -> None:
    session = Session(int8.path, device="cpu", threads=1)
    assert session.contract is not None
    assert session.contract.quantization == int8.contract.quantization
    assert json.dumps(dataclasses.asdict(FOUND))
