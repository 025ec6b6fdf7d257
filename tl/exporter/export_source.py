"""The source of an export: a run's classifier or landmark network, or a pretrained one, with its contract fields.

Fits out-of-distribution scores and conformal scores on a run's images. Does not write model files (`export`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tl.data.features import SHORTEST
from tl.data.label_sets import label_matrix
from tl.data.manifests import LabeledImage
from tl.data.targets import numbers_of
from tl.errors import ConfigError
from tl.evaluation.calibration import class_ids_of, conformal_of, held_out_scores
from tl.evaluation.label_decisions import build_risk_curve, fit_thresholds
from tl.evaluation.ood import MAX_KNOWN, Known, OodFit, measure_ood
from tl.exporter.parity import spread
from tl.progress import Progress
from tl.runtime.ensembles.taxonomy import Taxonomy, taxonomy_of
from tl.runtime.imaging.preprocessing import JpegScale, Preprocessing, build_preprocessing
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.model_file.contract import (
    Conformal,
    LandmarkFacts,
    OodFacts,
    Provenance,
    RegressionFacts,
)
from tl.runtime.model_file.label_facts import MultilabelFacts
from tl.trainer.boxes import run_crop
from tl.trainer.config import TrainConfig
from tl.trainer.features.run_embeddings import Embedded, embed_images
from tl.trainer.landmarks.data import reference_shape
from tl.trainer.landmarks.network import deployed, load_landmark_network
from tl.trainer.models.backbone_info import BUNDLED
from tl.trainer.models.backbones import build_classifier, find_backbone_info, imagenet_classes, torchvision_weights
from tl.trainer.models.build import load_network
from tl.trainer.models.network import Deployed, DeployedClassifier, Network, Normalize, has_cam
from tl.trainer.models.weight_files import find_weights
from tl.trainer.models.weights import load_into, read_weights
from tl.trainer.options import settled
from tl.trainer.run_folder.environment import library_versions
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run
from tl.trainer.run_folder.taxonomy import load_taxonomy


class OodScore(nn.Module):
    """Embeddings (N, D) -> distance of each to the nearest class mean, (N,), as `OodFit.scores`."""

    center: Tensor
    directions: Tensor
    templates: Tensor
    offsets: Tensor

    def __init__(self, fit: OodFit) -> None:
        super().__init__()
        for name, values in vars(fit).items():
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, D) -> (N,)."""
        unit = nn.functional.normalize(embedding, dim=1, eps=SHORTEST)
        unit = nn.functional.normalize(unit - self.center, dim=1, eps=SHORTEST)
        length = unit.square().sum(dim=1) - (unit @ self.directions).square().sum(dim=1)
        nearest = (self.offsets - 2 * (unit @ self.templates)).min(dim=1).values
        return (length + nearest).clamp_min(0).sqrt()


def measure_conformal(run: Run, class_names: Sequence[str]) -> Conformal | None:
    """Conformal scores of the true classes, from `predictions_val.csv`; from a random sample if over 1000 images."""
    rows = run.rows("predictions_val.csv")
    if not rows:
        return None
    probabilities = np.array([[row[f"p:{name}"] for name in class_names] for row in rows], np.float32)
    true_ids = class_ids_of([row["true_label"] for row in rows], class_names)
    return conformal_of(probabilities, true_ids, _held_out_source(run))


def measure_ood_score(
    run: Run,
    network: Network,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    progress: Progress,
    false_alarm: float,
) -> tuple[OodFit, OodFacts] | None:
    """Fit the score on training images that still exist. Says the reason and returns None if that is not possible.

    A `false_alarm` share of held-out images may exceed its limit. Where the run's classifier was fitted to the
    validation images too, the statistics are of all labeled images. The limit is cross-fitted for a trunk that was not
    trained; otherwise the validation images set it.
    """
    config = run.load_config()
    is_frozen = settled(config.method) == "features"
    train, val = (
        embed_images(run, network, preprocessing, spread(run.images(split), MAX_KNOWN), progress)
        for split in ("train", "val")
    )
    if not train.images or not val.images:
        progress.say("no out-of-distribution score: the run's training or validation images no longer exist")
        return None
    is_cross_fitted = is_frozen and (config.refit or len(val.images) * false_alarm < 1)
    known = Embedded.joined(train, val) if is_cross_fitted else train
    ids, val_ids = (class_ids_of([image.label for image in each.images], class_names) for each in (known, val))
    held_out = None if is_cross_fitted else val.embeddings
    held_out_ids = val_ids if config.refit and not is_cross_fitted else None
    groups = [image.group for image in known.images]
    found = measure_ood(
        Known(known.embeddings, ids, known.hashes, groups, held_out, held_out_ids), len(class_names), false_alarm
    )
    if isinstance(found, str):
        progress.say(f"no out-of-distribution score: {found}")
        return None
    return found


_LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "pillow", "simplejpeg")


@dataclass(frozen=True)
class ExportSource:
    """The unverified source of an export. `outputs` names the module's outputs, the deciding one first.

    `claimed`: `LabeledImage.key`, or the path for landmarks -> output reported in training, probabilities (C,) or
    points (K, 2) in pixels of the photo. `landmarks` is None for a classifier; `conformal` and `ood` are None without
    held-out images to measure them.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: Provenance
    temperature: float = 1.0
    claimed: Mapping[Any, Any] = field(default_factory=dict)
    landmarks: LandmarkFacts | None = None
    conformal: Conformal | None = None
    ood: OodFacts | None = None
    taxonomy: Taxonomy | None = None
    regression: RegressionFacts | None = None
    multilabel: MultilabelFacts | None = None
    boxes: BoxCrop | None = None


@dataclass(frozen=True)
class ExtraOutputs:
    """Optional contents of a classifier's file, in addition to probabilities and embedding.

    `unknown`: out-of-distribution score relative to the training images, which requires reading all of them.
    `false_alarm` in (0, 1): fraction of validation images that its limit may flag. `cam`: class activation maps.
    `taxonomy`: CSV of the classes' groups, or "names" if the class names are lineages; None for the run's own.
    `min_precision`: of several labels, the precision that the threshold of each must reach on held-out images, None for
    the highest F1.
    """

    unknown: bool = True
    false_alarm: float = 0.05
    cam: bool = False
    taxonomy: str | None = None
    min_precision: float | None = None


DEFAULT_OUTPUTS = ExtraOutputs()


def class_source(run: Run, progress: Progress, further: ExtraOutputs) -> ExportSource:
    """A run's best classifier. Raises `ConfigError`, `DataError` or `RunError`."""
    network, card, config = load_network(run)
    taxonomy = taxonomy_of(further.taxonomy, card.class_names) or load_taxonomy(run, card.class_names)
    if further.cam and not has_cam(network):
        raise ConfigError(
            "class activation maps require a linear head on globally averaged features, but this run has head "
            f"{config.head} with pooling {config.pooling} on {config.backbone}; without them, labels can "
            "still be explained by occluding parts of the image"
        )
    measured = None
    if further.unknown:
        measured = measure_ood_score(run, network, card.preprocessing, card.class_names, progress, further.false_alarm)
    score = OodScore(measured[0]) if measured else None
    module = Deployed(network, card.temperature, unknown=score, with_cam=further.cam)
    return ExportSource(
        module=module,
        outputs=module.outputs,
        names=card.class_names,
        preprocessing=card.preprocessing,
        provenance=_run_provenance(run, config, card),
        temperature=card.temperature,
        claimed=run.val_predictions(card.class_names),
        conformal=measure_conformal(run, card.class_names),
        ood=measured[1] if measured else None,
        taxonomy=taxonomy,
        boxes=run_crop(config, has_boxes=run.has_boxes),
    )


def landmark_source(run: Run) -> ExportSource:
    """A run's best landmark network. Raises `RunError`."""
    network, card, config = load_landmark_network(run)
    module, outputs = deployed(network)
    annotations = run.load_landmarks("annotations.json")
    mean, limit = reference_shape([p.keypoints_xy for p in annotations.images if p.split == "train"])
    facts = LandmarkFacts(
        flip_pairs=annotations.flip_pairs,
        skeleton=annotations.skeleton,
        mean_shape=None if mean is None else tuple((float(x), float(y)) for x, y in mean),
        shape_limit=limit,
        region=config.crop,
        region_margin=0.0 if config.crop == "whole" else settled(config.crop_margin),
    )
    claimed = run.val_points()
    provenance = _run_provenance(run, config, card)
    return ExportSource(module, outputs, card.keypoint_names, card.preprocessing, provenance, 1.0, claimed, facts)


def regression_source(run: Run) -> ExportSource:
    """A run's best network that predicts numbers. Raises `RunError`."""
    network, card, config = load_network(run)
    names = card.target_names
    module = Deployed(network, card.temperature, activation="none")
    true, found = (
        np.array([[float(row[name] or "nan") for name in columns] for row in run.rows("predictions_val.csv")])
        for columns in ([f"true:{name}" for name in names], names)
    )
    trained = numbers_of(run.labeled("train"), len(names))
    facts = RegressionFacts(
        target_names=names,
        units=config.unit or ("",) * len(names),
        std=tuple(np.nanstd(trained, axis=0).tolist()),
        scores=tuple(held_out_scores(errors) for errors in np.abs(true - found).T),
        source=_held_out_source(run),
    )
    return ExportSource(
        module=module,
        outputs=module.outputs,
        names=names,
        preprocessing=card.preprocessing,
        provenance=_run_provenance(run, config, card),
        claimed=run.val_numbers(names),
        regression=facts,
    )


def multilabel_source(run: Run, progress: Progress, further: ExtraOutputs) -> ExportSource:
    """A run's best network of several labels, with thresholds fitted to its held-out images. Raises `RunError`."""
    network, card, config = load_network(run)
    names, rows = card.class_names, run.rows("predictions_val.csv")
    probabilities = np.array([[row[f"p:{name}"] for name in names] for row in rows], np.float32)
    known = label_matrix([LabeledImage("", row["path"], row["true_labels"]) for row in rows], names)
    facts = MultilabelFacts(
        temperatures=card.temperatures,
        thresholds=fit_thresholds(probabilities, known, further.min_precision),
        rule="f1" if further.min_precision is None else "precision",
        min_precision=further.min_precision,
        curve=build_risk_curve(probabilities, known, _held_out_source(run)),
    )
    module = Deployed(network, torch.tensor(card.temperatures), activation="sigmoid")
    if further.min_precision is not None:
        _say_unreached(names, facts.thresholds, probabilities, known, further.min_precision, progress)
    return ExportSource(
        module=module,
        outputs=module.outputs,
        names=names,
        preprocessing=card.preprocessing,
        provenance=_run_provenance(run, config, card),
        claimed=run.val_predictions(names),
        multilabel=facts,
    )


def _say_unreached(
    names: Sequence[str],
    thresholds: Sequence[float],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.float64],
    least: float,
    progress: Progress,
) -> None:
    """Say which labels reach a precision at no threshold."""
    given, known = probabilities >= np.array(thresholds), ~np.isnan(labels)
    precision = (given & (labels == 1)).sum(axis=0) / np.maximum((given & known).sum(axis=0), 1)
    if low := [f"'{name}' ({value:.2f})" for name, value in zip(names, precision, strict=True) if value < least]:
        progress.say(f"no threshold reaches precision {least:g} for {', '.join(low)}: each has its highest precision")


def _held_out_source(run: Run) -> str:
    is_cross_validated = len(run.scored_splits) > 1
    return "training and validation images, out of fold" if is_cross_validated else "validation split"


def _run_provenance(run: Run, config: TrainConfig, card: NetworkCard) -> Provenance:
    return Provenance(
        backbone=config.backbone,
        weights=card.weights,
        method=settled(config.method),
        config=_public_config(config),
        data_hash=run.data_hash(),
        val_metrics=run.load_val_metrics(),
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def pretrained_source(backbone: str, weights: str, jpeg_scale: JpegScale, progress: Progress) -> ExportSource:
    """A network with its own ImageNet head: of torchvision, with preprocessing of its weights of equal content, or the
    bundled one.

    Raises `ConfigError` or `WeightsError`.
    """
    found = find_weights(find_backbone_info(backbone), weights)
    if found is None:
        raise ConfigError(
            "a pretrained network without weights would export random numbers", options=["weights=imagenet"]
        )
    class_names, listed = imagenet_classes(backbone)
    info = find_backbone_info(backbone, found.sha256)
    if backbone != BUNDLED:
        listed = str(torchvision_weights(backbone, found.sha256))
    what = "class names" if backbone == BUNDLED else "preprocessing and class names"
    progress.say(f"{what} of torchvision's {listed}")
    classifier = build_classifier(backbone)
    load_into(classifier, read_weights(found, backbone))
    size = (info.image_size, info.image_size)
    preprocessing = build_preprocessing(
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
    module = DeployedClassifier(Normalize(info.mean, info.std), classifier)
    return ExportSource(module, ("probabilities",), class_names, preprocessing, provenance)


def _public_config(config: TrainConfig) -> dict[str, Any]:
    """The options without paths, which are private; file names of weights and pipelines are kept."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    plain["data"] = Path(config.data).name
    del plain["out"]
    for name in ("weights", "augment", "unlabeled", "images", "taxonomy", "boxes"):
        plain[name] = None if plain[name] is None else Path(str(plain[name])).name
    return plain
