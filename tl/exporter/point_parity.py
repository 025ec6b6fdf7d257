"""Proof that a landmark file finds what was validated, on real pictures; or `ParityError` and no file.

Compares (1) torch with onnxruntime on every output, alone and in batches, and (2) the trainer's points with what
`tl.runtime` gives from file to result. Knows points and placements. Does not know runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tl.errors import ParityError
from tl.exporter.comparison import BATCH_SIZES
from tl.runtime.contract import Parity
from tl.runtime.geometry import Placement, Region
from tl.runtime.landmark_ensemble import LandmarkEnsemble
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure
from tl.runtime.session import Session
from tl.trainer.data import Picture

# In pixels of the input. fp32 sums differ by thousandths; a half-pixel fault of the geometry by far more.
TOLERANCE_PX = 0.05
_CONFIDENCE_TOLERANCE = 1e-3
# In input pixels: a training on CUDA may have rounded its convolutions to TF32.
CLAIM_TOLERANCE_PX = 0.25


def check_point_parity(
    session: Session,
    pictures: Sequence[Picture],
    placements: Sequence[Placement],
    inputs: NDArray[np.uint8],
    expected: Mapping[str, NDArray[np.float32]],
) -> Parity:
    """Compare what `session` gives with what torch gave: `expected` output name -> (N, ...), `keypoints` among them.

    `inputs`: the pictures as the trainer's evaluation sees them, uint8 (N, H, W, 3). Raises `ParityError`.
    """
    worst = dict.fromkeys(expected, 0.0)
    for size in BATCH_SIZES:
        for start in range(0, len(inputs), size):
            chunk = slice(start, start + size)
            for name, value in zip(expected, session.run(inputs[chunk], list(expected)), strict=True):
                worst[name] = max(worst[name], _difference(value, expected[name][chunk]))
    served = np.stack([p.to_input(xy) for p, xy in zip(placements, _serve(session, pictures), strict=True)])
    pipeline = _difference(served, expected["keypoints"])
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
            f"parity failed on {len(inputs)} pictures (allowed: {TOLERANCE_PX:g} px of the input): "
            f"{'; '.join(faults)}; no file was written"
        )
    return report


def check_point_claims(
    points_xy: NDArray[np.floating],
    pictures: Sequence[Picture],
    placements: Sequence[Placement],
    claimed: Mapping[str, NDArray[np.float64]],
) -> None:
    """Raise `ParityError` where the network does not find what its training reported for the same pictures.

    `points_xy` (N, K, 2) in input pixels; `claimed`: picture path -> (K, 2) in pixels of the photo.
    """
    known = [i for i, picture in enumerate(pictures) if picture.path in claimed]
    if not known:
        return
    worst = max(_difference(points_xy[i], placements[i].to_input(claimed[pictures[i].path])) for i in known)
    if not worst < CLAIM_TOLERANCE_PX:
        raise ParityError(
            f"the run's predictions_val.csv and its network differ by {worst:.2g} input pixels on its own validation "
            f"pictures (allowed: {CLAIM_TOLERANCE_PX:g}): the run or a picture was changed; train again; no file was "
            "written"
        )


def _serve(session: Session, pictures: Sequence[Picture]) -> list[NDArray[np.float64]]:
    ensemble = LandmarkEnsemble([session], boxes=_boxes(pictures), margin=_no_margin(pictures))
    rows = []
    for result in Predictor(ensemble, with_votes=False).predict_iter([picture.path for picture in pictures]):
        if isinstance(result, Failure):
            raise ParityError(f"{result.path}: the trainer read this picture, the runtime did not: {result.error}")
        rows.append(result.keypoints_xy)
    return rows


def _boxes(pictures: Sequence[Picture]) -> dict[str, Region] | None:
    boxes = {picture.path: picture.region for picture in pictures if picture.region is not None}
    return boxes or None


def _no_margin(pictures: Sequence[Picture]) -> float | None:
    """The regions are widened already."""
    return 0.0 if _boxes(pictures) else None


def _difference(value: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    return float(np.abs(value - wanted).max()) if np.isfinite(value).all() else float("inf")
