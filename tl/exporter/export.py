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
from tl.exporter.point_parity import check_point_claims, check_point_parity
from tl.exporter.publish import embed_contract, publish
from tl.exporter.trust import measure_conformal, measure_unknown
from tl.exporter.unknown import DeployedWithUnknown
from tl.runtime.contract import (
    SCHEMA_VERSION,
    Conformal,
    Contract,
    Golden,
    LandmarkFacts,
    Parity,
    Provenance,
    UnknownFacts,
)
from tl.runtime.decode import read_size
from tl.runtime.geometry import place
from tl.runtime.recipe import JpegScale, Recipe, build_recipe
from tl.runtime.selftest import run_selftest
from tl.runtime.session import Session
from tl.runtime.sources import find_pictures
from tl.trainer.backbones import build_classifier, find_backbone_info, torchvision_weights
from tl.trainer.config import TrainConfig
from tl.trainer.data import Picture
from tl.trainer.environment import library_versions
from tl.trainer.graph import to_onnx
from tl.trainer.landmarks.data import reference_shape
from tl.trainer.landmarks.networks import deployed, load_landmark_network
from tl.trainer.network import Deployed, DeployedClassifier, Normalise
from tl.trainer.networks import load_network
from tl.trainer.pictures import check_readable, load_pictures
from tl.trainer.progress import Progress
from tl.trainer.runs import NetworkCard, Run
from tl.trainer.weight_files import find_weights
from tl.trainer.weights import load_into, read_weights

MAX_VALIDATION_PICTURES = 64
_LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Subject:
    """What is to be exported, before anything is proven. `outputs` name the module's outputs, the deciding one first.

    `claimed`: picture path -> what its training reported, probabilities (C,) or points (K, 2) in pixels of the photo.
    `landmarks` is None for a classifier; `conformal` and `unknown` where nothing was held out to measure them.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    recipe: Recipe
    provenance: Provenance
    temperature: float = 1.0
    claimed: Mapping[str, Any] = field(default_factory=dict)
    landmarks: LandmarkFacts | None = None
    conformal: Conformal | None = None
    unknown: UnknownFacts | None = None


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
    unknown: bool = True,
) -> Exported:
    """Export a run's best network; parity on its validation pictures and `parity_images`.

    `unknown`: also measure how unlike its training pictures a picture is, which takes a look at all of them.

    Raises `RunError`, `DataError`, `ParityError` or `OutputError`.
    """
    config = run.load_config()
    subject = _landmark_subject(run) if config.task == "landmarks" else _class_subject(run, progress, unknown)
    own = spread(run.pictures("val"), MAX_VALIDATION_PICTURES)
    extra = [Picture(path, path, "") for path in find_pictures(parity_images).paths]
    if extra and any(picture.region is not None for picture in own):
        raise ConfigError(
            "--parity-images: this model looks at a part of each picture, which others do not say; leave it out"
        )
    return _export(subject, out, own, extra, golden, progress)


def _class_subject(run: Run, progress: Progress, unknown: bool) -> Subject:
    network, card, config = load_network(run)
    deployed = Deployed(network, card.temperature)
    measured = measure_unknown(run, network, card.recipe, card.class_names, progress) if unknown else None
    return Subject(
        module=DeployedWithUnknown(deployed, measured[0]) if measured else deployed,
        outputs=("probabilities", "embedding", *(("unknown_score",) if measured else ())),
        names=card.class_names,
        recipe=card.recipe,
        provenance=_run_provenance(run, config, card),
        temperature=card.temperature,
        claimed=run.val_predictions(card.class_names),
        conformal=measure_conformal(run, card.class_names),
        unknown=measured[1] if measured else None,
    )


def _landmark_subject(run: Run) -> Subject:
    network, card, config = load_landmark_network(run)
    module, outputs = deployed(network)
    annotations = run.load_landmarks("annotations.json")
    mean, limit = reference_shape([p.keypoints_xy for p in annotations.pictures if p.split == "train"])
    facts = LandmarkFacts(
        flip_pairs=annotations.flip_pairs,
        skeleton=annotations.skeleton,
        mean_shape=None if mean is None else tuple((float(x), float(y)) for x, y in mean),
        shape_limit=limit,
        region=config.crop,
        region_margin=0.0 if config.crop == "whole" else config.crop_margin,
    )
    claimed = run.val_points()
    provenance = _run_provenance(run, config, card)
    return Subject(module, outputs, card.keypoint_names, card.recipe, provenance, 1.0, claimed, facts)


def _run_provenance(run: Run, config: TrainConfig, card: NetworkCard) -> Provenance:
    return Provenance(
        backbone=config.backbone,
        weights=card.weights,
        method=config.method,
        config=_public_config(config),
        data_hash=run.data_hash(),
        val_metrics=run.load_val_metrics(),
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def export_pretrained(
    backbone: str,
    weights: str,
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Progress,
    *,
    parity_images: Sequence[str | os.PathLike[str]] = (),
    golden: GoldenSource = "images",
    jpeg_scale: JpegScale = "full",
) -> Exported:
    """Export a torchvision model with its own ImageNet head; parity on `images` and `parity_images`.

    Preprocessing is that of torchvision's weights of the same content, or else of its default ones for this backbone;
    `jpeg_scale` "2x" decodes large JPEGs faster and a little differently.
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
    recipe = build_recipe(
        size, "short_side", short_side=info.short_side, interpolation=info.interpolation, jpeg_scale=jpeg_scale
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
    own, extra = ([Picture(path, path, "") for path in group] for group in (paths, find_pictures(parity_images).paths))
    return _export(subject, out, own, extra, golden, progress)


def check_name(out: str | os.PathLike[str]) -> None:
    """Raise `ConfigError` unless a model file may be called so."""
    if Path(out).suffix != ".onnx":
        raise ConfigError(f"{os.fspath(out)}: a model file's name ends in .onnx")


def _export(
    subject: Subject,
    out: str | os.PathLike[str],
    own: Sequence[Picture],
    extra: Sequence[Picture],
    golden: GoldenSource,
    progress: Progress,
) -> Exported:
    """Parity on all pictures; golden samples from `own` alone, since the others were given for checking only."""
    check_name(out)
    if not own and not extra:
        raise DataError("the run's validation pictures are gone, and parity needs some: give --parity-images DIR")
    store, bad = load_pictures([*own, *extra], subject.recipe, "ram", progress)
    check_readable(bad, "parity needs whole pictures: mend or remove them")
    inputs = np.stack([store.input(i) for i in range(len(store.pictures))])
    progress.start("exporting", 3, "steps")
    model = to_onnx(subject.module, subject.recipe.input_hw, subject.outputs)
    embed_contract(model, _uncertified(subject))
    progress.advance(note="parity")

    def certify(path: Path) -> Contract:
        prove = _prove_classes if subject.landmarks is None else _prove_points
        parity, expected = prove(subject, Session(path, device="cpu"), store.pictures, inputs)
        progress.advance(note="self-test")
        samples = _golden(golden if own else "synthetic", subject, inputs[: len(own)], expected[: len(own)])
        return replace(_uncertified(subject), parity=parity, golden=samples)

    contract = publish(model, out, certify, lambda path: run_selftest(path, device="cpu"))
    progress.advance(note="done")
    return Exported(Path(out), contract)


def _prove_classes(
    subject: Subject, session: Session, pictures: Sequence[Picture], inputs: NDArray[np.uint8]
) -> tuple[Parity, NDArray[np.float32]]:
    paths = [picture.path for picture in pictures]
    parity, probabilities = check_parity(
        subject.module, session, [Path(path) for path in paths], inputs, subject.outputs
    )
    check_claims(probabilities, paths, subject.claimed)
    return parity, probabilities


def _prove_points(
    subject: Subject, session: Session, pictures: Sequence[Picture], inputs: NDArray[np.uint8]
) -> tuple[Parity, NDArray[np.float32]]:
    expected = dict(zip(subject.outputs, run_torch(subject.module, inputs), strict=True))
    placements = [place(read_size(picture.path), subject.recipe, picture.region) for picture in pictures]
    parity = check_point_parity(session, pictures, placements, inputs, expected)
    check_point_claims(expected["keypoints"], pictures, placements, subject.claimed)
    return parity, expected["keypoints"]


def _uncertified(subject: Subject) -> Contract:
    """The contract before anything is proven; lives in a temporary file only."""
    is_classes = subject.landmarks is None
    return Contract(
        schema_version=SCHEMA_VERSION,
        task="classification" if is_classes else "landmarks",
        precision="fp32",
        class_names=subject.names if is_classes else (),
        keypoint_names=() if is_classes else subject.names,
        landmarks=subject.landmarks,
        recipe=subject.recipe,
        outputs=subject.outputs,
        temperature=subject.temperature,
        thresholds={},
        ensemble=None,
        conformal=subject.conformal,
        unknown=subject.unknown,
        provenance=subject.provenance,
        parity=Parity(0, (), {}, 0.0, None, 0.0),
        quantisation=None,
        golden=Golden("synthetic", {}, ()),
    )


def _golden(source: GoldenSource, subject: Subject, inputs: NDArray[np.uint8], expected: NDArray[np.float32]) -> Golden:
    """What the samples must give is always torch's answer; the finished file is then tested against it."""
    if source == "synthetic":
        inputs = synthetic_inputs(subject.recipe.input_hw)
        expected = run_torch(subject.module, inputs)[0]
    return build_golden(source, inputs, expected)


def _public_config(config: TrainConfig) -> dict[str, Any]:
    """The options without paths, which are nobody else's business; file names of weights and pipelines stay."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    plain["data"] = Path(config.data).name
    del plain["out"]
    for name in ("weights", "augment", "images"):
        plain[name] = None if plain[name] is None else Path(str(plain[name])).name
    return plain
