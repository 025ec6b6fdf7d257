"""The features that a task still lacks: a frozen trunk is built, run once over the pictures, and forgotten.

Knows networks and the machine. Does not know heads or data faults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tl.trainer.embedder import build_embedder
from tl.trainer.features import compute_missing
from tl.trainer.machine import build_machine
from tl.trainer.networks import build_network
from tl.trainer.progress import Progress
from tl.trainer.task import Task
from tl.trainer.weights import read_weights


def extract_features(task: Task, places: Sequence[tuple[int, int]], progress: Progress) -> None:
    """Compute and keep the features of `places`, as `FeatureSet.missing` gives them, and the network's tensors."""
    if task.features is None or task.weights is None:
        raise ValueError("features need a pretrained trunk")
    config = task.config
    if config.method != "features":  # only for looking at the data
        config = dataclasses.replace(config, method="features", head="linear", pooling="gap", freeze="none")
    machine = build_machine(config.device, config.precision, config.threads)
    network = build_network(config, task.info, len(task.class_names), read_weights(task.weights, config.backbone))
    kept = {name: t for name, t in network.state_dict().items() if name.startswith(("normalise.", "trunk."))}
    task.features.keep_network({name: tensor.numpy() for name, tensor in kept.items()})
    if not places:
        return
    graph = task.features.folder / "trunk.onnx"
    embed = build_embedder(network, task.recipe.input_hw, len(places), graph, machine, progress)
    compute_missing(task.features, task.store, places, embed, task.augment, config.seed, progress)
