"""A frozen trunk as a function from pictures to features, by the fastest way of the machine.

Knows torch, and `tl.runtime`'s sessions for the CPU, where onnxruntime runs the same graph two to three times as fast.
Does not know pictures, caches or heads.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.runtime.files import atomic_path
from tl.runtime.session import Session
from tl.trainer.features import Embedder
from tl.trainer.graph import to_onnx
from tl.trainer.machine import Machine
from tl.trainer.network import Network
from tl.trainer.progress import Progress

# Making the graph takes a few seconds, which this many pictures earn back.
_WORTH_A_GRAPH = 400
# Largest difference between torch and onnxruntime, as a share of the largest feature.
_TOLERANCE = 1e-4


class _Features(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network.features(images),)


def build_embedder(
    network: Network, input_hw: tuple[int, int], count: int, graph_path: Path, machine: Machine, progress: Progress
) -> Embedder:
    """Images uint8 (N, H, W, 3) -> features float32 (N, ...), equal whichever way is taken, up to rounding.

    `count`: how many pictures there are to embed. `graph_path`: where the trunk's graph is kept for later runs.
    """
    network.eval()
    by_torch = _torch_embedder(network, machine)
    if machine.device.type != "cpu" or (count < _WORTH_A_GRAPH and not graph_path.is_file()):
        return by_torch
    try:
        if not graph_path.is_file():
            progress.start("preparing the backbone", 1, "steps")
            model = to_onnx(_Features(network), input_hw, ("features",))
            progress.advance()
            with atomic_path(graph_path) as temporary:
                temporary.write_bytes(model.SerializeToString())
        session = Session(graph_path, device="cpu", threads=machine.threads, require_contract=False)
    except Exception as error:  # whatever it is, full disk, no onnxruntime, no export of this backbone: torch can do it
        with suppress(OSError):
            graph_path.unlink(missing_ok=True)
        progress.say(f"features are computed by torch, more slowly ({_first_line(error)})")
        return by_torch

    def by_onnxruntime(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return session.run(images, ("features",))[0]

    probe = np.random.default_rng(0).integers(0, 256, (2, *input_hw, 3), dtype=np.uint8)
    wanted = by_torch(probe)
    if not np.abs(by_onnxruntime(probe) - wanted).max() <= _TOLERANCE * float(np.abs(wanted).max()):
        progress.say("features are computed by torch, more slowly: onnxruntime gives others for this backbone")
        return by_torch
    return by_onnxruntime


def _torch_embedder(network: Network, machine: Machine) -> Embedder:
    network.to(machine.device)

    @torch.no_grad()
    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # features are the same on every device
            features = network.features(torch.from_numpy(images).to(machine.device))
        values: NDArray[np.float32] = features.cpu().numpy()
        return values

    return embed


def _first_line(error: Exception) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colours its messages
    return plain.splitlines()[0][:200] if plain else type(error).__name__
