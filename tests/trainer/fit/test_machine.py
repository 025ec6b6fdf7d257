from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tl.errors import DeviceError
from tl.runtime.devices import usable_cores
from tl.trainer.fit.machine import Machine, build_machine, describe_torch, keep_freed_memory

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a usable GPU")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_build_machine__cpu_is_plain_fp32(precision: str) -> None:
    machine = build_machine("cpu", precision, 1)  # type: ignore[arg-type]
    assert machine == Machine(torch.device("cpu"), None, 1)
    assert torch.get_num_threads() == 1
    assert machine.name == "CPU, 1 threads, fp32"


def test_build_machine__all_usable_cores_by_default() -> None:
    assert build_machine("cpu", "auto", None).threads == usable_cores() == torch.get_num_threads()


@without_gpu
def test_build_machine__auto_is_the_cpu_without_a_gpu() -> None:
    assert build_machine("auto", "auto", 1).device.type == "cpu"


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_build_machine__cuda_that_is_not_there(device: str) -> None:
    with pytest.raises(DeviceError, match=f"device '{device}' cannot be used for training: .+"):
        build_machine(device, "auto", 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu", ""])
def test_build_machine__unknown_device_says_what_is_expected(device: str) -> None:
    # As in tl.runtime.session: a missing driver is not the cause.
    with pytest.raises(DeviceError, match=f"unknown device '{device}': expected auto, cpu, cuda or cuda:N"):
        build_machine(device, "auto", 1)


def test_build_machine__mps_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    with pytest.raises(DeviceError, match=r"device 'mps' cannot be used for training: torch \S+ was built without it"):
        build_machine("mps", "auto", 1)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="device 'mps' cannot be used for training: it needs an Apple GPU"):
        build_machine("mps", "auto", 1)


def test_build_machine__mps_is_fp32_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for a Mac: no tensor is created on the device.
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    machine = build_machine("mps", "auto", 1)
    assert machine == Machine(torch.device("mps"), None, 1)
    assert (machine.name, machine.sum_dtype) == ("Apple GPU (mps, unproven), fp32", torch.float32)
    assert build_machine("cpu", "auto", 1).sum_dtype == torch.float64
    with pytest.raises(DeviceError, match="precision bf16 requires CUDA; training on mps uses fp32"):
        build_machine("mps", "bf16", 1)
    with pytest.raises(DeviceError, match="unknown device 'mps:0'"):
        build_machine("mps:0", "auto", 1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_build_machine__half_precision_needs_cuda(precision: str) -> None:
    with pytest.raises(DeviceError, match=f"precision {precision} requires CUDA"):
        build_machine("cpu", precision, 1)  # type: ignore[arg-type]


def test_machine__autocast_is_off_in_fp32_and_on_otherwise() -> None:
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with Machine(torch.device("cpu"), None, 1).autocast():
        assert (left @ right).dtype == torch.float32
    with Machine(torch.device("cpu"), torch.bfloat16, 1).autocast():
        assert (left @ right).dtype == torch.bfloat16


def test_machine__name_says_the_arithmetic() -> None:
    assert Machine(torch.device("cpu"), torch.bfloat16, 3).name == "CPU, 3 threads, bfloat16"


def test_describe_torch__one_line() -> None:
    line = describe_torch()
    assert line.startswith(f"torch {torch.__version__}, torchvision ")
    assert "\n" not in line


def test_keep_freed_memory__can_be_called_again() -> None:
    keep_freed_memory()
    keep_freed_memory()


@pytest.mark.slow
def test_import__keeps_torchs_threads() -> None:
    code = (
        "import torch; before = torch.get_num_threads(), torch.get_rng_state().sum().item()\n"
        "import tl.trainer.train, tl.exporter.export\n"
        "assert before == (torch.get_num_threads(), torch.get_rng_state().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@with_gpu
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_build_machine__cuda_precision(precision: str, dtype: torch.dtype | None) -> None:
    machine = build_machine("cuda", precision, 1)  # type: ignore[arg-type]
    assert (machine.device.type, machine.autocast_dtype) == ("cuda", dtype)


@with_gpu
def test_build_machine__cuda_number_too_high() -> None:
    with pytest.raises(DeviceError, match="this machine has"):
        build_machine("cuda:99", "auto", 1)
