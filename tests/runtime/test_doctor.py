from __future__ import annotations

import base64
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime as ort
import PIL
import pytest
import simplejpeg
from PIL import features

import tl
from tests.runtime.test_devices import pretend_wheels
from tl.runtime import doctor
from tl.runtime.doctor import Finding, examine
from tl.runtime.session import cuda_fault

ROOT = Path(__file__).parents[2]


def finding(name: str) -> Finding:
    (found,) = [one for one in examine() if one.name == name]
    return found


def test_examine__this_machine() -> None:
    findings = {one.name: one for one in examine()}
    assert list(findings)[:4] == ["tl", "cores", "onnxruntime", "session cpu"]
    assert all(one.detail and "\n" not in one.detail for one in findings.values())
    assert tl.__version__ in findings["tl"].detail
    assert findings["cores"].detail == f"{len(os.sched_getaffinity(0))} usable"
    assert PIL.__version__ in findings["pillow"].detail
    assert metadata.version("simplejpeg") in findings["simplejpeg"].detail


def test_examine__a_session_really_loads() -> None:
    assert finding("session cpu") == Finding("session cpu", True, "a session loads on CPUExecutionProvider")


def test_examine__leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert finding("session cpu").ok
    assert os.listdir(tmp_path) == []


def test_tiny_model__is_what_its_comment_says() -> None:
    model = onnx.load_from_string(base64.b64decode(doctor._TINY_MODEL))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    assert model.opset_import[0].version == 18
    assert model.ir_version <= 10


def test_examine__one_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.31.1")
    assert finding("onnxruntime") == Finding("onnxruntime", True, "onnxruntime 1.31.1")


def test_examine__both_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.30.0")
    both = finding("onnxruntime")
    assert both.ok is False
    assert both.detail.startswith("onnxruntime 1.31.1, onnxruntime-gpu 1.30.0: together they break CUDA: pip uninstall")
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
    """A missing or broken onnxruntime is what people call the doctor for."""
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
    """`doctor` calls it strict JPEG decoding: it must refuse half a picture."""
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(b"\xff\xd8\xff", strict=True)
