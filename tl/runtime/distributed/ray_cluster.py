"""Connect to a Ray cluster. Only this file and `ray_pool` know Ray's interface; Ray is imported on first use.

Ray's own messages are not shown, and SIGTERM keeps the handler of the host program.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

from tl.errors import MissingExtraError, WorkerError, first_line

# An address where nothing answers: Ray itself would try for minutes.
_SECONDS_TO_ANSWER = 5.0


def connect(address: str) -> Any:
    """Connect this process to a cluster and return the module `ray`.

    `address`: HOST:PORT of its head node; "auto": the variable RAY_ADDRESS, or the cluster that runs on this machine;
    "local": start Ray on this machine, which ends with this process. A connection of the host program is kept.
    Raises `MissingExtraError`, and `WorkerError` for a cluster that cannot be used.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning about its next version
    ray = import_ray()
    if ray.is_initialized():
        return ray
    target = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    options: dict[str, Any] = {}
    if target == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported over the network
        options = {"include_dashboard": False}
    elif target != "auto":
        _check_answers(target)
    with _own_sigterm():
        try:
            ray.init(target, logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            if target == "auto":
                raise WorkerError(
                    "no Ray cluster runs on this machine: start this command on one of its nodes, or give an address",
                    options=["ray_address=local"],
                ) from error
            raise WorkerError(f"the Ray cluster {target} cannot be used: {first_line(error)}") from error
    return ray


def list_nodes(ray: Any) -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def disconnect(ray: Any) -> None:
    """End the connection, and a cluster that was started with it."""
    with redirect_stdout(StringIO()):  # Ray prints what it has held back; source: its `LogDeduplicator.flush`
        ray.shutdown()


def import_ray() -> Any:
    """Import Ray. Raises `MissingExtraError`."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("prediction on a cluster requires Ray: pip install 'tl-toolkit[ray]'") from error
    return ray


def _check_answers(address: str) -> None:
    """Raise `WorkerError` unless something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise WorkerError(f"{address}: run the command on a node of the cluster, with HOST:PORT of its head node")
    if not host or not port.isdigit():
        raise WorkerError(f"'{address}' is not an address of a Ray cluster: expected auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise WorkerError(f"no Ray cluster answers at {address}: {reason}") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM, which `ray.init` replaces. Source: Ray's `Node` and `worker.connect`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
