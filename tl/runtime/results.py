"""What a prediction gives back: small frozen dataclasses with numpy arrays, and their plain form.

Knows neither models nor file formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.runtime.landmarks.shapes import centroid_size


@dataclass(frozen=True)
class MemberVotes:
    """How an ensemble came to its label.

    `labels`: each member's own label, in member order. `probabilities`: float32 (M, C), in the ensemble's class order.
    `agreement`: share of members that voted for the decided label. `entropy`: of the voted probabilities, in nats.
    `mutual_information`: how much of it is that members differ, in nats. `margin`: of the voted probabilities, how much
    more probable the first class is than the second.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    agreement: float
    entropy: float
    mutual_information: float
    margin: float


@dataclass(frozen=True)
class Classification:
    """One image's prediction. `probabilities`: float32 (C,) in the order of `class_names`.

    `confidence` is the probability of `label`, or of what it would be: it is "?" where the prediction was rejected, for
    `reason`. `class_set`: the classes that hold the true one as often as was asked for, most probable first, None if it
    was not. `ood_score`: how unlike training the image is, None for files that do not say. `votes` is None for a
    single model. `path` is '' for data without one.
    """

    path: str
    label: str
    confidence: float
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    votes: MemberVotes | None = None
    class_set: tuple[str, ...] | None = None
    ood_score: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = {
            "path": self.path,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(zip(self.class_names, self.probabilities.tolist(), strict=True)),
        }
        if self.class_set is not None:
            plain["set"] = list(self.class_set)
        if self.ood_score is not None:
            plain["ood_score"] = self.ood_score
        if self.reason:
            plain["reason"] = self.reason
        if self.votes is not None:
            plain |= {
                "agreement": self.votes.agreement,
                "entropy": self.votes.entropy,
                "mutual_information": self.votes.mutual_information,
                "margin": self.votes.margin,
                "votes": list(self.votes.labels),
            }
        return plain


@dataclass(frozen=True)
class Landmarks:
    """One image's points. `keypoints_xy`: float64 (K, 2), (x, y) in pixels of the upright photo, in the order of
    `keypoint_names`; the center of its top-left pixel is (0, 0).

    `confidence`: float32 (K,) in [0, 1], None where a model gives none. `spread_px`: float64 (K,), root mean square
    distance of an ensemble's members from the merged point, None for a single model. `shape_distance`: Procrustes
    distance to the mean shape of training, None under three points; `is_odd`: it is farther than any usual one.
    `image_hw`: of the upright photo. `region_xywh`: the part of it that the first model looked at. `input_per_photo`:
    for each model its input pixels a photo pixel in x and y. `members_xy`: float64 (M, K, 2), an ensemble's points
    before merging. `mm_per_px`: the photo's scale, None where nobody gave one.
    """

    path: str
    keypoint_names: tuple[str, ...]
    keypoints_xy: NDArray[np.float64]
    confidence: NDArray[np.float32] | None
    spread_px: NDArray[np.float64] | None
    shape_distance: float | None
    is_odd: bool
    image_hw: tuple[int, int]
    region_xywh: tuple[float, float, float, float]
    input_per_photo: tuple[tuple[float, float], ...]
    members_xy: NDArray[np.float64] | None = None
    mm_per_px: float | None = None

    @property
    def centroid_size(self) -> float:
        """Of the points, in pixels of the photo: how large the specimen is, whatever its shape."""
        return centroid_size(self.keypoints_xy)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        points: dict[str, dict[str, float]] = {}
        for k, name in enumerate(self.keypoint_names):
            x, y = self.keypoints_xy[k].tolist()
            points[name] = {"x": x, "y": y}
            if self.confidence is not None:
                points[name]["confidence"] = float(self.confidence[k])
            if self.spread_px is not None:
                points[name]["spread_px"] = float(self.spread_px[k])
        return {
            "path": self.path,
            "mm_per_px": self.mm_per_px,
            "keypoints": points,
            "centroid_size": self.centroid_size,
            "shape_distance": self.shape_distance,
            "is_odd": self.is_odd,
            "image_hw": list(self.image_hw),
            "region_xywh": list(self.region_xywh),
        }


@dataclass(frozen=True)
class Failure:
    """An image that gave no prediction, and why."""

    path: str
    error: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"path": self.path, "error": self.error}


Prediction = Classification | Landmarks


@dataclass(frozen=True)
class ClassFields:
    """What the results of classifiers hold beside label, confidence and probabilities. `member_names`: whose votes."""

    class_names: Sequence[str]
    member_names: Sequence[str] = ()
    with_set: bool = False
    with_ood_score: bool = False
    with_reason: bool = False


@dataclass(frozen=True)
class PointFields:
    """What the results of landmark models hold beside points. `with_scale`: millimeters per pixel."""

    keypoint_names: Sequence[str]
    with_confidence: bool
    with_spread: bool
    with_scale: bool = False


Fields = ClassFields | PointFields
Result = Prediction | Failure
