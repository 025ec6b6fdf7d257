"""Landmarks of images: named points in pixels of the upright photo, some of them missing or occluded.

Contains no file access.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MISSING, OCCLUDED, VISIBLE = 0, 1, 2  # as v in COCO


@dataclass(frozen=True)
class ImageLandmarks:
    """The points of one image.

    `name`: name of the image in its landmark file. `keypoints_xy`: float64 (K, 2), (x, y) in pixels of the upright
    image, with the center of the top-left pixel at (0, 0); NaN if missing. `visibility`: int64 (K,), as in COCO: 0
    missing, 1 occluded, 2 visible. `confidence`: float64 (K,) in [0, 1] for predicted points, otherwise None.
    `box_xywh`: (left, top, width, height) of the specimen in pixels. `mm_per_px`: scale of the photo. `split`, `group`:
    as in a manifest. `stated_hw`: size of the photo according to the landmark file, None if it does not state one.
    """

    name: str
    keypoints_xy: NDArray[np.float64]
    visibility: NDArray[np.int64]
    confidence: NDArray[np.float64] | None = None
    box_xywh: tuple[float, float, float, float] | None = None
    mm_per_px: float | None = None
    split: str = ""
    group: str = ""
    stated_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        count = len(self.visibility)
        if self.keypoints_xy.shape != (count, 2) or self.visibility.shape != (count,):
            raise ValueError(f"{self.keypoints_xy.shape} points and {self.visibility.shape} visibilities do not match")
        if self.confidence is not None and self.confidence.shape != (count,):
            raise ValueError(f"{self.confidence.shape} confidences for {count} points")
        if not np.array_equal(np.isnan(self.keypoints_xy).any(axis=1), self.visibility == MISSING):
            raise ValueError(f"{self.name}: a point is missing exactly where its coordinates are NaN")


@dataclass(frozen=True)
class LandmarkSet:
    """The landmarks of many images, all with the same `keypoint_names` in the same order.

    `flip_pairs`: names that are swapped when an image is mirrored. `skeleton`: names connected by lines. `remarks`:
    descriptions of file content that is not kept here.
    """

    keypoint_names: tuple[str, ...]
    images: tuple[ImageLandmarks, ...]
    flip_pairs: tuple[tuple[str, str], ...] = ()
    skeleton: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = self.keypoint_names
        if len(set(names)) != len(names):
            raise ValueError(f"repeated point '{next(name for name in names if names.count(name) > 1)}'")
        for image in self.images:
            if len(image.visibility) != len(names):
                raise ValueError(f"{image.name}: {len(image.visibility)} points, expected {len(names)}")
        paired = [name for pair in self.flip_pairs for name in pair]
        if twice := [name for name in paired if paired.count(name) > 1]:
            raise ValueError(f"point '{twice[0]}' appears in two flip pairs")
        if unknown := {name for pair in (*self.flip_pairs, *self.skeleton) for name in pair} - set(names):
            raise ValueError(f"unknown point '{min(unknown)}' in flip pairs or skeleton")


def image_landmarks(
    name: str,
    points: Sequence[tuple[float, float]] | NDArray[np.floating],
    visibility: Sequence[int] | None = None,
    **facts: object,
) -> ImageLandmarks:
    """Build `ImageLandmarks` from lists. Without `visibility`, a point is visible unless it is NaN."""
    xy = np.array(points, np.float64).reshape(-1, 2)
    is_missing = np.isnan(xy).any(axis=1)
    seen = np.full(len(xy), VISIBLE) if visibility is None else np.array(visibility, np.int64)
    xy[is_missing | (seen == MISSING)] = np.nan
    return ImageLandmarks(name, xy, np.where(is_missing, MISSING, seen).astype(np.int64), **facts)  # type: ignore[arg-type]


def numbered_names(count: int) -> tuple[str, ...]:
    """Return names for unnamed points: `0`, `1` ..."""
    return tuple(map(str, range(count)))
