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
from tl.runtime.devices import driver_fault, parse_device, usable_cores
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
    def name(self) -> str:
        """Device and precision, for the log."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {self.threads} threads"
        return f"{kind}, {'fp32' if self.autocast_dtype is None else str(self.autocast_dtype).removeprefix('torch.')}"


def build_machine(device: str, precision: Precision, threads: int | None) -> Machine:
    """Choose device and precision. Raises `DeviceError` if CUDA is requested but unavailable."""
    kind, index = parse_device(device)
    count = threads or max(1, usable_cores() // processes_here())
    torch.set_num_threads(count)
    if kind != "cpu" and torch.cuda.is_available():
        if index >= torch.cuda.device_count():
            raise DeviceError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(index)  # pinned memory and GPU queries use the current device
        torch.backends.cudnn.benchmark = True  # batches have one size: the kernel search pays off immediately
        keep_freed_memory()  # for the augmentation workers, which are forked
        return Machine(torch.device("cuda", index), _cuda_dtype(precision), count)
    if kind == "cuda":
        raise DeviceError(f"device {device!r} cannot be used for training: {_torch_cuda_fault()}")
    if precision not in ("auto", "fp32"):
        raise DeviceError(f"precision {precision} requires CUDA; training on the CPU uses fp32")
    keep_freed_memory()
    return Machine(torch.device("cpu"), None, count)


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
