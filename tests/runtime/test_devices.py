from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tl.runtime import devices

ROOT = Path(__file__).parents[2]


def pretend_wheels(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Fake the metadata of other combinations of wheels, which cannot be installed together here."""
    real = metadata.version

    def version(name: str) -> str:
        if not name.startswith("onnxruntime"):
            return real(name)
        if name.replace("-", "_") in versions:
            return versions[name.replace("-", "_")]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def pretend_libraries(monkeypatch: pytest.MonkeyPatch, is_there: Callable[[str], bool]) -> None:
    def load(name: str) -> object:
        if not is_there(name):
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_installed_wheels__of_this_environment() -> None:
    import onnxruntime

    assert onnxruntime.__version__ in devices.installed_wheels().values()


def test_wheel_fault__both_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    assert devices.installed_wheels() == {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    fault = devices.wheel_fault()
    assert fault is not None
    assert "overwrite each other" in fault
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in fault


def test_wheel_fault__cpu_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime="1.18.1")
    assert "the CPU wheel of onnxruntime is installed" in str(devices.wheel_fault())


def test_wheel_fault__none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch)
    assert devices.installed_wheels() == {}
    assert "no onnxruntime is installed" in str(devices.wheel_fault())


def test_wheel_fault__gpu_wheel_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_wheels(monkeypatch, onnxruntime_gpu="1.31.1")
    assert devices.wheel_fault() is None


def test_driver_fault__no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_libraries(monkeypatch, lambda name: False)
    assert "no NVIDIA driver" in str(devices.driver_fault())


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists(), reason="there is a GPU here")
def test_driver_fault__driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_libraries(monkeypatch, lambda name: True)
    assert "finds no GPU" in str(devices.driver_fault())


@pytest.mark.parametrize(("version", "cudnn", "cublas"), [("13.0", "9", "13"), ("12.8", "9", "12"), ("12", "9", "12")])
def test_library_fault__names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, version: str, cudnn: str, cublas: str
) -> None:
    pretend_libraries(monkeypatch, lambda name: "cudnn" not in name and "cublas." not in name)
    fault = str(devices.library_fault(version))
    assert fault.startswith(f"missing libraries: libcublas.so.{cublas}, libcudnn.so.{cudnn};")
    assert "pip install" in fault


def test_library_fault__everything_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    pretend_libraries(monkeypatch, lambda name: not asked.append(name))  # type: ignore[func-returns-value]
    assert devices.library_fault("13.1") is None
    assert asked == list(devices.CUDA_LIBRARIES["13"])


@pytest.mark.parametrize("version", ["", "99.1"])
def test_library_fault__unknown_version_is_not_judged(version: str) -> None:
    assert devices.library_fault(version) is None


def test_library_fault__names_what_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CUDA_LIBRARIES", {"13": ("libc.so.6", "libnowhere.so.1")})
    assert str(devices.library_fault("13.0")).startswith("missing libraries: libnowhere.so.1;")


class Driver:
    """The parts of libcuda.so.1 in use. Source: CUDA driver API, cuDriverGetVersion: 1000 major + 10 minor."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, pointer: Any) -> int:  # noqa: N802
        pointer._obj.value = self.version
        return self.status


@pytest.mark.parametrize(
    ("driver", "expected"), [(Driver(12080), (12, 8)), (Driver(13000), (13, 0)), (Driver(0, 100), None)]
)
def test_driver_cuda__from_its_number(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, expected: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert devices.driver_cuda() == expected


def test_driver_cuda__no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_libraries(monkeypatch, lambda name: False)
    assert devices.driver_cuda() is None
    assert devices.driver_age_fault("13.0") is None  # `driver_fault` reports a missing driver


@pytest.mark.parametrize(("wanted", "is_fault"), [("13.0", True), ("12.9", False), ("11.8", False), ("", False)])
def test_driver_age_fault__majors_are_compared(monkeypatch: pytest.MonkeyPatch, wanted: str, is_fault: bool) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(12040))
    fault = devices.driver_age_fault(wanted)
    assert (fault is not None) == is_fault
    if is_fault:
        assert str(fault).startswith(
            "the NVIDIA driver supports CUDA up to 12.4, but this onnxruntime-gpu requires CUDA 13"
        )


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build  (builder@host)",
    ],
)
def test_driver_version__and_cards_from_the_kernel_module(tmp_path: Path, line: str) -> None:
    assert devices.driver_version(tmp_path) is None
    assert devices.graphics_cards(tmp_path) == []
    card = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    card.parent.mkdir(parents=True)
    card.write_text("Model: \t\t NVIDIA RTX A4000\nIRQ:   \t\t 107\n")
    (tmp_path / "proc/driver/nvidia/version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
    assert devices.driver_version(tmp_path) in ("535.104.05", "580.65")
    assert devices.graphics_cards(tmp_path) == ["NVIDIA RTX A4000"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux's CPU affinity")
def test_usable_cores__respects_affinity() -> None:
    assert devices.usable_cores() <= len(os.sched_getaffinity(0))
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from tl.runtime.devices import usable_cores; print(usable_cores())"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"
