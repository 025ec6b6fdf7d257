"""Open the frozen network that computes features of photos: a model file, or a backbone with published weights.

Imports torch only when a backbone has to compute something; its cached features are those of `tl train`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tl.data.array_cache import ArrayCache
from tl.data.features import Embedder, FeatureSet, open_features
from tl.data.images import preprocessing_key
from tl.errors import MissingExtraError, ModelFileError
from tl.progress import Silent
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.session import Session
from tl.runtime.sources.paths import hash_file
from tl.trainer.config import TrainConfig
from tl.trainer.models.backbone_info import BUNDLED, BackboneInfo, remembered_info
from tl.trainer.models.weight_files import WeightsFile
from tl.trainer.options import resolve
from tl.trainer.task import build_run_preprocessing, find_info, find_start, open_run_features

EMBEDDING = "embedding"


class FeatureSource(Protocol):
    """What computes features. `dimension`: length of a feature vector, None until it is known."""

    @property
    def name(self) -> str:
        """The model file or backbone, for display."""

    @property
    def dimension(self) -> int | None:
        """Length of a feature vector; None until the first one was computed."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""

    @property
    def cached(self) -> FeatureSet:
        """The cache of this network's features."""

    def prepare(self, count: int) -> None:
        """Load what is needed to compute the features of `count` images. Raises `TlError`."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images uint8 (N, H, W, 3) -> features float32 (N, D). Raises `TlError`."""


@dataclass
class ModelFileSource:
    """The output `embedding` of a model file, computed by the runtime alone."""

    session: Session
    name: str
    preprocessing: Preprocessing
    cached: FeatureSet
    dimension: int | None

    def prepare(self, count: int) -> None:
        """The file is open already."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images uint8 (N, H, W, 3) -> features float32 (N, D)."""
        return self.session.run(images, (EMBEDDING,))[0].astype(np.float32, copy=False)


@dataclass
class BackboneSource:
    """A frozen backbone as `tl train --method features` uses it, with the same cached features."""

    config: TrainConfig
    info: BackboneInfo
    weights: WeightsFile
    preprocessing: Preprocessing
    cached: FeatureSet
    dimension: int | None = None
    _embedder: Embedder | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.config.backbone

    def prepare(self, count: int) -> None:
        """Load torch, the weights, and for many images the backbone's graph."""
        with self._lock:
            if self._embedder is None:
                self._embedder = _build_embedder(self, count)

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images uint8 (N, H, W, 3) -> features float32 (N, D)."""
        self.prepare(len(images))
        if self._embedder is None:
            raise ValueError("not prepared")
        features = self._embedder(images)
        self.dimension = features.shape[1]
        return features


def open_source(
    model: Path | None = None, backbone: str | None = None, device: str = "auto", threads: int | None = None
) -> FeatureSource:
    """Open a model file with an output `embedding`, or a backbone with its published weights.

    `backbone`: None for the default one. Raises `ModelFileError` and `DeviceError` for a model file,
    `MissingExtraError`, `WeightsError` and `ConfigError` for a backbone.
    """
    return (
        _open_backbone(backbone or BUNDLED, device, threads) if model is None else _open_model(model, device, threads)
    )


def _open_model(model: Path, device: str, threads: int | None) -> ModelFileSource:
    session = Session(model, device=device, threads=threads)
    contract = session.contract
    if contract is None or EMBEDDING not in contract.outputs:
        raise ModelFileError(f"{model}: has no output '{EMBEDDING}'; expected a classifier exported from a run")
    if session.takes_any_size:
        raise ModelFileError(
            f"{model}: takes images of any size, so it cannot be used here: use the file of fixed size that it was "
            "made from"
        )
    _, shape = session.output(EMBEDDING)
    cached = open_features(
        model=hash_file(model),
        precision=session.precision,
        preprocessing=preprocessing_key(contract.preprocessing),
    )
    dimension = shape[1] if len(shape) == 2 else None
    return ModelFileSource(session, model.name, contract.preprocessing, _without_copies(cached), dimension)


def _open_backbone(backbone: str, device: str, threads: int | None) -> BackboneSource:
    if find_spec("torch") is None:
        raise MissingExtraError(
            "features of a backbone require additional packages (torch is missing): pip install 'tl-toolkit[train]', "
            "or use a model file that outputs an embedding"
        )
    asked = TrainConfig(
        data="", task="classification", method="features", backbone=backbone, device=device, threads=threads, out="-"
    )
    config = resolve(asked)
    info = remembered_info(config.backbone, find_info)
    preprocessing = build_run_preprocessing(config, info)
    weights, info = find_start(config, info)
    if weights is None:
        raise ValueError("features require a pretrained backbone")
    cached = open_run_features(config, info, preprocessing, None, weights)
    return BackboneSource(config, info, weights, preprocessing, _without_copies(cached))


def _build_embedder(source: BackboneSource, count: int) -> Embedder:
    from tl.trainer.features.extraction import build_embedder
    from tl.trainer.fit.machine import build_machine
    from tl.trainer.models.build import build_network
    from tl.trainer.models.weights import read_weights

    config = source.config
    machine = build_machine(config.device, config.precision, config.threads)
    network = build_network(config, source.info, 2, read_weights(source.weights, config.backbone))
    kept = {name: t for name, t in network.state_dict().items() if name.startswith(("normalize.", "trunk."))}
    source.cached.keep_network({name: tensor.numpy() for name, tensor in kept.items()})
    graph = source.cached.folder / "trunk.onnx"
    return build_embedder(network, source.preprocessing.input_shape, count, graph, machine, Silent())


def _without_copies(features: FeatureSet) -> FeatureSet:
    """The same cache, which drops from memory what it cannot write: `PhotoFeatures` has it in its matrix."""
    return FeatureSet(ArrayCache(features.folder), features.folder)
