"""A run, or a pretrained network, -> one verified model file: graph, parity, golden samples, contract.

Knows the trainer's networks and the steps. Does not train and does not draw.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tl.errors import ConfigError, DataError
from tl.exporter.comparison import spread
from tl.exporter.golden import GoldenSource, build_golden, synthetic_inputs
from tl.exporter.parity import check_claims, check_parity, run_torch
from tl.exporter.publish import embed_contract, publish
from tl.exporter.versions import library_versions
from tl.runtime.contract import SCHEMA_VERSION, Contract, Golden, Parity, Provenance
from tl.runtime.recipe import Recipe, build_recipe
from tl.runtime.selftest import run_selftest
from tl.runtime.session import Session
from tl.runtime.sources import find_pictures
from tl.trainer.backbones import build_classifier, find_backbone_info, torchvision_weights
from tl.trainer.config import TrainConfig
from tl.trainer.data import Picture
from tl.trainer.graph import to_onnx
from tl.trainer.network import Deployed, DeployedClassifier, Normalise
from tl.trainer.networks import load_network
from tl.trainer.pictures import check_readable, load_pictures
from tl.trainer.progress import Progress
from tl.trainer.runs import Run
from tl.trainer.weight_files import find_weights
from tl.trainer.weights import load_into, read_weights

MAX_VALIDATION_PICTURES = 64
_LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Subject:
    """What is to be exported, before anything is proven. `outputs` name the module's outputs in order.

    `claimed`: picture path -> the probabilities that its training reported.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    class_names: tuple[str, ...]
    recipe: Recipe
    provenance: Provenance
    temperature: float = 1.0
    claimed: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """The finished file and what it says of itself."""

    path: Path
    contract: Contract


def export_run(
    run: Run,
    out: str | os.PathLike[str],
    progress: Progress,
    *,
    parity_images: Sequence[str | os.PathLike[str]] = (),
    golden: GoldenSource = "validation",
) -> Exported:
    """Export a run's best network; parity on its validation pictures and `parity_images`.

    Raises `RunError`, `DataError`, `ParityError` or `OutputError`.
    """
    network, card, config = load_network(run)
    pictures = run.picture_paths("val")
    provenance = Provenance(
        backbone=config.backbone,
        weights=card.weights,
        method=config.method,
        config=_public_config(config),
        data_hash=run.data_hash(),
        val_metrics=run.load_val_metrics(),
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    outputs = ("probabilities", "embedding")
    module = Deployed(network, card.temperature)
    claimed = run.val_predictions(card.class_names)
    subject = Subject(module, outputs, card.class_names, card.recipe, provenance, card.temperature, claimed)
    own, extra = spread(pictures, MAX_VALIDATION_PICTURES), find_pictures(parity_images).paths
    return _export(subject, out, own, extra, golden, progress)


def export_pretrained(
    backbone: str,
    weights: str,
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Progress,
    *,
    parity_images: Sequence[str | os.PathLike[str]] = (),
    golden: GoldenSource = "images",
) -> Exported:
    """Export a torchvision model with its own ImageNet head; parity on `images` and `parity_images`.

    Preprocessing is that of torchvision's weights of the same content, or else of its default ones for this backbone.
    Raises `ConfigError`, `WeightsError`, `DataError`, `ParityError` or `OutputError`.
    """
    torchvision_weights(backbone)  # refuses an unknown name before any file is looked for
    paths = spread(find_pictures(images).paths, MAX_VALIDATION_PICTURES)
    if not paths:
        raise DataError(f"no pictures to check parity on in {', '.join(map(str, images))}")
    found = find_weights(find_backbone_info(backbone), weights)
    if found is None:
        raise ConfigError("--pretrained without weights would export random numbers: give --weights")
    entry = torchvision_weights(backbone, found.sha256)
    info = find_backbone_info(backbone, found.sha256)
    progress.say(f"preprocessing and class names of torchvision's {entry}")
    classifier = build_classifier(backbone)
    load_into(classifier, read_weights(found, backbone))
    size = (info.image_size, info.image_size)
    recipe = build_recipe(  # as torchvision decodes
        size, "short_side", short_side=info.short_side, interpolation=info.interpolation, jpeg_scale="full"
    )
    provenance = Provenance(
        backbone=backbone,
        weights=found.description,
        method="pretrained",
        config={},
        data_hash="",
        val_metrics={},
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    module = DeployedClassifier(Normalise(info.mean, info.std), classifier)
    class_names = tuple(entry.meta["categories"])
    subject = Subject(module, ("probabilities",), class_names, recipe, provenance)
    return _export(subject, out, paths, find_pictures(parity_images).paths, golden, progress)


def check_name(out: str | os.PathLike[str]) -> None:
    """Raise `ConfigError` unless a model file may be called so."""
    if Path(out).suffix != ".onnx":
        raise ConfigError(f"{os.fspath(out)}: a model file's name ends in .onnx")


def _export(
    subject: Subject,
    out: str | os.PathLike[str],
    own: Sequence[str],
    extra: Sequence[str],
    golden: GoldenSource,
    progress: Progress,
) -> Exported:
    """Parity on all pictures; golden samples from `own` alone, since the others were given for checking only."""
    paths = [*own, *extra]
    check_name(out)
    if not paths:
        raise DataError("the run's validation pictures are gone, and parity needs some: give --parity-images DIR")
    store, bad = load_pictures([Picture(path, path, "") for path in paths], subject.recipe, "ram", progress)
    check_readable(bad, "parity needs whole pictures: mend or remove them")
    inputs = np.stack([store.input(i) for i in range(len(store.pictures))])
    progress.start("exporting", 3, "steps")
    model = to_onnx(subject.module, subject.recipe.input_hw, subject.outputs)
    embed_contract(model, _uncertified(subject))
    progress.advance(note="parity")

    def certify(path: Path) -> Contract:
        session = Session(path, device="cpu")
        parity, probabilities = check_parity(
            subject.module, session, [Path(path) for path in paths], inputs, subject.outputs
        )
        check_claims(probabilities, paths, subject.claimed)
        progress.advance(note="self-test")
        samples = _golden(golden if own else "synthetic", subject, inputs[: len(own)], probabilities[: len(own)])
        return replace(_uncertified(subject), parity=parity, golden=samples)

    contract = publish(model, out, certify, lambda path: run_selftest(path, device="cpu"))
    progress.advance(note="done")
    return Exported(Path(out), contract)


def _uncertified(subject: Subject) -> Contract:
    """The contract before anything is proven; lives in a temporary file only."""
    return Contract(
        schema_version=SCHEMA_VERSION,
        task="classification",
        precision="fp32",
        class_names=subject.class_names,
        keypoint_names=(),
        recipe=subject.recipe,
        outputs=subject.outputs,
        temperature=subject.temperature,
        thresholds={},
        provenance=subject.provenance,
        parity=Parity(0, (), {}, 0.0, 0.0, 0.0),
        quantisation=None,
        golden=Golden("synthetic", {}, ()),
    )


def _golden(
    source: GoldenSource, subject: Subject, inputs: NDArray[np.uint8], probabilities: NDArray[np.float32]
) -> Golden:
    """What the samples must give is always torch's answer; the finished file is then tested against it."""
    if source == "synthetic":
        inputs = synthetic_inputs(subject.recipe.input_hw)
        probabilities = run_torch(subject.module, inputs)[0]
    return build_golden(source, inputs, probabilities)


def _public_config(config: TrainConfig) -> dict[str, Any]:
    """The options without paths, which are nobody else's business; file names of weights and pipelines stay."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    plain["data"] = Path(config.data).name
    del plain["out"]
    for name in ("weights", "augment"):
        plain[name] = Path(str(plain[name])).name
    return plain
