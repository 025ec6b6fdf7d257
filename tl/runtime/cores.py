"""How many CPU cores this process may use, and who says so: affinity, the container's quota, Slurm.

Knows Linux's files and Slurm's environment; elsewhere the answer is all cores. Does not know what uses them.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """`affinity`: cores this process may run on, of `machine`. `slurm`: SLURM_CPUS_PER_TASK, or None.

    `quota`: cores' worth of time that the cgroup grants, or None.
    """

    machine: int
    affinity: int
    quota: float | None
    slurm: int | None

    @property
    def usable(self) -> int:
        """How many threads are worth while: more than the quota would only be stopped and started in turns."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, math.ceil(self.quota)))


def count_cores(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Cores:
    """Ask everyone. `root`: where the file system begins."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    return Cores(machine, affinity, cgroup_quota(root), int(slurm) if slurm.isdecimal() else None)


def processor_model() -> str:
    """The model of the CPU, "unknown" where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine() or "unknown"


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota of this process's cgroup and those above it, in cores; None without one.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (version 1).
    """
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        here = mount / path.lstrip("/")
        # In a container, the path may be the host's; then only the mount point itself is there.
        quotas += [
            quota for folder in (here, *here.parents) if folder.is_relative_to(mount) for quota in _quota(folder)
        ]
    return min(quotas, default=None)


def _quota(folder: Path) -> list[float]:
    """The quota of one cgroup: [cores] or []."""
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
