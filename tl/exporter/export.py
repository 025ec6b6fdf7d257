"""Export a run or a pretrained network to one verified model file: graph, parity, golden samples, contract.

Contains the order of the steps. Does not build networks (`export_source`) and does not train.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.data.images import check_readable, load_images
from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, DataError
from tl.exporter.export_source import (
    DEFAULT_OUTPUTS,
    ExportSource,
    ExtraOutputs,
    class_source,
    landmark_source,
    multilabel_source,
    pretrained_source,
    regression_source,
)
from tl.exporter.parity import check_claims, check_parity, check_point_claims, check_point_parity, run_torch, spread
from tl.exporter.publish import (
    GoldenSource,
    build_golden,
    check_model_name,
    embed_contract,
    publish,
    synthetic_inputs,
    uncertified_contract,
)
from tl.progress import Progress
from tl.runtime.imaging.decode import read_size
from tl.runtime.imaging.geometry import place
from tl.runtime.imaging.preprocessing import JpegScale
from tl.runtime.model_file.contract import (
    Contract,
    Golden,
    Parity,
)
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.session import Session
from tl.runtime.sources.paths import find_images
from tl.trainer.models.backbones import imagenet_classes
from tl.trainer.models.build import to_onnx
from tl.trainer.run_folder.run import Run

MAX_VALIDATION_IMAGES = 64


@dataclass(frozen=True)
class Exported:
    """The finished file and its contract."""

    path: Path
    contract: Contract


def export_run(
    run: Run,
    out: str | os.PathLike[str],
    progress: Progress,
    *,
    parity_images: Sequence[str | os.PathLike[str]] = (),
    golden: GoldenSource = "validation",
    further: ExtraOutputs = DEFAULT_OUTPUTS,
) -> Exported:
    """Export a run's best network; checks parity on its validation images and `parity_images`.

    Raises `ConfigError`, `RunError`, `DataError`, `ParityError` or `OutputError`.
    """
    config = run.load_config()
    if config.task != "classification" and (further.cam or further.taxonomy is not None):
        what = "class activation maps are" if further.cam else "a taxonomy is"
        raise ConfigError(f"{what} only for classifiers, but this run's task is {config.task}")
    if config.task != "multilabel" and further.min_precision is not None:
        raise ConfigError(f"min_precision is only for several labels, but this run's task is {config.task}")
    origin = _source_of(run, str(config.task), progress, further)
    own = spread(run.images("val"), MAX_VALIDATION_IMAGES)
    extra = [LabeledImage(path, path, "") for path in find_images(parity_images).paths]
    if extra and (origin.boxes is not None or any(image.region is not None for image in own)):
        raise ConfigError(
            "parity_images: this model uses a region of each image, which is unknown for other images; "
            "leave parity_images out"
        )
    return _export(origin, out, own, extra, golden, progress)


def validation_paths(run: Run) -> list[str]:
    """Return the paths of the validation images that an export is checked on."""
    return [image.path for image in spread(run.images("val"), MAX_VALIDATION_IMAGES)]


def _source_of(run: Run, task: str, progress: Progress, further: ExtraOutputs) -> ExportSource:
    if task == "landmarks":
        return landmark_source(run)
    if task == "regression":
        return regression_source(run)
    return (multilabel_source if task == "multilabel" else class_source)(run, progress, further)


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
    """Export a torchvision model with its own ImageNet head; checks parity on `images` and `parity_images`.

    Preprocessing is that of the torchvision weights with the same content, otherwise that of the backbone's default
    weights. `jpeg_scale` "2x" decodes large JPEGs faster, with slightly different pixels.
    Raises `ConfigError`, `WeightsError`, `DataError`, `ParityError` or `OutputError`.
    """
    imagenet_classes(backbone)  # rejects an unknown name before searching for files
    paths = spread(find_images(images).paths, MAX_VALIDATION_IMAGES)
    if not paths:
        raise DataError(f"no images to check parity on in {', '.join(map(str, images))}")
    origin = pretrained_source(backbone, weights, jpeg_scale, progress)
    own, extra = (
        [LabeledImage(path, path, "") for path in group] for group in (paths, find_images(parity_images).paths)
    )
    return _export(origin, out, own, extra, golden, progress)


def _export(
    origin: ExportSource,
    out: str | os.PathLike[str],
    own: Sequence[LabeledImage],
    extra: Sequence[LabeledImage],
    golden: GoldenSource,
    progress: Progress,
) -> Exported:
    """Check parity on all images; draw golden samples only from `own`, since the others are for checking only."""
    check_model_name(out)
    if not own and not extra:
        raise DataError(
            "the run's validation images no longer exist, but the parity check requires images",
            options=["parity_images=DIR"],
        )
    store, bad = load_images([*own, *extra], origin.preprocessing, "ram", progress)
    check_readable(bad, "all images must be readable for the parity check: fix or remove them")
    inputs = np.stack([store.input(i) for i in range(len(store.images))])
    progress.start("exporting", 3, "steps")
    model = to_onnx(origin.module, origin.preprocessing.input_shape, origin.outputs)
    embed_contract(model, _uncertified(origin))
    progress.advance(note="parity")

    def certify(path: Path) -> Contract:
        prove = _prove_outputs if origin.landmarks is None else _prove_points
        parity, expected = prove(origin, Session(path, device="cpu"), store.images, inputs)
        progress.advance(note="self-test")
        samples = _golden(golden if own else "synthetic", origin, inputs[: len(own)], expected[: len(own)])
        return replace(_uncertified(origin), parity=parity, golden=samples)

    contract = publish(model, out, certify, lambda path: run_selftest(path, device="cpu"))
    progress.advance(note="done")
    return Exported(Path(out), contract)


def _prove_outputs(
    origin: ExportSource, session: Session, images: Sequence[LabeledImage], inputs: NDArray[np.uint8]
) -> tuple[Parity, NDArray[np.float32]]:
    sources = [image.source for image in images]
    parity, found = check_parity(origin.module, session, sources, inputs, origin.outputs)
    check_claims(found, [image.key for image in images], origin.claimed, _uncertified(origin).output_scale)
    return parity, found


def _prove_points(
    origin: ExportSource, session: Session, images: Sequence[LabeledImage], inputs: NDArray[np.uint8]
) -> tuple[Parity, NDArray[np.float32]]:
    expected = dict(zip(origin.outputs, run_torch(origin.module, inputs), strict=True))
    placements = [place(read_size(image.path), origin.preprocessing, image.region) for image in images]
    parity = check_point_parity(session, images, placements, inputs, expected)
    check_point_claims(expected["keypoints"], images, placements, origin.claimed)
    return parity, expected["keypoints"]


def _uncertified(origin: ExportSource) -> Contract:
    return uncertified_contract(
        origin.names,
        origin.preprocessing,
        origin.outputs,
        origin.provenance,
        temperature=origin.temperature,
        landmarks=origin.landmarks,
        conformal=origin.conformal,
        ood=origin.ood,
        taxonomy=origin.taxonomy,
        regression=origin.regression,
        multilabel=origin.multilabel,
        boxes=origin.boxes,
    )


def _golden(
    source: GoldenSource, origin: ExportSource, inputs: NDArray[np.uint8], expected: NDArray[np.float32]
) -> Golden:
    """Build golden samples. The expected output is always torch's; the finished file is then tested against it."""
    if source == "synthetic":
        inputs = synthetic_inputs(origin.preprocessing.input_shape)
        expected = run_torch(origin.module, inputs)[0]
    return build_golden(source, inputs, expected, _uncertified(origin).task)
