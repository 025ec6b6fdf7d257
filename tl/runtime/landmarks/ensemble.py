"""Run one or several landmark models on whole images or on regions of them, and merge their points.

Depends on sessions, regions and merge rules. Contains no landmark file formats and no threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ImageReadError, ModelFileError
from tl.runtime.ensembles.ensemble import check_weights, member_names, pad_batch
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import PlacedInput, load_views
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Box, Located, Region, region_of_points, square, widen
from tl.runtime.landmarks.shapes import procrustes_distance
from tl.runtime.model_file.contract import LandmarkFacts
from tl.runtime.results import Landmarks, PointFields
from tl.runtime.session import Session
from tl.runtime.sources.paths import hash_file

Merging = Literal["mean", "median", "confidence"]


@dataclass(frozen=True)
class Merged:
    """Points float64 (N, K, 2), their spread_px (N, K), and confidence float32 (N, K) or None if members have none.

    `spread_px`: root mean square distance of the members from the merged point. `confidence`: mean over the members.
    """

    keypoints_xy: NDArray[np.float64]
    spread_px: NDArray[np.float64]
    confidence: NDArray[np.float32] | None


def merge_points(
    members_xy: NDArray[np.float64],
    merging: Merging = "mean",
    weights: Sequence[float] | None = None,
    confidence: NDArray[np.float32] | None = None,
) -> Merged:
    """Merge the members' points (N, M, K, 2).

    mean: weighted mean. median: median of each coordinate, unweighted. confidence: mean weighted by `weights` and
    `confidence` (N, M, K); `weights` alone where all members' confidences are 0. `weights`: M positive numbers, None
    for equal weights.
    Raises ValueError for invalid shapes or weights or an unknown rule.
    """
    if members_xy.ndim != 4 or members_xy.shape[3] != 2 or members_xy.shape[1] == 0:
        raise ValueError(f"members' points must be (N, M, K, 2), got {members_xy.shape}")
    given = np.ones(members_xy.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (members_xy.shape[1],) or not np.isfinite(given).all() or not (given > 0).all():
        raise ValueError(f"weights must be {members_xy.shape[1]} positive numbers, got {weights}")
    if merging == "median":
        merged = np.median(members_xy, axis=1)
    elif merging == "mean":
        merged = _weighted(members_xy, np.broadcast_to(given[None, :, None], members_xy.shape[:3]))
    elif merging == "confidence":
        if confidence is None:
            raise ValueError("merging by confidence requires members that output a confidence")
        own = confidence.astype(np.float64)
        own = np.where(own.sum(axis=1, keepdims=True) > 0, own, 1.0)
        merged = _weighted(members_xy, own * given[None, :, None])
    else:
        raise ValueError(f"unknown merging {merging!r}: expected mean, median or confidence")
    squared = ((members_xy - merged[:, None]) ** 2).sum(axis=3)
    mean_confidence = None if confidence is None else confidence.mean(axis=1, dtype=np.float32)
    return Merged(merged, np.sqrt(squared.mean(axis=1)), mean_confidence)


def _weighted(members_xy: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    summed = (members_xy * weights[..., None]).sum(axis=1)
    return np.asarray(summed / weights.sum(axis=1)[..., None])


@dataclass(frozen=True)
class _View:
    """The preprocessing and the region of an image that a member uses."""

    preprocessing: Preprocessing
    region: Literal["whole", "box", "points"]
    margin: float


# The inputs of one image for all models.
PlacedInputs = dict[_View, PlacedInput]


class LandmarkEnsemble:
    """One or more landmark models whose points are merged in pixels of the photo. Thread-safe.

    Members may differ in input size and region; points are matched by name, in the first member's order. Models trained
    on boxes need one box per image, from `boxes` (path -> `Box`, or left, top, width and height in pixels). Models
    trained on the square around the points take it from `boxes` too, or from the points of a `locator`. `margin`
    overrides the margin stored in the models. `mm_per_px`: the scale of all photos, or path -> scale; it is copied to
    the results.
    Raises `EnsembleError` if the members are incompatible, or if the boxes or the locator are missing or have no
    effect.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        merging: Merging = "mean",
        weights: Sequence[float] | None = None,
        locator: LandmarkEnsemble | None = None,
        boxes: Mapping[str, Region | Box] | None = None,
        margin: float | None = None,
        mm_per_px: float | Mapping[str, float] | None = None,
    ) -> None:
        check_weights(sessions, weights)
        self.sessions = tuple(sessions)
        self.facts = tuple(_facts(session) for session in sessions)
        self.merging, self.weights = merging, weights
        self.member_names = member_names([session.path for session in sessions])
        contracts = [session.contract for session in sessions if session.contract is not None]
        self.class_names: tuple[str, ...] = ()
        self.keypoint_names = contracts[0].keypoint_names
        self.num_views = 1
        for contract, name in zip(contracts, self.member_names, strict=True):
            if set(contract.keypoint_names) != set(self.keypoint_names):
                raise EnsembleError(f"{name} predicts different points than {self.member_names[0]}")
        self._orders = [[c.keypoint_names.index(name) for name in self.keypoint_names] for c in contracts]
        self._views = [
            _View(
                c.preprocessing, f.region, 0.0 if f.region == "whole" else f.region_margin if margin is None else margin
            )
            for c, f in zip(contracts, self.facts, strict=True)
        ]
        self.has_confidence = all("keypoint_confidence" in contract.outputs for contract in contracts)
        if merging == "median" and weights is not None:
            raise EnsembleError(
                "merging by median does not use weights: leave them out, or merge by mean or confidence"
            )
        if merging == "confidence" and not self.has_confidence:
            raise EnsembleError("merging by confidence requires models that output a confidence: use mean or median")
        self._locator = locator
        self._boxes = None if boxes is None else {os.path.abspath(path): box for path, box in boxes.items()}
        self._scales: dict[str, float] | float | None
        if isinstance(mm_per_px, Mapping):
            self._scales = {os.path.abspath(path): scale for path, scale in mm_per_px.items()}
        else:
            self._scales = mm_per_px
        self._check_regions(margin)

    def _check_regions(self, margin: float | None) -> None:
        regions = {view.region for view in self._views}
        seen = zip(self.sessions, self._views, strict=True)
        path = next((session.path for session, view in seen if view.region != "whole"), self.sessions[0].path)
        if regions == {"whole"}:
            if self._locator is not None or self._boxes is not None or margin is not None:
                raise EnsembleError(f"{path}: this model uses whole photos: leave out locator, boxes and crop_margin")
        elif self._locator is not None and self._boxes is not None:
            raise EnsembleError("locator and boxes both select the region of a photo: give one of them")
        elif self._boxes is None and "box" in regions:
            raise EnsembleError(
                f"{path}: this model was trained on annotated boxes: give the boxes of these photos",
                options=["boxes=boxes.csv"],
            )
        elif self._boxes is None and self._locator is None:
            raise EnsembleError(
                f"{path}: this model uses the region around the points: give a coarse model that locates "
                "it, or boxes around the points",
                options=["locator=coarse.onnx", "boxes=boxes.csv"],
            )

    @property
    def key(self) -> dict[str, Any]:
        """The settings that results depend on, besides the model files."""
        located = None if self._locator is None else [hash_file(session.path) for session in self._locator.sessions]
        boxes = None if self._boxes is None else sorted(self._boxes.items())
        return {
            "merging": self.merging,
            "weights": None if self.weights is None else list(self.weights),
            "locator": located,
            "boxes": boxes,
            "margins": [view.margin for view in self._views],
            "scales": sorted(self._scales.items()) if isinstance(self._scales, dict) else self._scales,
        }

    def fields(self, *, with_votes: bool) -> PointFields:
        """Return the fields of the results."""
        return PointFields(self.keypoint_names, self.has_confidence, with_votes, self._scales is not None)

    def prepare(self, source: ImageSource, name: str, box: Box | None = None) -> PlacedInputs:
        """Decode an image into the members' inputs, with `box` or else its own. Raises `ImageReadError`."""
        found: Region | Box | None = box
        if box is None and any(view.region != "whole" for view in self._views):
            found = self._look(source, name)
        views = list(dict.fromkeys(self._views))
        placed = load_views(source, [(view.preprocessing, _region(view, found)) for view in views])
        return dict(zip(views, placed, strict=True))

    @property
    def preparer(self) -> None:
        """None: only this process can prepare images, because that may need boxes and the locator's network."""
        return None

    def stack(self, prepared: Sequence[PlacedInputs]) -> Sequence[PlacedInputs]:
        """Return the images unchanged: the placement of each input is needed to convert its points."""
        return prepared

    def results(
        self, names: Sequence[str], prepared: Sequence[PlacedInputs], *, with_votes: bool, pad_to: int = 0
    ) -> list[Landmarks]:
        """Predict the points of prepared images. The last image is repeated until the batch has `pad_to` images."""
        if not names:
            return []
        batch = {
            view: pad_batch(np.stack([each[view].image for each in prepared]), 1, pad_to)
            for view in dict.fromkeys(self._views)
        }
        points = np.empty((len(prepared), len(self.sessions), len(self.keypoint_names), 2))
        confidence = np.ones(points.shape[:3], np.float32) if self.has_confidence else None
        for m, session in enumerate(self.sessions):
            view, order = self._views[m], self._orders[m]
            wanted = ["keypoints", "keypoint_confidence"] if self.has_confidence else ["keypoints"]
            found, *sure = session.run(batch[view], wanted)
            if not np.isfinite(found).all():
                raise ModelFileError(f"{session.path}: outputs points that are not finite: the file is damaged")
            for n, each in enumerate(prepared):
                points[n, m] = each[view].placement.to_image(found[n, order])
            if confidence is not None:
                confidence[:, m] = sure[0][: len(prepared), order]
        merged = merge_points(points, self.merging, self.weights, confidence)
        return [self._result(name, prepared[n], points[n], merged, n, with_votes) for n, name in enumerate(names)]

    def _result(
        self,
        name: str,
        placed: PlacedInputs,
        members_xy: NDArray[np.float64],
        merged: Merged,
        n: int,
        with_votes: bool,
    ) -> Landmarks:
        facts, points = self.facts[0], merged.keypoints_xy[n]
        distance = float("nan")
        if facts.mean_shape is not None:
            distance = procrustes_distance(points, np.array(facts.mean_shape)[self._orders[0]])
        is_shape = math.isfinite(distance)
        return Landmarks(
            path=name,
            keypoint_names=self.keypoint_names,
            keypoints_xy=points,
            confidence=None if merged.confidence is None else merged.confidence[n],
            spread_px=merged.spread_px[n] if with_votes else None,
            shape_distance=distance if is_shape else None,
            is_odd=is_shape and distance > facts.shape_limit,
            image_hw=placed[self._views[0]].image_hw,
            region_xywh=placed[self._views[0]].placement.region_xywh,
            input_per_photo=tuple(placed[view].placement.scale_xy for view in self._views),
            members_xy=members_xy if with_votes else None,
            mm_per_px=self._scales.get(os.path.abspath(name)) if isinstance(self._scales, dict) else self._scales,
        )

    def _look(self, source: ImageSource, name: str) -> Region | Box:
        """Return the box of the specimen, without margin. Raises `ImageReadError`."""
        if self._boxes is not None:
            box = self._boxes.get(os.path.abspath(name))
            if box is None:
                raise ImageReadError(
                    name, "the list of boxes contains no box for this image (paths in it are relative to its folder)"
                )
            return box
        if self._locator is None:
            raise ImageReadError(name, "the location of the specimen is unknown: give a locator or boxes")
        (found,) = self._locator.results([name], [self._locator.prepare(source, name)], with_votes=False)
        return region_of_points(found.keypoints_xy, 0.0)


@dataclass(frozen=True)
class _BoxRegion:
    """What a view uses of a box that may be relative to the image."""

    view: _View
    box: Box

    def region(self, image_hw: tuple[int, int]) -> Region:
        """Return the region in pixels of an image. Raises `ImageReadError` for a box outside."""
        return _around(self.view, self.box.pixels(image_hw))


def _region(view: _View, found: Region | Box | None) -> Region | Located | None:
    """Return the region of the image that a member uses, as in its training; None for the whole image."""
    if view.region == "whole" or found is None:
        return None
    return _BoxRegion(view, found) if isinstance(found, Box) else _around(view, found)


def _around(view: _View, box: Region) -> Region:
    return widen(square(box) if view.region == "points" else box, view.margin)


def _facts(session: Session) -> LandmarkFacts:
    if session.contract is None or session.contract.landmarks is None:
        raise EnsembleError(f"{session.path}: not a landmark model")
    return session.contract.landmarks
