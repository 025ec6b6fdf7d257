"""Score landmark files on annotated pictures: each member and every way of merging, predicted once. Needs no torch.

Knows the runtime, landmark files and metrics. Does not know training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError
from tl.runtime.geometry import Region, region_of_points
from tl.runtime.landmark_files.files import picture_finder, read_landmarks
from tl.runtime.landmarks import PictureLandmarks
from tl.runtime.merging import Merging, merge_points
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure, Landmarks
from tl.trainer.data import SPLITS
from tl.trainer.landmarks.metrics import landmark_metrics
from tl.trainer.progress import Progress

COLUMNS = (
    "model",
    "merging",
    "n",
    "points",
    "error_px",
    "ci_low",
    "ci_high",
    "rmse_px",
    "normalised_error",
    "extent_error",
)


@dataclass(frozen=True)
class PointEvaluation:
    """`rows`: metrics of each model and of the merged points. `worst`: pictures by mean error, the largest first."""

    rows: list[dict[str, Any]]
    failures: list[Failure]
    worst: list[tuple[str, float]]


@dataclass(frozen=True)
class AnnotatedPictures:
    """Pictures to score on: their split's name, paths and landmarks, in one order."""

    split: str
    paths: tuple[str, ...]
    landmarks: tuple[PictureLandmarks, ...]
    keypoint_names: tuple[str, ...]
    remarks: tuple[str, ...]

    def boxes(self, region: Literal["whole", "box", "points"]) -> dict[str, Region] | None:
        """Path -> what a model of `region` was trained to look at: the drawn box, or the box of the true points."""
        if region == "whole":
            return None
        pairs = zip(self.paths, self.landmarks, strict=True)
        if region == "box":
            return {path: picture.box_xywh for path, picture in pairs if picture.box_xywh is not None}
        return {
            path: region_of_points(picture.keypoints_xy, 0.0)
            for path, picture in pairs
            if not np.isnan(picture.keypoints_xy).all()
        }


def read_split(
    data: str | os.PathLike[str], asked: str | None, images: str | os.PathLike[str] | None = None
) -> AnnotatedPictures:
    """The asked split of a landmark file, or test, else val, else everything. `images`: as for `picture_finder`.

    Raises `DataError`.
    """
    landmarks = read_landmarks(data, images)
    find = picture_finder(data, images)
    present = [split for split in SPLITS if any(picture.split == split for picture in landmarks.pictures)]
    name = asked or next((split for split in ("test", "val", "train") if split in present), "all")
    chosen = [picture for picture in landmarks.pictures if name == "all" or picture.split == name]
    if not chosen:
        raise DataError(f"{data}: has no '{name}' split (found: {', '.join(present) or 'none'}); --split all takes all")
    if all(np.isnan(picture.keypoints_xy).all() for picture in chosen):
        raise DataError(f"{data}: no picture of split '{name}' has a point to score against")
    paths = tuple(find(picture.name) for picture in chosen)
    return AnnotatedPictures(name, paths, tuple(chosen), landmarks.keypoint_names, landmarks.remarks)


def evaluate_points(
    predictor: Predictor[Landmarks], pictures: AnnotatedPictures, progress: Progress
) -> PointEvaluation:
    """Predict every picture once and score what can be read.

    Raises `DataError` for points that the model does not know, or if no picture can be read.
    """
    order = _order(predictor.keypoint_names, pictures.keypoint_names)
    progress.start("evaluating", len(pictures.paths), "pictures")
    found: list[Landmarks] = []
    true: list[PictureLandmarks] = []
    failures: list[Failure] = []
    for result, landmarks in zip(predictor.predict_iter(pictures.paths), pictures.landmarks, strict=True):
        progress.advance()
        if isinstance(result, Failure):
            failures.append(result)
        else:
            found.append(result)
            true.append(landmarks)
    if not found:
        raise DataError(f"none of the {len(pictures.paths)} pictures can be read, first: {failures[0].error}")
    true_xy = np.stack([picture.keypoints_xy[order] for picture in true])
    scales = np.array([result.input_per_photo for result in found])  # (N, M, 2)
    shared = scales[:, 0] if (scales == scales[:, :1]).all() else None
    mm_per_px = np.array([np.nan if p.mm_per_px is None else p.mm_per_px for p in true])

    def row(
        model: str, merging: str, points: NDArray[np.float64], scale: NDArray[np.float64] | None = shared
    ) -> dict[str, Any]:
        scores = landmark_metrics(points, true_xy, predictor.keypoint_names, scale, mm_per_px)
        return {"model": model, "merging": merging, **scores}

    merged = np.stack([result.keypoints_xy for result in found])
    rows = []
    if predictor.with_votes:
        members = np.stack([result.members_xy for result in found if result.members_xy is not None])
        rows = [row(name, "", members[:, m], scales[:, m]) for m, name in enumerate(predictor.member_names)]
        settings = predictor.ensemble.key
        rules: tuple[Merging, ...] = ("mean", "median")
        for rule in rules:
            rows.append(row("ensemble", rule, merge_points(members, rule, settings["weights"]).keypoints_xy))
        if settings["merging"] not in rules:
            rows.append(row("ensemble", settings["merging"], merged))
    else:
        rows.append(row(predictor.member_names[0], "", merged))
    return PointEvaluation(rows, failures, _worst(found, true_xy, merged))


def _order(wanted: Sequence[str], given: Sequence[str]) -> list[int]:
    if lacking := [name for name in wanted if name not in given]:
        raise DataError(
            f"the annotations have no point '{lacking[0]}', which the model finds (found: {', '.join(given)})"
        )
    return [list(given).index(name) for name in wanted]


def _worst(
    found: Sequence[Landmarks], true_xy: NDArray[np.float64], merged: NDArray[np.float64]
) -> list[tuple[str, float]]:
    errors = np.linalg.norm(merged - true_xy, axis=2)
    has = ~np.isnan(errors).all(axis=1)
    means = [(found[n].path, float(np.nanmean(errors[n]))) for n in np.flatnonzero(has).tolist()]
    return sorted(means, key=lambda pair: -pair[1])
