"""Compute resources of this machine: usable CPU cores, and why onnxruntime can or cannot use CUDA, with the fix.

Reads CPU affinity, cgroup quotas, installed packages, shared libraries and the driver. Imports neither onnxruntime
(`engines.onnxruntime` does) nor torch.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tl.runtime.providers import CPU_WHEEL, GPU_WHEEL, WHEELS


@dataclass(frozen=True)
class Cores:
    """CPU core counts. `machine`: all cores. `affinity`: cores this process may run on.

    `quota`: CPU time granted by the cgroup, in cores, or None. `slurm`: SLURM_CPUS_PER_TASK, or None.
    """

    machine: int
    affinity: int
    quota: float | None
    slurm: int | None

    @property
    def usable(self) -> int:
        """Number of threads to start. More threads than the quota allows would only be throttled."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, math.ceil(self.quota)))


def count_cores(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Cores:
    """Count cores from all sources. `root`: root of the file system."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    return Cores(machine, affinity, cgroup_quota(root), int(slurm) if slurm.isdecimal() else None)


def processor_model() -> str:
    """Return the CPU model, "unknown" if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine() or "unknown"


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of this process's cgroup and its ancestors, in cores; None without one.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (version 1).
    """
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        here = mount / path.lstrip("/")
        # In a container, the path may be the host's; then only the mount point itself exists.
        quotas += [
            quota for folder in (here, *here.parents) if folder.is_relative_to(mount) for quota in _quota(folder)
        ]
    return min(quotas, default=None)


def _quota(folder: Path) -> list[float]:
    """Return the quota of one cgroup: [cores] or []."""
    words = _read(folder / "cpu.max").split() or [
        *_read(folder / "cpu.cfs_quota_us").split(),
        *_read(folder / "cpu.cfs_period_us").split(),
    ]
    if len(words) != 2 or words[0] in ("max", "-1"):
        return []
    return [int(words[0]) / int(words[1])]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _libraries(names: str) -> tuple[str, ...]:
    return tuple(f"lib{name}" for name in names.split())


# Libraries that onnxruntime's CUDA provider needs, by CUDA major version.
# Source: readelf -d libonnxruntime_providers_cuda.so of onnxruntime-gpu 1.31; cuFFT and cuDNN are loaded later.
CUDA_LIBRARIES = {
    "13": _libraries("cudart.so.13 cublas.so.13 cublasLt.so.13 curand.so.10 cufft.so.12 cudnn.so.9"),
    "12": _libraries("cudart.so.12 cublas.so.12 cublasLt.so.12 curand.so.10 cufft.so.11 cudnn.so.9"),
}


def installed_wheels() -> dict[str, str]:
    """Return the onnxruntime distributions installed here: name -> version."""
    from importlib import metadata  # slow to import, and rarely needed

    found = {}
    for name in WHEELS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wheel_fault() -> str | None:
    """Return what prevents CUDA in the installed onnxruntime wheels, or None."""
    wheels = installed_wheels()
    if len(wheels) > 1:
        return (
            f"both {' and '.join(wheels)} are installed and overwrite each other: "
            f"pip uninstall -y {' '.join(wheels)}, then pip install 'tl-toolkit[gpu]'"
        )
    if not wheels:
        return "no onnxruntime is installed: pip install 'tl-toolkit[gpu]'"
    if CPU_WHEEL in wheels:
        return (
            "the CPU wheel of onnxruntime is installed: "
            "pip uninstall -y onnxruntime, then pip install 'tl-toolkit[gpu]'"
        )
    if GPU_WHEEL not in wheels:
        (other,) = wheels
        return f"{other} has no CUDA: pip uninstall -y {other}, then pip install 'tl-toolkit[gpu]'"
    return None


def driver_fault() -> str | None:
    """Return what is wrong with the NVIDIA driver, or None if no problem is found."""
    if not sys.platform.startswith("linux"):  # the driver's files have other names on other systems
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 was not found (is an NVIDIA GPU present, and its driver installed?)"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "the NVIDIA driver is installed but finds no GPU (no /dev/nvidia0; start containers with GPU access)"
    return None


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the NVIDIA driver supports, as (major, minor); None without a driver."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_age_fault(cuda_version: str) -> str | None:
    """Return an error text if the driver is too old for onnxruntime's CUDA, else None. Minor versions may differ.

    Source: CUDA Compatibility guide, "minor version compatibility".
    """
    found, wanted = driver_cuda(), cuda_version.split(".")[0]
    if found is None or not wanted.isdecimal() or found[0] >= int(wanted):
        return None
    return (
        f"the NVIDIA driver supports CUDA up to {found[0]}.{found[1]}, but this onnxruntime-gpu requires "
        f"CUDA {wanted}: "
        "update the driver, or install an older onnxruntime-gpu"
    )


def graphics_cards(root: Path = Path("/")) -> list[str]:
    """Return the models of the NVIDIA GPUs that the driver reports. `root`: root of the file system."""
    models = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


def has_nvidia_gpu() -> bool:
    """Return whether this machine is known to have an NVIDIA GPU, usable or not. Only Linux tells."""
    return sys.platform.startswith("linux") and (bool(graphics_cards()) or driver_fault() is None)


def driver_version(root: Path = Path("/")) -> str | None:
    """Return the version of the NVIDIA driver's kernel module, such as 580.65.06. `root`: root of the file system."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((word for word in text.split() if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), None)


def find_libraries(cuda_version: str) -> dict[str, bool]:
    """Return whether each CUDA and cuDNN library that onnxruntime needs can be loaded. Empty for unknown versions."""
    return {name: _loads(name) for name in CUDA_LIBRARIES.get(cuda_version.split(".")[0], ())}


def library_fault(cuda_version: str) -> str | None:
    """Return which CUDA or cuDNN libraries cannot be loaded, or None. `cuda_version`: that of onnxruntime."""
    if not sys.platform.startswith("linux"):
        return None
    missing = [name for name, is_there in find_libraries(cuda_version).items() if not is_there]
    if not missing:
        return None
    return f"missing libraries: {', '.join(missing)}; to install them: pip install 'tl-toolkit[gpu]'"


def usable_cores() -> int:
    """Return the number of CPU cores this process may use, respecting affinity, Slurm cpusets and container quotas."""
    return count_cores().usable


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
