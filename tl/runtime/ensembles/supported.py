"""Check what is required of model files: coverage, rejection of unknown images, classes that can occur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ModelFileError
from tl.runtime.ensembles.selective import SelectivePrediction, conformal_limit
from tl.runtime.imaging.pipeline import TtaKind
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.model_file.contract import Contract
from tl.runtime.session import Session
from tl.runtime.sources.names import composed

WITHOUT_BOXES = "this model was trained on whole images: leave out boxes, or train a model on boxes"


def shared_crop(sessions: Sequence[Session], contracts: Sequence[Contract]) -> BoxCrop | None:
    """Return what all members use around a box, None for whole images. Raises `EnsembleError` if they differ."""
    first = contracts[0].boxes
    for session, contract in zip(sessions[1:], contracts[1:], strict=True):
        if contract.boxes != first:
            raise EnsembleError(
                f"{session.path} uses {_shown_crop(contract.boxes)}, but {sessions[0].path} uses {_shown_crop(first)}: "
                "members that vote together must use the same part of an image; train them alike"
            )
    return first


def check_views(sessions: Sequence[Session], tta: Sequence[TtaKind]) -> None:
    """Raise `EnsembleError` for crops of an image where a graph resizes whole images."""
    resizing = [session.path for session in sessions if session.takes_any_size]
    if resizing and "crops" in tta:
        raise EnsembleError(
            f"{resizing[0]}: resizes whole images in its graph, so tta crops do not apply: leave them out, or use the "
            "file of fixed size"
        )


def _shown_crop(crop: BoxCrop | None) -> str:
    if crop is None:
        return "whole images"
    return f"boxes with margin {crop.margin:g}{', extended to squares' if crop.square else ''}"


def check_selective(sessions: Sequence[Session], contracts: Sequence[Contract], selective: SelectivePrediction) -> None:
    """Raise `EnsembleError` or `ModelFileError` if the files do not support the requirements."""
    if selective.coverage is None and not selective.reject_unknown:
        return
    if len(sessions) > 1:
        raise EnsembleError(
            "coverage and rejection of unknown images are calibrated for a single model file, not for an "
            "ensemble: merge the members into one file and calibrate it"
        )
    if selective.coverage is not None and contracts[0].conformal is None:
        raise ModelFileError(
            f"{sessions[0].path}: contains no scores of held-out images, which coverage requires; export "
            "it from a run with validation data, or merge with calibration images"
        )
    _check_coverage(sessions[0], contracts[0], selective.coverage)
    if selective.reject_unknown and contracts[0].ood is None:
        raise ModelFileError(
            f"{sessions[0].path}: contains no out-of-distribution score; export it again on a machine "
            "that has its training images"
        )


def _check_coverage(session: Session, contract: Contract, coverage: float | None) -> None:
    """Refuse a coverage for which every set would contain all classes: the held-out images are too few to tell."""
    if coverage is None or contract.conformal is None:
        return
    count = len(contract.conformal.scores)
    if conformal_limit(contract.conformal.scores, coverage) == math.inf:
        least = math.ceil(coverage / (1 - coverage) - 1e-9)
        highest = math.floor(1000 * count / (count + 1)) / 1000
        raise ModelFileError(
            f"{session.path}: coverage {coverage:g} requires at least {least} held-out images, and the file has scores "
            f"of {count}: ask for {highest:g} or less"
        )


def set_limit(contract: Contract, selective: SelectivePrediction) -> float | None:
    """Return the limit of conformal scores for the coverage, None if none was requested."""
    if selective.coverage is None or contract.conformal is None:
        return None
    return conformal_limit(contract.conformal.scores, selective.coverage)


def possible_classes(class_names: Sequence[str], only: Sequence[str]) -> NDArray[np.bool_]:
    """Return which classes are in a list, bool (C,). Raises `EnsembleError` for an unknown class or an empty list."""
    names = {composed(name) for name in only}
    if unknown := sorted(names - set(class_names)):
        near = get_close_matches(unknown[0], class_names, n=1)
        hint = f" (nearest: '{near[0]}')" if near else ""
        raise EnsembleError(f"'{unknown[0]}' is not a class of the models{hint}")
    if not names:
        raise EnsembleError("the list of classes that can occur is empty")
    return np.array([name in names for name in class_names])
