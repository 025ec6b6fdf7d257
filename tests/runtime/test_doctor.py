from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import PIL
import pytest
import simplejpeg
from PIL import features

import tl
from tests.runtime.test_devices import pretend_wheels
from tl.runtime import devices, doctor
from tl.runtime.devices import Cores, usable_cores
from tl.runtime.doctor import Finding, examine
from tl.runtime.engines.onnxruntime import cuda_fault
from tl.runtime.session import Session

ROOT = Path(__file__).parents[2]


def finding(name: str) -> Finding:
    (found,) = [one for one in examine() if one.name == name]
    return found


def test_examine__this_machine() -> None:
    findings = {one.name: one for one in examine()}
    assert list(findings)[:5] == ["tl", "cores", "onnxruntime", "providers", "session cpu"]
    assert all(one.detail and "\n" not in one.detail for one in findings.values())
    assert tl.__version__ in findings["tl"].detail
    assert np.__version__ in findings["tl"].detail
    assert findings["cores"].facts["affinity"] == len(os.sched_getaffinity(0))
    assert findings["cores"].detail.startswith(f"{usable_cores()} usable: this process may run on ")
    assert PIL.__version__ in findings["pillow"].detail
    assert metadata.version("simplejpeg") in findings["simplejpeg"].detail


def test_examine__formats_that_detect_damage() -> None:
    damage = finding("damage")
    assert damage.ok is True
    assert damage.detail.startswith("found in PNG by checksums, in JPEG if data are missing")
    assert damage.detail.endswith("not always in TIFF, GIF, WebP, HEIC, AVIF, JPEG 2000, BMP, PNM")


def test_examine__decoders_that_accept_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "decode_image", lambda source, preprocessing: np.zeros((1, 1, 3), np.uint8))
    damage = finding("damage")
    assert damage.ok is False
    assert "a damaged PNG file is read as if it were sound" in damage.detail


def test_examine__facts_are_for_json() -> None:
    for one in examine():
        assert json.loads(json.dumps(one.facts)) == one.facts


def test_examine__a_session_really_runs() -> None:
    session = finding("session cpu")
    assert (session.ok, session.detail) == (True, "a tiny network runs on CPUExecutionProvider")
    assert session.facts == {"provider": "CPUExecutionProvider"}


def test_examine__a_session_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "run", lambda self, images, outputs: [np.array([[279.9]], np.float32)])
    session = finding("session cpu")
    assert session.ok is False
    assert "computes a wrong result for a tiny network: 279.9 instead of 280" in session.detail


def test_examine__leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert finding("session cpu").ok
    assert os.listdir(tmp_path) == []


def test_tiny_model__is_what_its_comment_says() -> None:
    model = onnx.load_from_string(base64.b64decode(doctor._TINY_MODEL))
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Cast", "Transpose", "Conv", "GlobalAveragePool", "Flatten", "MatMul"]
    assert model.opset_import[0].version == 18
    assert model.ir_version == 8
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    (result,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"images": image}
    )
    np.testing.assert_allclose(result, [[2 * (image.mean((1, 2)) @ [1, 2, 3]).item()]], rtol=1e-6)  # float32 sums


def test_examine__providers() -> None:
    providers = finding("providers")
    assert providers.facts["offered"] == ort.get_available_providers()
    assert "CPUExecutionProvider" in providers.detail


def test_examine__openvino_is_told_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    if doctor.openvino_version() is not None:
        found = finding("openvino")
        assert found.ok
        assert f"{doctor.openvino_version()}: a tiny network runs on OpenVINO" in found.detail
        assert found.facts["bf16"] == ("has bf16" in found.detail)
    monkeypatch.setattr(doctor, "openvino_version", lambda: None)
    missing = finding("openvino")
    assert (missing.ok, missing.detail) == (
        None,
        "not installed; for device openvino: pip install 'tl-toolkit[openvino]'",
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names what there is on Linux")
def test_examine__says_what_other_devices_lack() -> None:
    for device in ("tensorrt", "migraphx", "rocm"):
        found = finding(device)
        assert found.ok is None
        assert found.detail.endswith("(not proven by a test)")
        assert found.facts["usable"] == found.detail.startswith("can be tried")
    assert "coreml" not in {found.name for found in doctor.examine()}


def test_examine__decoding_says_what_it_measured() -> None:
    decoding = finding("decoding")
    assert decoding.ok
    assert decoding.detail.startswith("4000x3000 JPEG (12 megapixels, 2.")
    assert decoding.detail.endswith(" images/s on one core")
    assert decoding.facts["images_per_s"] > 0


@pytest.mark.parametrize(
    ("cores", "says"),
    [
        (Cores(64, 64, None, None), "64 usable: this process may run on 64 of 64, no cgroup quota"),
        (Cores(64, 16, 2.5, None), "3 usable: this process may run on 16 of 64, its cgroup quota is 2.5 cores"),
        (
            Cores(64, 64, None, 4),
            "64 usable: this process may run on 64 of 64, no cgroup quota, SLURM_CPUS_PER_TASK is 4, which is not "
            "enforced: set threads to 4 to respect it",
        ),
        (Cores(64, 4, None, 4), "4 usable: this process may run on 4 of 64, no cgroup quota, SLURM_CPUS_PER_TASK is 4"),
    ],
)
def test_examine__cores(monkeypatch: pytest.MonkeyPatch, cores: Cores, says: str) -> None:
    monkeypatch.setattr(doctor, "count_cores", lambda: cores)
    assert finding("cores").detail == says


def test_examine__libraries_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cuda_version", lambda: "13.0")
    monkeypatch.setattr(devices, "CUDA_LIBRARIES", {"13": ("libc.so.6", "libnowhere.so.1")})
    libraries = finding("libraries")
    assert libraries.ok is False
    assert libraries.detail == (
        "CUDA 13: found libc.so.6, missing libnowhere.so.1; to install them: pip install 'tl-toolkit[gpu]'"
    )
    assert libraries.facts == {"libc.so.6": True, "libnowhere.so.1": False}
    monkeypatch.setattr(devices, "CUDA_LIBRARIES", {"13": ("libc.so.6",)})
    assert finding("libraries") == Finding("libraries", True, "CUDA 13: found libc.so.6", {"libc.so.6": True})


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_examine__libraries_of_the_cpu_wheel_are_a_fact() -> None:
    libraries = finding("libraries")
    assert libraries.ok is None
    assert libraries.detail.startswith("not required by the CPU wheel; CUDA 13: ")
    assert "libcudnn.so.9" in libraries.facts


def test_examine__driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "driver_fault", lambda: None)
    monkeypatch.setattr(doctor, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(doctor, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(doctor, "graphics_cards", lambda: ["NVIDIA RTX A4000"])
    assert finding("driver").detail == "NVIDIA 580.65.06, supports CUDA up to 13.0, NVIDIA RTX A4000"


def test_examine__no_driver_is_a_fault_with_the_gpu_wheel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "driver_fault", lambda: "no NVIDIA driver")
    pretend_wheels(monkeypatch, onnxruntime="1.31.1")
    assert finding("driver").ok is None
    pretend_wheels(monkeypatch, onnxruntime_gpu="1.31.1")
    assert finding("driver").ok is False


def test_examine__one_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.31.1")
    expected = Finding("onnxruntime", True, "onnxruntime 1.31.1", {"onnxruntime": "1.31.1"})
    assert finding("onnxruntime") == expected


def test_examine__both_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.30.0")
    both = finding("onnxruntime")
    assert both.ok is False
    assert both.detail.startswith(
        "onnxruntime 1.31.1, onnxruntime-gpu 1.30.0: CUDA does not work if both are installed: pip uninstall"
    )
    assert finding("cuda").ok is False


def test_examine__no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch)
    assert finding("onnxruntime").ok is False
    assert "pip install" in finding("onnxruntime").detail


def test_examine__no_cuda_without_its_wheel_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.31.1")
    assert finding("cuda").ok is None


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_examine__gpu_wheel_without_cuda_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime_gpu="1.31.1")
    assert finding("cuda").ok is False
    assert "built without CUDA" in finding("cuda").detail


@pytest.mark.skipif(cuda_fault() is not None, reason="needs a GPU and onnxruntime-gpu")
def test_examine__cuda_really_loads() -> None:
    assert finding("session cuda").detail.endswith("CUDAExecutionProvider")


def test_examine__pillow_without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    real = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and real(name))
    assert finding("pillow").ok is False
    assert "lacks avif" in finding("pillow").detail


@pytest.mark.parametrize("wheel", ["onnxruntime", "onnxruntime-gpu"])
def test_examine__onnxruntime_that_cannot_be_imported(wheel: str) -> None:
    """A missing or broken onnxruntime is a common reason to run `tl doctor`."""
    code = f"""
import sys
from importlib import metadata
real = metadata.version
def version(name):
    if name == {wheel!r}: return "1.0"
    if name.startswith("onnxruntime"): raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
sys.modules["onnxruntime"] = None
from tl.runtime.doctor import examine
for one in examine(): print(one.name, one.ok, one.detail)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "session cpu False onnxruntime cannot be imported" in ran.stdout


def test_simplejpeg__the_decoder_is_strict() -> None:
    """`doctor` reports strict JPEG decoding, so simplejpeg must reject half an image."""
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(b"\xff\xd8\xff", strict=True)
