"""What actors take from nodes: each actor must fit on one node, and as many on a GPU as were asked for."""

from __future__ import annotations

import re

import pytest

from tl.errors import ConfigError, WorkerError
from tl.runtime.distributed.resources import ActorOptions, Node, check_room, plan_actors

HEAD: Node = {"CPU": 8.0, "memory": 1e9}


def plan(nodes: list[Node], device: str = "auto", count: int | None = None, threads: int | None = None) -> ActorOptions:
    return plan_actors(nodes, device=device, count=count, threads=threads)[0]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([HEAD, {"CPU": 8, "GPU": 1}], ActorOptions(1, 8, 1.0)),  # not the 16 CPUs of the cluster
        ([{"CPU": 0}, {"CPU": 16, "GPU": 4}, {"CPU": 32, "GPU": 4}], ActorOptions(8, 4, 1.0)),
        ([{"CPU": 1, "GPU": 2}], ActorOptions(2, 1, 1.0)),
        ([HEAD, {"CPU": 0, "GPU": 1}, {"CPU": 6, "GPU": 1}], ActorOptions(1, 6, 1.0)),  # no CPU, so no actor
    ],
)
def test_plan__gpus_and_the_cpus_of_their_nodes(nodes: list[Node], expected: ActorOptions) -> None:
    assert plan_actors(nodes, device="auto", count=None, threads=None) == (expected, "cuda")


def test_plan__cpus_of_single_nodes() -> None:
    nodes: list[Node] = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert plan_actors(nodes, device="auto", count=None, threads=2) == (ActorOptions(2, 2, 0), "cpu")  # not 3
    assert plan(nodes) == ActorOptions(6, 1, 0)
    assert plan([HEAD, {"CPU": 8, "GPU": 1}], device="cpu", count=5) == ActorOptions(5, 1, 0)


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16, 100])
def test_plan__all_actors_fit_on_the_gpus_at_once(gpus: int, count: int) -> None:
    options = plan([{"CPU": 128, "GPU": gpus}], count=count)
    per_gpu = int(1 / options.num_gpus)  # an actor uses one GPU, never parts of two
    assert per_gpu * gpus >= count
    assert (options.num_gpus == 1) == (count <= gpus)
    assert options.num_cpus * min(count, per_gpu * gpus) <= 128


def test_plan__three_actors_on_two_gpus() -> None:
    assert plan([{"CPU": 8, "GPU": 2}], count=3) == ActorOptions(3, 2, 0.5)


@pytest.mark.parametrize(
    ("nodes", "threads", "fault"),
    [
        (
            [HEAD, {"CPU": 8, "GPU": 1}],
            16,
            "a worker needs 16 CPU and 1 GPU, but the largest nodes have 8 CPU and 1 GPU",
        ),
        ([{"CPU": 2}, {"CPU": 2}], 3, "a worker needs 3 CPU, but the largest nodes have 2 CPU:"),
        ([HEAD, {"CPU": 0, "GPU": 1}], None, "a worker needs 1 CPU and 1 GPU, but the largest nodes have 8 CPU, 0 CPU"),
        ([{"CPU": 0}], None, "a worker needs 1 CPU, but the largest nodes have 0 CPU"),
        ([], None, "but the largest nodes have nothing"),
    ],
)
def test_plan__no_node_has_room(nodes: list[Node], threads: int | None, fault: str) -> None:
    with pytest.raises(WorkerError, match=f"^no node of the Ray cluster has room for a worker: .*{re.escape(fault)}"):
        plan(nodes, threads=threads)


def test_check_room__a_cluster_in_use_has_room() -> None:
    check_room([HEAD, {"CPU": 4, "GPU": 1}], ActorOptions(100, 4, 0.01))


def test_plan__devices() -> None:
    with pytest.raises(ConfigError, match=r"device 'cuda': the Ray cluster has no GPU"):
        plan([HEAD], device="cuda")
    with pytest.raises(ConfigError, match=r"device 'openvino': Ray assigns GPUs"):
        plan([HEAD], device="openvino")
