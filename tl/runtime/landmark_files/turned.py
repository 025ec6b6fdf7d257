"""Landmarks that were annotated on photos as they are stored -> landmarks on the upright photos.

Knows EXIF orientations. Opens pictures' headers only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tl.runtime.decode import read_stored
from tl.runtime.geometry import turn_keypoints
from tl.runtime.landmarks import LandmarkSet, PictureLandmarks


def turn_upright(landmarks: LandmarkSet, find: Callable[[str], str]) -> LandmarkSet:
    """Turn points and boxes as each photo's EXIF orientation turns the photo; a remark says how many that concerns.

    `find`: as `picture_finder` gives. Raises `DataError`, `ImageReadError`.
    """
    turned = [_turn(picture, *read_stored(find(picture.name))) for picture in landmarks.pictures]
    count = sum(new is not old for new, old in zip(turned, landmarks.pictures, strict=True))
    remark = f"{count} of {len(turned)} pictures have an EXIF orientation: their points are turned"
    return dataclasses.replace(landmarks, pictures=tuple(turned), remarks=(*landmarks.remarks, remark))


def _turn(picture: PictureLandmarks, stored_hw: tuple[int, int], orientation: int) -> PictureLandmarks:
    if orientation == 1:
        return picture
    box = picture.box_xywh
    if box is not None:
        left, top, width, height = box  # boxes count edges, points centres
        corners = np.array([[left, top], [left + width, top + height]]) - 0.5
        ends = turn_keypoints(corners, orientation, stored_hw) + 0.5
        (left, top), (right, bottom) = ends.min(axis=0).tolist(), ends.max(axis=0).tolist()
        box = (left, top, right - left, bottom - top)
    return dataclasses.replace(
        picture, keypoints_xy=turn_keypoints(picture.keypoints_xy, orientation, stored_hw), box_xywh=box
    )
