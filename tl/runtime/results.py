"""Results of a prediction: small frozen dataclasses with numpy arrays, and their conversion to plain values.

Independent of models and file formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from tl.runtime.ensembles.taxonomy import Ranked
from tl.runtime.imaging.regions import Box
from tl.runtime.landmarks.shapes import centroid_size

BoxUnit = Literal["pixels", "relative"]


@dataclass(frozen=True)
class MemberVotes:
    """The votes behind the label of an ensemble.

    `labels`: label of each member, in member order. `probabilities`: float32 (M, C), in the ensemble's class order.
    `agreement`: share of members that voted for the final label. `entropy`: entropy of the combined probabilities, in
    nats. `mutual_information`: the part of that entropy due to disagreement between members, in nats. `margin`:
    difference between the two highest combined probabilities.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    agreement: float
    entropy: float
    mutual_information: float
    margin: float


@dataclass(frozen=True)
class Classification:
    """Prediction for one image. `probabilities`: float32 (C,) in the order of `class_names`.

    `confidence`: probability of the predicted class. If the prediction was rejected, `label` is "?", `confidence` is
    that of the class it would have been, and `reason` says why. `class_set`: prediction set, which contains the true
    class with the requested coverage, most probable class first; None if no coverage was requested. `ood_score`:
    out-of-distribution score, higher for images less like the training images; None if the model file has none.
    `votes`: None for a single model. `ranked`: the most special group of classes that is sure enough; None without a
    taxonomy and a required confidence. `path`: '' for data without one. `box`: the box that was classified, None for
    the whole image.
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
    ranked: Ranked | None = None
    box: Box | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain: dict[str, Any] = {
            "path": self.path,
            **_plain_box(self.box),
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
        if self.ranked is not None:
            plain |= {
                "rank": self.ranked.rank,
                "rank_label": self.ranked.name,
                "rank_confidence": self.ranked.confidence,
            }
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
    """Landmarks of one image. `keypoints_xy`: float64 (K, 2), (x, y) in pixels of the upright photo.

    Points are in the order of `keypoint_names`; the center of the top-left pixel is (0, 0). `confidence`: float32 (K,)
    in [0, 1], None if a model gives none. `spread_px`: float64 (K,), root mean square distance of the ensemble members
    from the merged point, None for a single model. `shape_distance`: Procrustes distance to the mean shape of the
    training images, None for fewer than three points. `is_odd`: whether that distance is above the limit of usual
    shapes. `image_hw`: size of the upright photo. `region_xywh`: the region of the photo given to the first model.
    `input_per_photo`: for each model, input pixels per photo pixel in x and y. `members_xy`: float64 (M, K, 2), points
    of the ensemble members before merging. `mm_per_px`: scale of the photo, None if not given.
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
        """Centroid size of the points, in pixels of the photo: the size of the specimen, independent of its shape."""
        return centroid_size(self.keypoints_xy)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
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


@final
@dataclass(frozen=True)
class Regression:
    """Numbers predicted for one image. `values`: float32 (T,) in the order of `target_names`, in the model's units.

    `widths`: float64 (T,); the intervals `values` - widths to `values` + widths hold the true numbers with the
    requested coverage; None if none was requested. `spread`: float32 (T,), standard deviation of the ensemble's
    members, whose values are `members` (M, T); None for a single model.
    """

    path: str
    target_names: tuple[str, ...]
    values: NDArray[np.float32]
    widths: NDArray[np.float64] | None = None
    spread: NDArray[np.float32] | None = None
    members: NDArray[np.float32] | None = None

    @property
    def low(self) -> NDArray[np.float64] | None:
        """Lower ends of the intervals (T,)."""
        return None if self.widths is None else self.values - self.widths

    @property
    def high(self) -> NDArray[np.float64] | None:
        """Upper ends of the intervals (T,)."""
        return None if self.widths is None else self.values + self.widths

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        shown = {"value": self.values, "low": self.low, "high": self.high, "spread": self.spread}
        columns = {key: each.tolist() for key, each in shown.items() if each is not None}
        if self.members is not None:
            columns["members"] = self.members.T.tolist()
        targets = {name: {key: each[t] for key, each in columns.items()} for t, name in enumerate(self.target_names)}
        return {"path": self.path, "targets": targets}


@dataclass(frozen=True)
class Multilabel:
    """The labels of one image. `probabilities`: float32 (C,), the probability of each of `class_names` by itself.

    `labels`: the names whose probability reaches their threshold, in the order of `class_names`. `label_set`: the names
    that could be labels, most probable first, which lack no more of an image's labels than the requested coverage
    allows; None if none was requested. `agreement`: mean share of an ensemble's members that decide a label as the
    ensemble does; `votes`: the members' own labels; `members`: float32 (M, C), their probabilities; all three None for
    a single model. `ood_score`: as in `Classification`.
    """

    path: str
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...]
    label_set: tuple[str, ...] | None = None
    agreement: float | None = None
    votes: tuple[tuple[str, ...], ...] | None = None
    members: NDArray[np.float32] | None = None
    ood_score: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain: dict[str, Any] = {
            "path": self.path,
            "labels": list(self.labels),
            "probabilities": dict(zip(self.class_names, self.probabilities.tolist(), strict=True)),
        }
        if self.label_set is not None:
            plain["set"] = list(self.label_set)
        if self.ood_score is not None:
            plain["ood_score"] = self.ood_score
        if self.votes is not None:
            plain |= {"agreement": self.agreement, "votes": [list(labels) for labels in self.votes]}
        return plain


@dataclass(frozen=True)
class Failure:
    """An image that could not be predicted, or a box of it, and the reason."""

    path: str
    error: str
    box: Box | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"path": self.path, **_plain_box(self.box), "error": self.error}


class NoBox(Failure):
    """An image without a box, and the reason: it has no label, but nothing failed."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"path": self.path, "reason": self.error}


Prediction = Classification | Landmarks | Multilabel | Regression


@dataclass(frozen=True)
class ClassFields:
    """Optional fields of classification results. `member_names`: names of the voting members.

    `boxes`: the unit of the boxes that were classified, None for whole images. `classifiers`: names of all models.
    """

    class_names: Sequence[str]
    member_names: Sequence[str] = ()
    with_set: bool = False
    with_ood_score: bool = False
    with_reason: bool = False
    with_rank: bool = False
    boxes: BoxUnit | None = None
    classifiers: Sequence[str] = ()


@dataclass(frozen=True)
class PointFields:
    """Optional fields of landmark results. `with_scale`: millimeters per pixel."""

    keypoint_names: Sequence[str]
    with_confidence: bool
    with_spread: bool
    with_scale: bool = False


@dataclass(frozen=True)
class RegressionFields:
    """Optional fields of numbers. `member_names`: names of the ensemble's members."""

    target_names: Sequence[str]
    member_names: Sequence[str] = ()
    with_interval: bool = False


@dataclass(frozen=True)
class MultilabelFields:
    """Optional fields of several labels. `member_names`: names of the ensemble's members."""

    class_names: Sequence[str]
    member_names: Sequence[str] = ()
    with_set: bool = False
    with_ood_score: bool = False


Fields = ClassFields | MultilabelFields | PointFields | RegressionFields
Result = Prediction | Failure


def _plain_box(box: Box | None) -> dict[str, Any]:
    """Return a box as plain values. `box_rel`: in fractions of the image. `box_number`: place among its boxes."""
    if box is None:
        return {}
    plain: dict[str, Any] = {"box_rel" if box.is_relative else "box": list(box.xywh), "box_number": box.number}
    if box.confidence is not None:
        plain["box_confidence"] = box.confidence
    return {**plain, "box_category": box.category} if box.category else plain
