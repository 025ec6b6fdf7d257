"""One or more landmark models: where to look, the points each finds, and one result for each picture.

Knows sessions, contracts, regions and merging. Does not know where pictures come from (`sources`) or formats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import EnsembleError, ImageReadError, ModelFileError
from tl.runtime.columns import PointColumns
from tl.runtime.content import hash_file
from tl.runtime.contract import LandmarkFacts
from tl.runtime.decode import ImageSource, source_name
from tl.runtime.ensemble import check_weights, member_names
from tl.runtime.geometry import Placement, Region, region_of_points, widen
from tl.runtime.merging import Merged, Merging, merge_points
from tl.runtime.preprocess import load_placed
from tl.runtime.recipe import Recipe
from tl.runtime.results import Landmarks
from tl.runtime.session import Session
from tl.runtime.shapes import procrustes_distance

# A recipe, and whether it is given a box or the whole picture.
_View = tuple[Recipe, bool]


@dataclass(frozen=True)
class PlacedInputs:
    """One picture as its models want it: view -> input uint8 (H, W, 3), and where the photo lies in it."""

    inputs: dict[_View, NDArray[np.uint8]]
    placements: dict[_View, Placement]


class LandmarkEnsemble:
    """One or more landmark models whose points are merged in pixels of the photo. Thread-safe.

    Members may differ in input size and in what they look at; points are matched by name, in the first member's order.
    Models that look at a box need one for each picture: from `boxes` (path -> left, top, width, height), or from a
    `locator`, whose points the box is drawn around. `margin` overrides the models' own.
    Raises `EnsembleError` if the members do not fit, or if nothing says where to look.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        *,
        merging: Merging = "mean",
        weights: Sequence[float] | None = None,
        locator: LandmarkEnsemble | None = None,
        boxes: Mapping[str, Region] | None = None,
        margin: float | None = None,
    ) -> None:
        check_weights(sessions, weights)
        self.sessions = tuple(sessions)
        self.facts = tuple(_facts(session) for session in sessions)
        self.merging, self.weights = merging, weights
        self.member_names = member_names([session.path for session in sessions])
        contracts = [session.contract for session in sessions if session.contract is not None]
        self.keypoint_names = contracts[0].keypoint_names
        for contract, name in zip(contracts, self.member_names, strict=True):
            if set(contract.keypoint_names) != set(self.keypoint_names):
                raise EnsembleError(f"{name} finds other points than {self.member_names[0]}")
        self._orders = [[c.keypoint_names.index(name) for name in self.keypoint_names] for c in contracts]
        self._views: list[_View] = [(c.recipe, f.region == "box") for c, f in zip(contracts, self.facts, strict=True)]
        self.has_confidence = all("keypoint_confidence" in contract.outputs for contract in contracts)
        if merging == "confidence" and not self.has_confidence:
            raise EnsembleError("merging by confidence needs models that give one: take mean or median")
        self._locator = locator
        self._boxes = None if boxes is None else {os.path.abspath(path): box for path, box in boxes.items()}
        self._margin = margin if margin is not None else self.facts[0].region_margin
        if any(is_box for _, is_box in self._views) and locator is None and boxes is None:
            raise EnsembleError(
                f"{sessions[0].path}: this model looks at a box around the specimen: give a model that finds it "
                "(--locator coarse.onnx) or the boxes (--boxes boxes.csv)"
            )

    @property
    def key(self) -> dict[str, Any]:
        """What results depend on beside the files of the members."""
        located = None if self._locator is None else [hash_file(session.path) for session in self._locator.sessions]
        boxes = None if self._boxes is None else sorted(self._boxes.items())
        return {
            "merging": self.merging,
            "weights": None if self.weights is None else list(self.weights),
            "locator": located,
            "boxes": boxes,
            "margin": self._margin,
        }

    def columns(self, *, with_votes: bool) -> PointColumns:
        """The columns of the results."""
        return PointColumns(self.keypoint_names, self.has_confidence, with_votes)

    def prepare(self, source: ImageSource) -> PlacedInputs:
        """Decode a picture as the members want it. Raises `ImageReadError`."""
        prepared = PlacedInputs({}, {})
        region = self._look(source) if any(is_box for _, is_box in self._views) else None
        for view in dict.fromkeys(self._views):
            recipe, is_box = view
            image, placement = load_placed(source, recipe, region if is_box else None)
            prepared.inputs[view], prepared.placements[view] = image, placement
        return prepared

    def results(self, names: Sequence[str], prepared: Sequence[PlacedInputs], *, with_votes: bool) -> list[Landmarks]:
        """Find the points of prepared pictures."""
        if not prepared:
            return []
        batch = {view: np.stack([each.inputs[view] for each in prepared]) for view in dict.fromkeys(self._views)}
        points = np.empty((len(prepared), len(self.sessions), len(self.keypoint_names), 2))
        confidence = np.ones(points.shape[:3], np.float32) if self.has_confidence else None
        for m, session in enumerate(self.sessions):
            view, order = self._views[m], self._orders[m]
            wanted = ["keypoints", "keypoint_confidence"] if self.has_confidence else ["keypoints"]
            found, *sure = session.run(batch[view], wanted)
            if not np.isfinite(found).all():
                raise ModelFileError(f"{session.path}: gives points that are no numbers: the file is broken")
            for n, each in enumerate(prepared):
                points[n, m] = each.placements[view].to_image(found[n, order])
            if confidence is not None:
                confidence[:, m] = sure[0][:, order]
        merged = merge_points(points, self.merging, self.weights, confidence)
        return [
            self._result(name, prepared[n].placements[self._views[0]], points[n], merged, n, with_votes)
            for n, name in enumerate(names)
        ]

    def _result(
        self,
        name: str,
        placement: Placement,
        members_xy: NDArray[np.float64],
        merged: Merged,
        n: int,
        with_votes: bool,
    ) -> Landmarks:
        facts, points = self.facts[0], merged.keypoints_xy[n]
        mean_shape = np.array(facts.mean_shape)[self._orders[0]]
        distance = procrustes_distance(points, mean_shape)
        is_shape = bool(np.isfinite(distance))
        return Landmarks(
            path=name,
            keypoint_names=self.keypoint_names,
            keypoints_xy=points,
            confidence=None if merged.confidence is None else merged.confidence[n],
            spread_px=merged.spread_px[n] if with_votes else None,
            shape_distance=distance if is_shape else None,
            is_odd=is_shape and distance > facts.shape_limit,
            region_xywh=placement.region_xywh,
            input_per_photo=placement.scale_xy,
            members_xy=members_xy if with_votes else None,
        )

    def _look(self, source: ImageSource) -> Region:
        """Where the specimen is. Raises `ImageReadError`."""
        name = source_name(source)
        if self._boxes is not None:
            box = self._boxes.get(os.path.abspath(name))
            if box is None:
                raise ImageReadError(name, "the list of boxes has none for this picture")
            return widen(box, self._margin)
        if self._locator is None:
            raise ImageReadError(name, "nothing says where the specimen is")
        (found,) = self._locator.results([name], [self._locator.prepare(source)], with_votes=False)
        return region_of_points(found.keypoints_xy, self._margin)


def _facts(session: Session) -> LandmarkFacts:
    if session.contract is None or session.contract.landmarks is None:
        raise EnsembleError(f"{session.path}: not a landmark model")
    return session.contract.landmarks
