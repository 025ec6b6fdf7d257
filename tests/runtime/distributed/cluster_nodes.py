"""Run a Ray cluster of two nodes on this machine; a script, because Ray changes signals and loggers of its process.

The argument is the number of CPUs of the first node; the second has one. Prints the address and the process id of the
second node's raylet. The line `kill` on stdin kills that node; the end of stdin ends the cluster.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def main(head_cpus: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": head_cpus})
    second = cluster.add_node(**NODE)
    (raylet,) = second.all_processes["raylet"]
    _say(f"{cluster.address} {raylet.process.pid}")
    for line in sys.stdin:
        if line == "kill\n":
            cluster.remove_node(second, allow_graceful=False)
            _say("killed")
    cluster.shutdown()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
