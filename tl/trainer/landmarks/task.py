"""Prepare a landmark run before any network exists: annotated images, preprocessing, weights file.

Never imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.data.audit import Finding, find_duplicates
from tl.data.file_audit import find_file_faults
from tl.data.images import ImageStore, check_readable, load_images
from tl.data.manifests import LabeledImage
from tl.data.splits import assign_splits
from tl.errors import DataError
from tl.progress import Progress
from tl.runtime.imaging.decode import read_size, read_stored
from tl.runtime.imaging.geometry import Placement, place
from tl.runtime.landmarks.sets import LandmarkSet
from tl.trainer.config import TrainConfig
from tl.trainer.fit.augment import build_augment
from tl.trainer.landmarks.data import Annotated, find_odd, mark_points, points_of, read_annotated
from tl.trainer.models.backbone_info import BackboneInfo, remembered_info
from tl.trainer.models.weight_files import WeightsFile
from tl.trainer.options import resolve, settled
from tl.trainer.task import PreparedInputs, build_run_preprocessing, find_info, find_start, fit_batch, measure_colors

# Without a margin, the outermost points lie exactly on the edge of the crop.
_ROUNDING_PX = 1e-3
# With 28 photos of shells, 720 steps gave half the validation error of 240 steps.
_MIN_STEPS, _MAX_EPOCHS = 720, 200


@dataclass(frozen=True)
class LandmarkTask(PreparedInputs):
    """The prepared inputs of a landmark run.

    `landmarks`: of all images in the file. For each image of the store, `points`: (K, 2) in pixels of the photo, NaN
    where missing; `sizes_hw`: size of the upright photo; `placements`: its position in the input. `partners`: index of
    each point in a mirror image.
    """

    landmarks: LandmarkSet
    partners: tuple[int, ...]
    points: tuple[NDArray[np.float64], ...]
    sizes_hw: tuple[tuple[int, int], ...]
    placements: tuple[Placement, ...]

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the points, in order."""
        return self.landmarks.keypoint_names

    def input_points(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Points (N, K, 2) in pixels of the input, NaN where missing or outside of it."""
        height, width = self.preprocessing.input_hw
        points = np.stack([self.placements[i].to_input(self.points[i]) for i in indices])
        low, high = -0.5 - _ROUNDING_PX, np.array([width - 0.5, height - 0.5]) + _ROUNDING_PX
        is_inside = np.all((points >= low) & (points <= high), axis=2)
        return np.where(is_inside[..., None], points, np.nan).astype(np.float32)

    def photo_points(self, indices: Sequence[int], found_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points (N, K, 2) in pixels of the input -> in pixels of the photos."""
        return np.stack([self.placements[i].to_image(xy) for i, xy in zip(indices, found_xy, strict=True)])

    def scales(self, indices: Sequence[int]) -> NDArray[np.float64]:
        """Input pixels per photo pixel, (N, 2)."""
        return np.array([self.placements[i].scale_xy for i in indices])

    def mm_per_px(self, indices: Sequence[int]) -> NDArray[np.float64]:
        """The photos' scales (N,), NaN where unknown."""
        known = {image.name: image.mm_per_px for image in self.landmarks.images}
        scales = [known[self.store.images[i].name] for i in indices]
        return np.array([np.nan if scale is None else scale for scale in scales])


# (config, info, number of points, weights file): raises `TlError` if no network can be built from them.
Check = Callable[[TrainConfig, BackboneInfo, int, WeightsFile | None], None]


def prepare_landmark_task(config: TrainConfig, progress: Progress, check: Check = lambda *parts: None) -> LandmarkTask:
    """Read all inputs of a run. `check` is called before images are opened, which is slow.

    Raises any `TlError` of the individual steps.
    """
    asked, config = config, resolve(config)
    info = remembered_info(config.backbone, find_info)
    preprocessing = build_run_preprocessing(config, info)
    annotated = read_annotated(config)
    for remark in annotated.landmarks.remarks:
        progress.say(f"{config.data}: {remark}")
    mirror = config.mirror if config.mirror is not None else bool(annotated.landmarks.flip_pairs)
    augment = build_augment(str(config.augment), preprocessing, points=True, mirror=mirror)
    images = _learnable(annotated, config)
    config = _fit_epochs(fit_batch(config, images, asked.batch_size), images, asked)
    weights, info = find_start(config, info)
    check(config, info, len(annotated.landmarks.keypoint_names), weights)
    store, bad = load_images(images, preprocessing, config.cache, progress)
    if not config.skip_bad:
        check_readable(bad, options=["skip_bad"])
    _check_splits(store.images, config)
    info = measure_colors(config, info, store, progress)
    by_name = points_of(annotated.landmarks)
    points = tuple(by_name[image.name] for image in store.images)
    _check_points(store, points, annotated.landmarks.keypoint_names)
    sizes = tuple(read_size(image.path) for image in store.images)
    task = LandmarkTask(
        config=config,
        info=info,
        preprocessing=preprocessing,
        augment=augment,
        weights=weights,
        store=store,
        bad=bad,
        landmarks=annotated.landmarks,
        partners=annotated.partners,
        points=points,
        sizes_hw=sizes,
        placements=tuple(place(hw, preprocessing, p.region) for hw, p in zip(sizes, store.images, strict=True)),
    )
    _say_if_needless(task, progress)
    if augment is not None:
        first = store.indices("train")[:1]
        augment.with_points(store.working(first[0]), task.input_points(first)[0], config.seed, task.partners)
    return task


def _say_if_needless(task: LandmarkTask, progress: Progress) -> None:
    """Report a crop that removes nothing: it would still require a locator or boxes at every prediction."""
    wholes = [(0, 0, width, height) for height, width in task.sizes_hw]
    uncut = sum(placed.region_xywh == whole for placed, whole in zip(task.placements, wholes, strict=True))
    if task.config.crop != "whole" and uncut > len(wholes) / 2:
        progress.say(
            f"crop {task.config.crop} with margin {settled(task.config.crop_margin):g} does not crop {uncut} of "
            f"{len(wholes)} photos at all: use crop whole, or a smaller crop_margin"
        )


def audit_landmarks(task: LandmarkTask) -> list[Finding]:
    """Annotations that should be reviewed."""
    store = task.store
    readable = dict(zip((image.name for image in store.images), task.sizes_hw, strict=True))
    kept = tuple(image for image in task.landmarks.images if image.name in readable)
    turned = {image.name for image in store.images if read_stored(image.path)[1] > 1}
    odd = find_odd(dataclasses.replace(task.landmarks, images=kept), [readable[p.name] for p in kept], turned)
    without = [p.name for p in task.landmarks.images if np.isnan(p.keypoints_xy).all() and p.name not in readable]
    empty = [Finding("no points", name, "", "has no points: not used for training") for name in without]
    files = find_file_faults(store.images, task.preprocessing)
    return [*find_duplicates(store.images, store.hashes), *odd, *empty, *_find_cut_off(task), *files]


def _find_cut_off(task: LandmarkTask) -> list[Finding]:
    """Points inside the photo but outside the region of interest: they cannot be learned."""
    indices = range(len(task.store.images))
    findings = []
    for i, seen in zip(indices, task.input_points(indices), strict=True):
        height, width = task.sizes_hw[i]
        inside = np.all((task.points[i] >= -0.5) & (task.points[i] <= (width - 0.5, height - 0.5)), axis=1)
        lost = [task.keypoint_names[k] for k in np.flatnonzero(inside & np.isnan(seen[:, 0]))]
        if lost:
            detail = f"{', '.join(lost[:5])}: outside the cropped region; increase crop_margin"
            findings.append(Finding("point outside", task.store.images[i].name, "", detail))
    return findings


def _check_points(store: ImageStore, points: Sequence[NDArray[np.float64]], names: Sequence[str]) -> None:
    seen = ~np.isnan(np.stack([points[i] for i in store.indices("train")])[..., 0])
    if lacking := [name for name, count in zip(names, seen.sum(axis=0), strict=True) if count == 0]:
        raise DataError(
            f"no training image has point '{lacking[0]}': annotate it, or remove it from the annotation file"
        )


def _learnable(annotated: Annotated, config: TrainConfig) -> list[LabeledImage]:
    """Images with at least one point, each with its split."""
    by_name = points_of(annotated.landmarks)
    images = [p for p in annotated.images if not np.isnan(by_name[p.name]).all()]
    if not images:
        raise DataError(f"{config.data}: no image has any annotated point")
    images = assign_splits(images, settled(config.val_fraction), config.seed)
    _check_splits(images, config)
    return mark_points(images, by_name)


def _fit_epochs(config: TrainConfig, images: Sequence[LabeledImage], asked: TrainConfig) -> TrainConfig:
    """Increase the default number of epochs for few images, since heads are randomly initialized."""
    if asked.epochs is not None or config.epochs is None:
        return config
    steps = math.ceil(sum(image.split == "train" for image in images) / settled(config.batch_size))
    epochs = min(max(config.epochs, math.ceil(_MIN_STEPS / steps)), _MAX_EPOCHS)
    drop = config.drop_epochs if asked.drop_epochs is not None else max(1, epochs // 3)
    return dataclasses.replace(config, epochs=epochs, drop_epochs=drop)


def _check_splits(images: Sequence[LabeledImage], config: TrainConfig) -> None:
    for split in ("train", "val", "test") if config.test else ("train", "val"):
        if not any(image.split == split for image in images):
            raise DataError(f"the data set has no images with points in its {split} split")
