from __future__ import annotations

import os
from pathlib import Path

import pytest

from tl.runtime.devices import Cores, cgroup_quota, count_cores


def make_cgroups(root: Path, membership: str, **files: str) -> Path:
    """A file system with /proc/self/cgroup and files in /sys/fs/cgroup, named with __ for /."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_count_cores__of_this_machine() -> None:
    cores = count_cores({})
    assert cores.machine == os.cpu_count()
    assert 1 <= cores.usable <= cores.affinity == len(os.sched_getaffinity(0))
    assert cores.slurm is None


def test_cgroup_quota__version_2(tmp_path: Path) -> None:
    root = make_cgroups(tmp_path, "0::/job/step\n", job__step__cpu_max="max 100000\n", job__cpu_max="250000 100000\n")
    assert cgroup_quota(root) == 2.5


def test_cgroup_quota__the_smallest_counts(tmp_path: Path) -> None:
    root = make_cgroups(tmp_path, "0::/job/step\n", job__step__cpu_max="50000 100000\n", job__cpu_max="300000 100000\n")
    assert cgroup_quota(root) == 0.5


def test_cgroup_quota__in_a_container_that_sees_only_its_own(tmp_path: Path) -> None:
    root = make_cgroups(tmp_path, "0::/docker/0123\n", cpu_max="400000 100000\n")
    assert cgroup_quota(root) == 4


def test_cgroup_quota__version_1(tmp_path: Path) -> None:
    membership = "5:memory:/job\n4:cpuset:/\n3:cpu,cpuacct:/job\n1:name=systemd:/init.scope\n0::/init.scope\n"
    root = make_cgroups(
        tmp_path,
        membership,
        cpu__job__cpu_cfs_quota_us="150000\n",
        cpu__job__cpu_cfs_period_us="100000\n",
        cpu__cpu_cfs_quota_us="-1\n",
        cpu__cpu_cfs_period_us="100000\n",
        memory__job__cpu_max="1 100000\n",
    )
    assert cgroup_quota(root) == 1.5


def test_cgroup_quota__none(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    assert cgroup_quota(make_cgroups(tmp_path, "0::/\n", cpu_max="max 100000\n")) is None


@pytest.mark.parametrize(("quota", "usable"), [(None, 8), (0.5, 1), (2.5, 3), (64, 8)])
def test_usable__a_quota_lowers_it(quota: float | None, usable: int) -> None:
    assert Cores(machine=16, affinity=8, quota=quota, slurm=None).usable == usable


@pytest.mark.parametrize(("value", "expected"), [("4", 4), ("", None), ("four", None)])
def test_count_cores__slurm(tmp_path: Path, value: str, expected: int | None) -> None:
    assert count_cores({"SLURM_CPUS_PER_TASK": value}, tmp_path).slurm == expected
