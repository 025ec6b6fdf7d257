"""Compute missing features of a frozen backbone, with onnxruntime on the CPU or with torch.

Does not store features (`tl.data.features`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.data.features import Embedder, compute_missing
from tl.errors import first_line
from tl.progress import Progress
from tl.runtime.output.files import atomic_path
from tl.runtime.session import Session
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.models.build import build_network, to_onnx
from tl.trainer.models.network import Network
from tl.trainer.models.weights import read_weights
from tl.trainer.task import FeatureTask

# Building the graph takes a few seconds, which pays off from this many images.
_WORTH_A_GRAPH = 400
# Largest difference between torch and onnxruntime, as a fraction of the largest feature.
_TOLERANCE = 1e-4


class _Features(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network.features(images),)


def build_embedder(
    network: Network,
    input_shape: tuple[int, int, int],
    count: int,
    graph_path: Path,
    machine: Machine,
    progress: Progress,
) -> Embedder:
    """Images uint8 (N, H, W, 3) -> features float32 (N, ...); both backends agree up to rounding.

    `count`: number of images to embed. `graph_path`: where the trunk's graph is cached for later runs.
    """
    network.eval()
    by_torch = _torch_embedder(network, machine)
    if machine.device.type != "cpu" or (count < _WORTH_A_GRAPH and not graph_path.is_file()):
        return by_torch
    try:
        if not graph_path.is_file():
            progress.start("preparing the backbone", 1, "steps")
            model = to_onnx(_Features(network), input_shape, ("features",))
            progress.advance()
            with atomic_path(graph_path) as temporary:
                temporary.write_bytes(model.SerializeToString())
        session = Session(graph_path, device="cpu", threads=machine.threads, require_contract=False)
    except Exception as error:  # any cause (full disk, no onnxruntime, failed export): fall back to torch
        with suppress(OSError):
            graph_path.unlink(missing_ok=True)
        progress.say(f"features are computed by torch, which is slower ({first_line(error)})")
        return by_torch

    def by_onnxruntime(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return session.run(images, ("features",))[0]

    probe = np.random.default_rng(0).integers(0, 256, (2, *input_shape), dtype=np.uint8)
    wanted = by_torch(probe)
    if not np.abs(by_onnxruntime(probe) - wanted).max() <= _TOLERANCE * float(np.abs(wanted).max()):
        progress.say(
            "features are computed by torch, which is slower: onnxruntime computes different features for this backbone"
        )
        return by_torch
    return by_onnxruntime


def _torch_embedder(network: Network, machine: Machine) -> Embedder:
    network.to(machine.device)

    @torch.no_grad()
    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the same features on every device
            features = network.features(torch.from_numpy(images).to(machine.device))
        values: NDArray[np.float32] = features.cpu().numpy()
        return values

    return embed


def extract_features(task: FeatureTask, places: Sequence[tuple[int, int]], progress: Progress) -> None:
    """Compute and save the features of `places`, as returned by `FeatureSet.missing`, and the network's tensors."""
    if task.features is None or task.weights is None:
        raise ValueError("features require a pretrained trunk")
    config = task.config
    if config.method != "features":  # only used to inspect the data
        config = dataclasses.replace(config, method="features", head="linear", pooling="gap", freeze="none")
    machine = build_machine(config.device, config.precision, config.threads)
    network = build_network(config, task.info, len(task.outputs), read_weights(task.weights, config.backbone))
    kept = {name: t for name, t in network.state_dict().items() if name.startswith(("normalize.", "trunk."))}
    task.features.keep_network({name: tensor.numpy() for name, tensor in kept.items()})
    if not places:
        return
    graph = task.features.folder / "trunk.onnx"
    embed = build_embedder(network, task.preprocessing.input_shape, len(places), graph, machine, progress)
    compute_missing(task.features, task.store, places, embed, task.augment, config.seed, progress)
