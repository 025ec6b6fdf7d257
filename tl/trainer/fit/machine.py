"""The training hardware settings: device, threads, precision, memory allocator.

Depends on torch only, not on networks or data.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from tl.errors import DeviceError
from tl.runtime.devices import driver_fault, usable_cores
from tl.trainer.config import Precision

# Source: mallopt(3), <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Machine:
    """The device to train on and its settings. `autocast_dtype` is None for plain fp32."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    threads: int

    def autocast(self) -> AbstractContextManager[None]:
        """Context manager for mixed precision in the forward pass and the loss."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    @property
    def sum_dtype(self) -> torch.dtype:
        """The type for sums over an epoch: the widest that the device has."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def name(self) -> str:
        """Device and precision, for the log."""
        kind = {"cpu": f"CPU, {self.threads} threads", "mps": "Apple GPU (mps, unproven)"}.get(self.device.type)
        kind = kind or torch.cuda.get_device_name(self.device)
        return f"{kind}, {'fp32' if self.autocast_dtype is None else str(self.autocast_dtype).removeprefix('torch.')}"


def build_machine(device: str, precision: Precision, threads: int | None) -> Machine:
    """Choose device and precision. Raises `DeviceError` if a requested device is unavailable.

    "auto" takes CUDA or the CPU, never mps, on which training has not been proven.
    """
    kind, index = _parse_device(device)
    count = threads or max(1, usable_cores() // processes_here())
    torch.set_num_threads(count)
    if kind == "mps":
        return _build_mps(precision, count)
    if kind != "cpu" and torch.cuda.is_available():
        if index >= torch.cuda.device_count():
            raise DeviceError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(index)  # pinned memory and GPU queries use the current device
        torch.backends.cudnn.benchmark = True  # batches have one size: the kernel search pays off immediately
        keep_freed_memory()  # for the augmentation workers, which are forked
        return Machine(torch.device("cuda", index), _cuda_dtype(precision), count)
    if kind == "cuda":
        raise DeviceError(f"device {device!r} cannot be used for training: {_torch_cuda_fault()}")
    _check_fp32(precision, "the CPU")
    keep_freed_memory()
    return Machine(torch.device("cpu"), None, count)


def _parse_device(device: str) -> tuple[str, int]:
    """Split auto, cpu, cuda, cuda:N or mps into kind and index. Raises `DeviceError`."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (":" in device and (kind != "cuda" or not index.isdecimal())):
        raise DeviceError(f"unknown device {device!r}: expected auto, cpu, cuda or cuda:N, or mps")
    return kind, int(index or 0)


def _build_mps(precision: Precision, threads: int) -> Machine:
    """The GPU of an Apple computer, in fp32. Unproven: no test has run on one.

    Known gaps: no float64 (see `Machine.sum_dtype`), no deterministic mode, and operators without a Metal kernel, for
    which torch names the variable PYTORCH_ENABLE_MPS_FALLBACK. Mixed precision is left out until it has been measured.
    Source: torch's notes on the MPS backend.
    """
    if not torch.backends.mps.is_built():
        raise DeviceError(f"device 'mps' cannot be used for training: torch {torch.__version__} was built without it")
    if not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' cannot be used for training: it needs an Apple GPU and macOS 14 or later")
    _check_fp32(precision, "mps")
    return Machine(torch.device("mps"), None, threads)


def _check_fp32(precision: Precision, where: str) -> None:
    if precision not in ("auto", "fp32"):
        raise DeviceError(f"precision {precision} requires CUDA; training on {where} uses fp32")


def processes_here() -> int:
    """Number of training processes that share this machine's cores and memory. Source: torchrun's environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def describe_torch() -> str:
    """One line on torch, torchvision and the available GPU."""
    import torchvision

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU ({_torch_cuda_fault()})"
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, {gpu}"


def keep_freed_memory() -> None:
    """Keep glibc from returning large freed tensors to the kernel after every step.

    Without this, half the time of a MobileNetV2 training step on the CPU is spent on page faults, and augmentation
    workers are 10% slower. Has no effect without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _cuda_dtype(precision: Precision) -> torch.dtype | None:
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _torch_cuda_fault() -> str:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return driver_fault() or f"torch {torch.__version__} sees no usable GPU (its driver may be too old)"
