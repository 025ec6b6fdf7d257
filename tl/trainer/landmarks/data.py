"""Annotated images: their list, split, region of interest, and suspicious annotations.

Opens images only to read their size, and never imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.audit import Finding
from tl.data.class_folders import SPLITS
from tl.data.manifests import LabeledImage
from tl.data.sequences import tie_sequences
from tl.errors import ConfigError, DataError
from tl.runtime.imaging.regions import Region, region_of_points, widen
from tl.runtime.landmarks.files import image_finder, read_landmarks
from tl.runtime.landmarks.sets import ImageLandmarks, LandmarkSet
from tl.runtime.landmarks.shapes import MIN_POINTS, align, mean_shape, procrustes_distance
from tl.trainer.config import Crop, TrainConfig
from tl.trainer.defaults import LANDMARKS

# A shape is reported if it is this many times as far from the mean shape as the median shape.
_FAR = 4.0
# Differences below this are considered normal.
_USUAL = 1e-3


@dataclass(frozen=True)
class Annotated:
    """Images and their landmarks, in the same order. `partners`: index of each point in a mirror image."""

    images: tuple[LabeledImage, ...]
    landmarks: LandmarkSet
    partners: tuple[int, ...]


def read_annotated(config: TrainConfig) -> Annotated:
    """Read `config.data`. Images without a split have an empty one.

    Raises `DataError` with the location and the fix, `ConfigError` for pairs of unknown points.
    """
    landmarks = read_landmarks(config.data, config.images, label=config.label_column)
    if not landmarks.images:
        raise DataError(f"{config.data}: contains no images")
    counts = Counter(image.name for image in landmarks.images)
    if doubled := [name for name, count in counts.items() if count > 1]:
        count = "1 image appears" if len(doubled) == 1 else f"{len(doubled)} images appear"
        raise DataError(f"{config.data}: {count} in several rows, first {doubled[0]}")
    if config.flip_pairs is not None:
        pairs = _named_pairs("flip_pairs", config.flip_pairs, landmarks.keypoint_names)
        named = [name for pair in pairs for name in pair]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ConfigError(f"flip_pairs: '{twice[0]}' appears in two pairs")
        landmarks = dataclasses.replace(landmarks, flip_pairs=pairs)
    if config.skeleton is not None:
        lines = _named_pairs("skeleton", config.skeleton, landmarks.keypoint_names)
        landmarks = dataclasses.replace(landmarks, skeleton=lines)
    find = image_finder(config.data, config.images)
    regions = _regions(landmarks, config.crop, _margin(config))
    images = tuple(
        LabeledImage(find(p.name), p.name, "", _split(p, config.data), p.group, region)
        for p, region in zip(landmarks.images, regions, strict=True)
    )
    return Annotated(tuple(tie_sequences(images, config.sequence)), landmarks, partners_of(landmarks))


def _margin(config: TrainConfig) -> float:
    margin: float = LANDMARKS["crop_margin"] if config.crop_margin is None else config.crop_margin
    return margin


def mark_points(images: Sequence[LabeledImage], points: Mapping[str, NDArray[np.float64]]) -> list[LabeledImage]:
    """Label images with a digest of their points, so that a run's manifest and data hash depend on the points."""
    digests = {name: hashlib.sha256(xy.tobytes()).hexdigest()[:16] for name, xy in points.items()}
    return [dataclasses.replace(image, label=f"points {digests[image.name]}") for image in images]


def points_of(landmarks: LandmarkSet) -> dict[str, NDArray[np.float64]]:
    """Image name -> its points (K, 2) in pixels of the upright photo, NaN where missing."""
    return {image.name: image.keypoints_xy for image in landmarks.images}


def find_odd(landmarks: LandmarkSet, sizes_hw: Sequence[tuple[int, int]], turned: Container[str] = ()) -> list[Finding]:
    """Annotations to review: points outside the image, no points, identical rows, unusual shapes.

    `sizes_hw`: sizes of the upright images, in landmark order. `turned`: names of images with an EXIF orientation that
    rotates them upright.
    """
    findings: list[Finding] = []
    seen: dict[bytes, ImageLandmarks] = {}
    for image, (height, width) in zip(landmarks.images, sizes_hw, strict=True):
        xy = image.keypoints_xy
        if np.isnan(xy).all():
            findings.append(Finding("no points", image.name, "", "has no points: not used for training"))
            continue
        is_outside = (xy < -0.5).any(axis=1) | (xy > (width - 0.5, height - 0.5)).any(axis=1)
        if is_outside.any():
            named = ", ".join(landmarks.keypoint_names[k] for k in np.flatnonzero(is_outside)[:5])
            detail = f"{named}: outside the image of {width}x{height} pixels"
            if image.name in turned:
                detail += (
                    "; its EXIF orientation rotates it: if it was annotated without that rotation, "
                    "convert with from_stored"
                )
            findings.append(Finding("point outside", image.name, "", detail))
        other = seen.setdefault(xy.tobytes(), image)
        if other is not image:
            findings.append(Finding("equal points", other.name, image.name, "identical points"))
    return findings + _find_odd_shapes(landmarks)


def _find_odd_shapes(landmarks: LandmarkSet) -> list[Finding]:
    shapes = {p.name: p.keypoints_xy for p in landmarks.images if (~np.isnan(p.keypoints_xy[:, 0])).sum() > MIN_POINTS}
    if len(shapes) < MIN_POINTS:
        return []
    mean = mean_shape(list(shapes.values()))
    distances = {name: procrustes_distance(shape, mean) for name, shape in shapes.items()}
    middle = float(np.nanmedian(list(distances.values())))
    findings = []
    for name, distance in distances.items():
        if distance > _FAR * max(middle, _USUAL):
            detail = f"shape distance {distance:.2f} from the mean shape; the median is {middle:.2f}"
            if swapped := _swapped(shapes[name], mean, distance):
                named = [landmarks.keypoint_names[k] for k in swapped]
                detail += f"; {named[0]} and {named[1]} may be swapped"
            findings.append(Finding("odd shape", name, "", detail))
    return findings


def _swapped(shape: NDArray[np.float64], mean: NDArray[np.float64], distance: float) -> tuple[int, int] | None:
    """The two points whose exchange brings a shape closest to the mean, if that more than halves the distance."""
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


def reference_shape(shapes: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64] | None, float]:
    """The mean shape (K, 2) of the training images' points (K, 2), and the distance beyond which a shape is unusual.

    The mean is centered and has centroid size 1; None if no image has three points, or if a point occurs in none of
    those. A prediction is unusual if it is farther away than 1.5 times the 99th percentile of the training distances.
    """
    try:
        mean = mean_shape(shapes)
    except ValueError:
        return None, 0.0
    if np.isnan(mean).any():
        return None, 0.0
    distances = [procrustes_distance(shape, mean) for shape in shapes]
    return mean, 1.5 * float(np.nanpercentile(distances, 99))


def _split(image: ImageLandmarks, data: str) -> str:
    if image.split and image.split not in SPLITS:
        raise DataError(f"{data}: {image.name}: split '{image.split}' is not one of {', '.join(SPLITS)}")
    return image.split


def _regions(landmarks: LandmarkSet, crop: Crop, margin: float) -> list[Region | None]:
    """The region of interest of each image; None for the whole image."""
    images = landmarks.images
    if crop == "whole":
        return [None] * len(images)
    if crop == "box":
        if lacking := [p.name for p in images if p.box_xywh is None]:
            raise DataError(f"crop box: {len(lacking)} images have no box, first {lacking[0]}: fill in box_x to box_h")
        return [None if p.box_xywh is None else widen(p.box_xywh, margin) for p in images]
    whole = [_completed(p, xy) for p, xy in zip(images, _with_mean(landmarks), strict=True)]
    return [None if xy is None else region_of_points(xy, margin) for xy in whole]


def _with_mean(landmarks: LandmarkSet) -> list[NDArray[np.float64]]:
    """Each image's points; missing points are placed by the mean shape if three other points determine the position."""
    shapes = [image.keypoints_xy for image in landmarks.images]
    try:
        mean = mean_shape(shapes)
    except ValueError:
        return shapes
    completed = []
    for xy in shapes:
        is_lacking = np.isnan(xy)
        present = int((~is_lacking[:, 0]).sum())
        completed.append(np.where(is_lacking, align(mean, xy), xy) if MIN_POINTS <= present < len(xy) else xy)
    return completed


def _completed(image: ImageLandmarks, xy: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """None without any point; an incomplete set of points would give a different crop than the complete set."""
    lacking = int(np.isnan(xy).any(axis=1).sum())
    if lacking == len(xy):
        return None
    if lacking:
        raise DataError(
            f"crop points: {image.name} lacks {lacking} of {len(xy)} points, and their positions cannot "
            "be estimated from the others: annotate at least three points, or remove this image"
        )
    return xy


def _named_pairs(option: str, texts: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        first, _, second = text.partition(":")
        if unknown := [name for name in (first, second) if name not in names]:
            raise ConfigError(f"{option}: unknown point '{unknown[0]}'; the points are {', '.join(names)}")
        pairs.append((first, second))
    return tuple(pairs)


def partners_of(landmarks: LandmarkSet) -> tuple[int, ...]:
    """The index of each point in a mirror image: that of its flip partner, or its own."""
    names = landmarks.keypoint_names
    partner = {a: b for first, second in landmarks.flip_pairs for a, b in ((first, second), (second, first))}
    return tuple(names.index(partner.get(name, name)) for name in names)
