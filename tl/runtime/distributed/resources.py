"""Decide how many actors there are and what each takes from a cluster. An actor runs on one node and uses one GPU.

Knows nothing of Ray's interface.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl.errors import ConfigError, WorkerError

# Resources of a node by name, of which "CPU" and "GPU" count.
Node = Mapping[str, float]


@dataclass(frozen=True)
class ActorOptions:
    """How many actors, and what each of them takes from its node."""

    count: int
    num_cpus: int
    num_gpus: float

    def describe(self) -> str:
        """`a worker needs 2 CPU and 0.5 GPU`."""
        gpus = f" and {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"a worker needs {self.num_cpus} CPU{gpus}"


def plan_actors(
    nodes: Sequence[Node], *, device: str, count: int | None, threads: int | None
) -> tuple[ActorOptions, str]:
    """Return the options of actors and their device, "cpu" or "cuda", for the nodes of a cluster.

    `device`: "auto" (GPUs if the cluster has any), "cpu" or "cuda". `count`: None for one for each GPU, or else for
    each `threads` CPUs. `threads`: CPUs of each; None for 1, or with GPUs the CPUs for each GPU of the node that has
    the fewest, divided by the actors that share one.
    Raises `ConfigError` for a device that the cluster does not have, `WorkerError` if no node has room for an actor.
    """
    gpus = sum(_count(node, "GPU") for node in nodes)
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r}: Ray assigns GPUs to its workers: give auto, cpu or cuda")
    if device == "cuda" and not gpus:
        raise ConfigError("device 'cuda': the Ray cluster has no GPU")
    if device == "cpu" or not gpus:
        needed = threads or 1
        places = sum(_count(node, "CPU") // needed for node in nodes)
        options = ActorOptions(count or max(1, places), needed, 0)
        device = "cpu"
    else:
        usable = [node for node in nodes if _count(node, "GPU") and _count(node, "CPU") >= (threads or 1)]
        gpus = sum(_count(node, "GPU") for node in usable) or gpus
        count = count or gpus
        sharing = math.ceil(count / gpus)  # actors on one GPU
        per_gpu = min((_count(node, "CPU") // _count(node, "GPU") for node in usable), default=1)
        share = 1.0 if sharing == 1 else max(1, 1000 // sharing) / 1000  # Ray counts in 1/10000
        options = ActorOptions(count, threads or max(1, per_gpu // sharing), share)
        device = "cuda"
    check_room(nodes, options)
    return options, device


def check_room(nodes: Sequence[Node], options: ActorOptions) -> None:
    """Raise `WorkerError` if no node could ever run an actor, even when nobody else uses the cluster."""
    if any(node.get("CPU", 0) >= options.num_cpus and node.get("GPU", 0) >= options.num_gpus for node in nodes):
        return
    largest = sorted({(_count(node, "CPU"), _count(node, "GPU")) for node in nodes}, reverse=True)[:3]
    found = ", ".join(f"{cpus} CPU" + (f" and {gpus} GPU" if gpus else "") for cpus, gpus in largest) or "nothing"
    raise WorkerError(
        f"no node of the Ray cluster has room for a worker: {options.describe()}, but the largest nodes have {found}: "
        "use fewer threads, or add a node"
    )


def _count(node: Node, name: str) -> int:
    return int(node.get(name, 0))
