"""Why CUDA can or cannot be used by onnxruntime on this machine, in words a user can act on.

Knows installed packages, shared libraries and the driver. Does not import onnxruntime (`session` does) or torch.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path

from tl.errors import DeviceError

CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"


def _libraries(names: str) -> tuple[str, ...]:
    return tuple(f"lib{name}" for name in names.split())


# Libraries that onnxruntime's CUDA provider needs, by CUDA major version.
# Source: readelf -d libonnxruntime_providers_cuda.so of onnxruntime-gpu 1.31; cuFFT and cuDNN are opened later.
CUDA_LIBRARIES = {
    "13": _libraries("cudart.so.13 cublas.so.13 cublasLt.so.13 curand.so.10 cufft.so.12 cudnn.so.9"),
    "12": _libraries("cudart.so.12 cublas.so.12 cublasLt.so.12 curand.so.10 cufft.so.11 cudnn.so.9"),
}


def installed_wheels() -> dict[str, str]:
    """The onnxruntime distributions installed here: name -> version."""
    found = {}
    for name in (CPU_WHEEL, GPU_WHEEL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def parse_device(device: str) -> tuple[str, int]:
    """Split auto, cpu, cuda or cuda:N into kind and index. Raises `DeviceError`."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in device and (kind != "cuda" or not index.isdecimal())):
        raise DeviceError(f"unknown device {device!r}: expected auto, cpu, cuda or cuda:N")
    return kind, int(index or 0)


def wheel_fault() -> str | None:
    """What is wrong with the installed onnxruntime wheels for CUDA, or None."""
    wheels = installed_wheels()
    if len(wheels) == 2:
        return (
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'tl-toolkit[gpu]'"
        )
    if not wheels:
        return "no onnxruntime is installed: pip install 'tl-toolkit[gpu]'"
    if CPU_WHEEL in wheels:
        return (
            "the CPU wheel of onnxruntime is installed: "
            "pip uninstall -y onnxruntime, then pip install 'tl-toolkit[gpu]'"
        )
    return None


def driver_fault() -> str | None:
    """What is wrong with the NVIDIA driver, or None where nothing is known to be."""
    if not sys.platform.startswith("linux"):  # elsewhere the driver's files have other names
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not found (is there an NVIDIA GPU, and its driver installed?)"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "the NVIDIA driver is installed but sees no GPU (no /dev/nvidia0; in a container, start it with GPUs)"
    return None


def library_fault(cuda_version: str) -> str | None:
    """Which CUDA or cuDNN libraries cannot be loaded, or None. `cuda_version`: what onnxruntime was built for."""
    if not sys.platform.startswith("linux"):
        return None
    missing = [name for name in CUDA_LIBRARIES.get(cuda_version.split(".")[0], ()) if not _loads(name)]
    if not missing:
        return None
    return f"missing libraries: {', '.join(missing)}; pip install 'tl-toolkit[gpu]' brings them"


def usable_cores() -> int:
    """CPU cores this process may use (affinity and Slurm cpusets respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
