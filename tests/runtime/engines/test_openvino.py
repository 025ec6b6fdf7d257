from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.models import COLORS, color_probabilities, make_contract, make_model, solid
from tests.runtime.images import noise
from tests.runtime.model_file.test_selftest import endless
from tl.errors import DeviceError, ModelFileError
from tl.runtime import load, run_selftest
from tl.runtime.engines import openvino as module
from tl.runtime.model_file.contract import Quantization
from tl.runtime.providers import OPENVINO
from tl.runtime.session import Session

ROOT = Path(__file__).resolve().parents[3]
ATOL = 1e-6  # as in test_session: float32 softmax in the graph against float64 by hand
MEASURED = Quantization(
    **{"method": "bf16 inside OpenVINO", "calibration_images": 0, "seed": 0, "images": 40, "top1_agreement": 1.0},
    **{"max_abs_diff": 0.01, "speedup": 1.8, "slowest": 1.7, "fastest": 1.9, "rounds": 11, "faster_rounds": 11},
    **{"provider": OPENVINO, "processor": "x", "threads": 2, "batch_size": 1, "kept_slower": False},
)


pytestmark = pytest.mark.skipif(module.openvino_version() is None, reason="the extra openvino is not installed")


def has_bf16() -> bool:
    return module.openvino_version() is not None and module.has_bf16()


needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")


def test_session__openvino_agrees_by_hand(color_model: Path) -> None:
    session = Session(color_model, device="openvino", threads=1)
    assert (session.provider, session.precision, session.fault) == (OPENVINO, "fp32", None)
    assert session.contract == make_contract()
    for count in (1, 5, 2, 1):
        images = np.stack([noise(8, 8, seed) for seed in range(count)])
        (found,) = session.run(images, ["probabilities"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.stack([color_probabilities(image) for image in images]), atol=ATOL)


def test_session__fp32_is_what_openvino_was_told(color_model: Path) -> None:
    engine = module.OpenVino(str(color_model), 1, bf16=False)
    (pool,) = engine._compiled.values()
    compiled = pool._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


@pytest.mark.parametrize("threads", [1, 2])
def test_run__many_callers(color_model: Path, threads: int) -> None:
    session = Session(color_model, device="openvino", threads=threads)
    images = [noise(8, 8, seed) for seed in range(80)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda image: session.run(image[None], ["probabilities"])[0][0], images))
    np.testing.assert_allclose(results, [color_probabilities(image) for image in images], atol=ATOL)


def test_run__results_outlive_the_next_run(color_model: Path) -> None:
    session = Session(color_model, device="openvino", threads=1)
    first = session.run(solid((255, 0, 0))[None], ["probabilities"])[0]
    kept = first.copy()
    session.run(solid((0, 0, 255))[None], ["probabilities"])
    np.testing.assert_array_equal(first, kept)


def test_run__arrays_of_any_layout(color_model: Path) -> None:
    session = Session(color_model, device="openvino", threads=1)
    image = noise(8, 8, 3)
    read_only = np.frombuffer(image.tobytes(), np.uint8).reshape(1, 8, 8, 3)
    strided = np.ascontiguousarray(image[:, ::-1])[:, ::-1][None]
    for batch in (read_only, strided):
        (found,) = session.run(batch, ["probabilities"])
        np.testing.assert_allclose(found[0], color_probabilities(image), atol=ATOL)


def test_run__a_wrong_size_is_one_line(color_model: Path) -> None:
    session = Session(color_model, device="openvino", threads=1)
    for count in (1, 2):
        with pytest.raises(DeviceError, match="openvino failed on OpenVINO: ") as caught:
            session.run(np.zeros((count, 9, 8, 3), np.uint8), ["probabilities"])
        assert "\n" not in str(caught.value)


def test_session__an_operator_that_openvino_lacks(color_model: Path, tmp_path: Path) -> None:
    model = onnx.load(color_model)
    model.graph.node.append(helper.make_node("Det", ["logits"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeviceError) as caught:
        Session(path, device="openvino")
    assert str(caught.value) == f"{path}: OpenVINO cannot run the operators Det: use device cpu"


def test_session__a_loop_could_not_be_ended(tmp_path: Path) -> None:
    path = endless(tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match="OpenVINO cannot end the operators Loop of an endless model: use device cpu"):
        run_selftest(path, device="openvino", max_seconds=1)


def test_session__reads_no_contract_from_another_file(color_model: Path, tmp_path: Path) -> None:
    path = make_model(tmp_path / "plain.onnx", contract=None)
    assert Session(path, device="openvino", require_contract=False).contract is None
    with pytest.raises(ModelFileError, match="not a tl model file"):
        Session(path, device="openvino")


def test_load__predicts_as_on_the_cpu(color_model: Path) -> None:
    images = [noise(8, 8, seed) for seed in range(9)]
    with load(color_model, device="openvino", threads=2) as fast, load(color_model, device="cpu") as plain:
        for one, other in zip(fast.predict_iter(images), plain.predict_iter(images), strict=True):
            assert one.label == other.label  # type: ignore[union-attr]
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=ATOL)  # type: ignore[union-attr]


def test_run_selftest__golden_samples(color_model: Path) -> None:
    result = run_selftest(color_model, device="openvino")
    assert (result.provider, result.precision, result.tolerance) == (OPENVINO, "fp32", 1e-4)


# --- bf16


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """A file whose contract says that bf16 was compared with fp32."""
    plain = make_contract()
    golden = dataclasses.replace(plain.golden, tolerance={"fp32": 1e-4, "bf16": 1e-1})
    contract = dataclasses.replace(plain, precision="bf16", quantization=MEASURED, golden=golden)
    return make_model(tmp_path / "bf16.onnx", COLORS, contract=contract)


def test_session__bf16_stays_fp32_elsewhere_and_on_request(allowed: Path) -> None:
    image = noise(8, 8, 1)
    for options in ({"device": "cpu"}, {"device": "openvino", "precision": "fp32"}):
        session = Session(allowed, threads=1, **options)  # type: ignore[arg-type]
        assert session.precision == "fp32"
        (found,) = session.run(image[None], ["probabilities"])
        np.testing.assert_allclose(found[0], color_probabilities(image), atol=ATOL)
    assert run_selftest(allowed, device="cpu").tolerance == 1e-4


@needs_bf16
def test_session__bf16_only_with_the_contract(allowed: Path, color_model: Path) -> None:
    assert Session(allowed, device="openvino").precision == "bf16"
    assert Session(color_model, device="openvino").precision == "fp32"
    result = run_selftest(allowed, device="openvino")
    assert (result.precision, result.tolerance) == ("bf16", 1e-1)


def test_session__bf16_without_a_processor_that_has_it(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.import_openvino()

    class OldCore(real.Core):  # type: ignore[misc, name-defined]
        def get_property(self, *arguments: object) -> object:
            return ["FP32"] if arguments[1:] == ("OPTIMIZATION_CAPABILITIES",) else super().get_property(*arguments)

    old = OldCore()
    monkeypatch.setattr(module, "_core", lambda: old)
    session = Session(allowed, device="openvino")
    assert session.precision == "fp32"
    (found,) = session.run(noise(8, 8, 1)[None], ["probabilities"])
    np.testing.assert_allclose(found[0], color_probabilities(noise(8, 8, 1)), atol=ATOL)


# --- manners


def test_import_openvino__reports_to_nobody(color_model: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, warnings\n"
        "from tl.runtime.session import Session\n"
        "before = list(warnings.filters), dict(os.environ)\n"
        f"Session({str(color_model)!r}, device='openvino')\n"
        "assert 'openvino' in sys.modules and 'torch' not in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "assert (list(warnings.filters), dict(os.environ)) == before\n"
    )
    home = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=home)
    assert not (tmp_path / "intel").exists()


def test_session__signals_after_another_thread_dropped_it(color_model: Path) -> None:
    code = (
        "import gc, signal, subprocess, sys, threading\n"
        "from tl.runtime.session import Session\n"
        "signal.signal(signal.SIGCHLD, lambda *given: None)\n"  # as torch's DataLoader does
        f"sessions = [Session({str(color_model)!r}, device='openvino')]\n"
        "dropping = threading.Thread(target=lambda: (sessions.clear(), gc.collect()))\n"
        "dropping.start()\n"
        "dropping.join()\n"
        "subprocess.run([sys.executable, '-c', ''], check=True)\n"
    )
    home = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=home).returncode == 0
