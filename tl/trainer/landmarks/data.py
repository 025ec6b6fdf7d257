"""Annotated pictures: which there are, their split, the part of each that is looked at, and what is odd about them.

Knows landmark files, splits and shapes. Does not open pictures but for their size, and imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError, DataError
from tl.runtime.geometry import Region, region_of_points, widen
from tl.runtime.landmark_files.files import picture_finder, read_landmarks
from tl.runtime.landmarks import LandmarkSet, PictureLandmarks
from tl.runtime.shapes import MIN_POINTS, mean_shape, procrustes_distance
from tl.trainer.audit import Finding
from tl.trainer.config import Crop, TrainConfig
from tl.trainer.data import SPLITS, Picture

# A shape this many times as far from the mean as the middle one is looked at again.
_FAR = 4.0


@dataclass(frozen=True)
class Annotated:
    """Pictures and their landmarks, in one order. `partners`: each point's place in a mirror image."""

    pictures: tuple[Picture, ...]
    landmarks: LandmarkSet
    partners: tuple[int, ...]


def read_annotated(config: TrainConfig) -> Annotated:
    """Read `config.data`. Pictures without a split have an empty one.

    Raises `DataError` naming the place and the cure, `ConfigError` for flip pairs of unknown points.
    """
    landmarks = read_landmarks(config.data)
    if not landmarks.pictures:
        raise DataError(f"{config.data}: has no pictures")
    names = [picture.name for picture in landmarks.pictures]
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{config.data}: {len(doubled)} pictures stand in several rows, first {doubled[0]}")
    if config.flip_pairs is not None:
        landmarks = dataclasses.replace(landmarks, flip_pairs=_named_pairs(config.flip_pairs, landmarks.keypoint_names))
    find = picture_finder(config.data)
    pictures = tuple(
        Picture(find(p.name), p.name, "", _split(p, config.data), p.group, _region(p, config.crop, config.crop_margin))
        for p in landmarks.pictures
    )
    return Annotated(pictures, landmarks, _partners(landmarks))


def points_of(landmarks: LandmarkSet) -> dict[str, NDArray[np.float64]]:
    """Picture name -> its points (K, 2) in pixels of the upright photo, NaN where missing."""
    return {picture.name: picture.keypoints_xy for picture in landmarks.pictures}


def find_odd(landmarks: LandmarkSet, sizes_hw: Sequence[tuple[int, int]]) -> list[Finding]:
    """What an annotator should look at again: points outside the picture, no points, equal rows, odd shapes.

    `sizes_hw`: of the upright pictures, in the order of the landmarks.
    """
    findings: list[Finding] = []
    seen: dict[bytes, PictureLandmarks] = {}
    for picture, (height, width) in zip(landmarks.pictures, sizes_hw, strict=True):
        xy = picture.keypoints_xy
        if np.isnan(xy).all():
            findings.append(Finding("no points", picture.name, "", "has no point: it is not learnt from"))
            continue
        is_outside = (xy < -0.5).any(axis=1) | (xy > (width - 0.5, height - 0.5)).any(axis=1)
        if is_outside.any():
            named = ", ".join(landmarks.keypoint_names[k] for k in np.flatnonzero(is_outside)[:5])
            findings.append(
                Finding("point outside", picture.name, "", f"{named}: outside the picture of {width}x{height} pixels")
            )
        other = seen.setdefault(xy.tobytes(), picture)
        if other is not picture:
            findings.append(Finding("equal points", other.name, picture.name, "exactly the same points"))
    return findings + _find_odd_shapes(landmarks)


def _find_odd_shapes(landmarks: LandmarkSet) -> list[Finding]:
    shapes = {
        p.name: p.keypoints_xy for p in landmarks.pictures if (~np.isnan(p.keypoints_xy[:, 0])).sum() > MIN_POINTS
    }
    if len(shapes) < MIN_POINTS:
        return []
    mean = mean_shape(list(shapes.values()))
    distances = {name: procrustes_distance(shape, mean) for name, shape in shapes.items()}
    middle = float(np.nanmedian(list(distances.values())))
    findings = []
    for name, distance in distances.items():
        if distance > _FAR * middle:
            detail = f"shape {distance:.2f} from the mean, {distance / middle:.0f} times the usual"
            if swapped := _swapped(shapes[name], mean, distance):
                named = [landmarks.keypoint_names[k] for k in swapped]
                detail += f"; {named[0]} and {named[1]} exchanged would fit"
            findings.append(Finding("odd shape", name, "", detail))
    return findings


def _swapped(shape: NDArray[np.float64], mean: NDArray[np.float64], distance: float) -> tuple[int, int] | None:
    """The two points whose exchange brings a shape closest to the mean, if it comes to less than half as far."""
    best, found = distance / 2, None
    count = len(shape)
    for i in range(count):
        for j in range(i + 1, count):
            order = list(range(count))
            order[i], order[j] = j, i
            changed = procrustes_distance(shape[order], mean)
            if changed < best:
                best, found = changed, (i, j)
    return found


def reference_shape(shapes: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], float]:
    """The mean shape (K, 2) of the training pictures' points (K, 2), and the distance at which a shape is odd.

    The mean is centred and of centroid size 1. A prediction farther from it than 1.5 times the 99th percentile of the
    training pictures' distances is odd. A point that no picture has lies at the centre.
    Raises `DataError` if no training picture has three points.
    """
    try:
        mean = mean_shape(shapes)
    except ValueError as error:
        raise DataError(f"the training pictures give no mean shape: {error}") from error
    distances = [procrustes_distance(shape, mean) for shape in shapes]
    return np.nan_to_num(mean), 1.5 * float(np.nanpercentile(distances, 99))


def _split(picture: PictureLandmarks, data: str) -> str:
    if picture.split and picture.split not in SPLITS:
        raise DataError(f"{data}: {picture.name}: split '{picture.split}' is not one of {', '.join(SPLITS)}")
    return picture.split


def _region(picture: PictureLandmarks, crop: Crop, margin: float) -> Region | None:
    if crop == "whole":
        return None
    if crop == "points":
        has_points = not np.isnan(picture.keypoints_xy).all()
        return region_of_points(picture.keypoints_xy, margin) if has_points else None
    if picture.box_xywh is None:
        raise DataError(f"{picture.name}: crop box, and it has no box: fill box_x, box_y, box_w and box_h")
    return widen(picture.box_xywh, margin)


def _named_pairs(texts: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        first, _, second = text.partition(":")
        if unknown := [name for name in (first, second) if name not in names]:
            raise ConfigError(f"flip_pairs: no point '{unknown[0]}'; the points are {', '.join(names)}")
        pairs.append((first, second))
    return tuple(pairs)


def _partners(landmarks: LandmarkSet) -> tuple[int, ...]:
    names = landmarks.keypoint_names
    partner = {a: b for first, second in landmarks.flip_pairs for a, b in ((first, second), (second, first))}
    return tuple(names.index(partner.get(name, name)) for name in names)
