"""Check that a model file gives the same outputs as its original on the same images. Raises `ParityError` if not.

Compares (1) every session output, for single images and batches, and (2) `tl.runtime` from file to result. The
original is a torch module, another file or a landmark network; torch is imported only to run one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.errors import ParityError
from tl.runtime.ensembles.ensemble import Ensemble
from tl.runtime.ensembles.multilabel import MultilabelEnsemble
from tl.runtime.ensembles.regression import RegressionEnsemble
from tl.runtime.imaging.geometry import Placement
from tl.runtime.imaging.regions import Region
from tl.runtime.landmarks.ensemble import LandmarkEnsemble
from tl.runtime.model_file.contract import Parity
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure
from tl.runtime.session import Session
from tl.runtime.sources.boxed_images import PredictionSource

if TYPE_CHECKING:
    from torch import nn

Item = TypeVar("Item")

# fp32 sums differ only by order; a wrong resize or channel order differs by 1e-2 or more.
TOLERANCE = 1e-4
BATCH_SIZES = (1, 8)
# Two classes closer than this fraction of the tolerance are a tie, decided by rounding: seen once in 64 photos.
_TIE = 0.1


@dataclass(frozen=True)
class Original:
    """Names of the original for messages: its computation, its path from file to result, and what ran that path."""

    network: str
    pipeline: str
    reader: str


def check_outputs(
    session: Session,
    sources: Sequence[PredictionSource],
    inputs: NDArray[np.uint8],
    expected: Mapping[str, NDArray[np.float32]],
    original: Original,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Compare the outputs of `session` with those of the original.

    `sources`: the images; `inputs`: the same images, uint8 (N, H, W, 3), as given to the original. `expected`: output
    name -> the original's values (N, ...), including the main output. `tolerance` limits the absolute difference of
    probabilities, or of numbers in standard deviations; for other outputs, it limits the difference as a fraction of
    their largest value. Raises `ParityError`.
    """
    outputs, main = list(expected), _main_output(session)
    worst, scaled = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    for size in BATCH_SIZES:
        for start in range(0, len(inputs), size):
            chunk = slice(start, start + size)
            for name, value in zip(outputs, session.run(inputs[chunk], outputs), strict=True):
                unit = main.scale if name == main.name else 1.0
                difference = _difference(value, expected[name][chunk], unit)
                worst[name] = max(worst[name], difference)
                largest = 1.0 if name == main.name else max(1.0, float(np.abs(expected[name]).max()))
                scaled[name] = max(scaled[name], difference / largest)
    wanted = expected[main.name]
    served = serve(session, sources, original.reader)
    pipeline = float((np.abs(served - wanted) / main.scale).max())
    agreement = agreement_of(served, wanted, _TIE * tolerance) if main.is_choice else None
    report = Parity(len(inputs), BATCH_SIZES, worst, pipeline, agreement, tolerance)
    _check(report, scaled, original, main.name)
    return report


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` (2 or more) of the items, evenly spaced; a sorted list then covers its classes evenly."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def agreement_of(served: NDArray[np.float32], wanted: NDArray[np.float32], tie: float) -> float:
    """Return the fraction of images whose served label equals the original's, or is tied with it in the original."""
    chosen = np.take_along_axis(wanted, served.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((chosen >= wanted.max(axis=1) - tie).mean())


@dataclass(frozen=True)
class _MainOutput:
    """The output that decides, and what its differences are divided by. `is_choice`: its largest value decides."""

    name: str
    scale: NDArray[np.float32] | float
    is_choice: bool


def _main_output(session: Session) -> _MainOutput:
    contract = session.contract
    if contract is None:
        return _MainOutput("probabilities", 1.0, is_choice=True)
    return _MainOutput(contract.main_output, contract.output_scale, contract.task == "classification")


def _difference(value: NDArray[np.float32], wanted: NDArray[np.float32], scale: NDArray[np.float32] | float) -> float:
    return float((np.abs(value - wanted) / scale).max()) if np.isfinite(value).all() else float("inf")


def serve(session: Session, sources: Sequence[PredictionSource], reader: str) -> NDArray[np.float32]:
    """Return what `tl.runtime` gives for the images: probabilities (N, C) or values (N, T).

    Raises `ParityError` for an image that only `reader` could read.
    """
    task = "classification" if session.contract is None else session.contract.task
    kinds: dict[str, Any] = {"multilabel": MultilabelEnsemble, "regression": RegressionEnsemble}
    predictor: Predictor[Any] = Predictor(kinds.get(task, Ensemble)([session]), with_votes=False)
    rows = []
    for result in predictor.predict_iter(sources):
        if isinstance(result, Failure):
            raise ParityError(
                f"{result.path}: {reader} could read this image, but the runtime could not: {result.error}"
            )
        rows.append(result.values if task == "regression" else result.probabilities)
    return np.stack(rows)


def _check(report: Parity, scaled: dict[str, float], original: Original, main: str) -> None:
    faults = [
        f"output {name} differs by {value:.2g} between {original.network} and onnxruntime"
        for name, value in scaled.items()
        if not value < report.tolerance
    ]
    if not report.pipeline_max_abs_diff < report.tolerance:
        faults.append(f"{main} differ by {report.pipeline_max_abs_diff:.2g} between {original.pipeline} and runtime")
    if report.top1_agreement is not None and report.top1_agreement < 1:
        faults.append(f"only {report.top1_agreement:.1%} of the labels agree")
    if faults:
        raise ParityError(
            f"parity failed on {report.images} images (allowed: {report.tolerance:.0e}): {'; '.join(faults)}; "
            "no file was written"
        )


# In pixels of the input. fp32 sums differ by thousandths; a half-pixel error in the geometry by far more.
TOLERANCE_PX = 0.05
_CONFIDENCE_TOLERANCE = 1e-3
# In input pixels: training on CUDA may have rounded convolutions to TF32.
CLAIM_TOLERANCE_PX = 0.25


def check_point_parity(
    session: Session,
    images: Sequence[LabeledImage],
    placements: Sequence[Placement],
    inputs: NDArray[np.uint8],
    expected: Mapping[str, NDArray[np.float32]],
) -> Parity:
    """Compare `session` with torch's outputs: `expected` maps output name -> (N, ...) and includes `keypoints`.

    `inputs`: the images as in the trainer's evaluation, uint8 (N, H, W, 3). Raises `ParityError`.
    """
    worst = dict.fromkeys(expected, 0.0)
    for size in BATCH_SIZES:
        for start in range(0, len(inputs), size):
            chunk = slice(start, start + size)
            for name, value in zip(expected, session.run(inputs[chunk], list(expected)), strict=True):
                worst[name] = max(worst[name], _point_difference(value, expected[name][chunk]))
    served = np.stack([p.to_input(xy) for p, xy in zip(placements, serve_points(session, images), strict=True)])
    pipeline = _point_difference(served, expected["keypoints"])
    report = Parity(len(inputs), BATCH_SIZES, worst, pipeline, None, TOLERANCE_PX)
    limits = {name: _CONFIDENCE_TOLERANCE if name == "keypoint_confidence" else TOLERANCE_PX for name in worst}
    faults = [
        f"output {name} differs by {value:.2g} between torch and onnxruntime"
        for name, value in worst.items()
        if not value < limits[name]
    ]
    if not pipeline < TOLERANCE_PX:
        faults.append(f"points differ by {pipeline:.2g} px between training and runtime")
    if faults:
        raise ParityError(
            f"parity failed on {len(inputs)} images (allowed: {TOLERANCE_PX:g} px of the input): "
            f"{'; '.join(faults)}; no file was written"
        )
    return report


def check_point_claims(
    points_xy: NDArray[np.floating],
    images: Sequence[LabeledImage],
    placements: Sequence[Placement],
    claimed: Mapping[str, NDArray[np.float64]],
) -> None:
    """Raise `ParityError` if the network's points differ from those that training reported for the same images.

    `points_xy` (N, K, 2) in input pixels; `claimed`: image path -> (K, 2) in pixels of the photo.
    """
    known = [i for i, image in enumerate(images) if image.path in claimed]
    if not known:
        return
    worst = max(_point_difference(points_xy[i], placements[i].to_input(claimed[images[i].path])) for i in known)
    if not worst < CLAIM_TOLERANCE_PX:
        raise ParityError(
            f"the run's predictions_val.csv and its network differ by {worst:.2g} input pixels on its own validation "
            f"images (allowed: {CLAIM_TOLERANCE_PX:g}): the run or an image has changed; train again; no "
            "file was written"
        )


def serve_points(session: Session, images: Sequence[LabeledImage]) -> list[NDArray[np.float64]]:
    """Return the points (K, 2) that `tl.runtime` gives for each image, in pixels of the photo. Raises `ParityError`."""
    ensemble = LandmarkEnsemble([session], boxes=_boxes(images), margin=_no_margin(images))
    rows = []
    for result in Predictor(ensemble, with_votes=False).predict_iter([image.path for image in images]):
        if isinstance(result, Failure):
            raise ParityError(
                f"{result.path}: the trainer could read this image, but the runtime could not: {result.error}"
            )
        rows.append(result.keypoints_xy)
    return rows


def _boxes(images: Sequence[LabeledImage]) -> dict[str, Region] | None:
    boxes = {image.path: image.region for image in images if image.region is not None}
    return boxes or None


def _no_margin(images: Sequence[LabeledImage]) -> float | None:
    """The margin to apply: the regions already include it."""
    return 0.0 if _boxes(images) else None


def _point_difference(value: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    return float(np.abs(value - wanted).max()) if np.isfinite(value).all() else float("inf")


# Training on CUDA may have rounded convolutions to TF32; another image or network differs by more.
CLAIM_TOLERANCE = 1e-2


def check_parity(
    module: nn.Module,
    session: Session,
    sources: Sequence[PredictionSource],
    inputs: NDArray[np.uint8],
    outputs: Sequence[str],
) -> tuple[Parity, NDArray[np.float32]]:
    """Compare a module with the model file open in `session`, on the images `sources`.

    `inputs`: the same images as in the trainer's evaluation, uint8 (N, H, W, 3). `outputs` names the module's outputs,
    the main one first. Returns the report and torch's main output (N, C). Raises `ParityError`.
    """
    if len(inputs) == 0:
        raise ParityError("no images to check parity on", options=["parity_images=DIR"])
    expected = run_torch(module, inputs)
    wanted = dict(zip(outputs, expected, strict=True))
    report = check_outputs(session, sources, inputs, wanted, Original("torch", "training", "the trainer"))
    return report, expected[0]


def check_claims(
    found: NDArray[np.float32],
    keys: Sequence[Any],
    claimed: Mapping[Any, Sequence[float]],
    scale: NDArray[np.float32] | float = 1.0,
) -> None:
    """Raise `ParityError` if the network's outputs differ from those that training reported for the same images.

    `found` (N, C) of the images `keys`; `claimed` has rows of `predictions_val.csv` for some of them. `scale`: as
    `Contract.output_scale`.
    """
    known = [i for i, key in enumerate(keys) if key in claimed]
    if not known:
        return
    wanted = np.array([claimed[keys[i]] for i in known])
    worst = float((np.abs(found[known] - wanted) / scale).max())
    if not worst < CLAIM_TOLERANCE:
        raise ParityError(
            f"the run's predictions_val.csv and its network differ by {worst:.2g} on its own validation images "
            f"(allowed: {CLAIM_TOLERANCE:.0e}): the run or an image has changed; train again; no file was written"
        )


def run_torch(module: nn.Module, inputs: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A module's outputs in torch on the CPU, in batches of eight. `inputs`: uint8 (N, H, W, 3)."""
    import torch  # merging and adoption compare files in environments without torch

    with torch.no_grad():
        parts = [module(torch.from_numpy(inputs[i : i + 8])) for i in range(0, len(inputs), 8)]
    return [torch.cat(tensors).float().numpy() for tensors in zip(*parts, strict=True)]
