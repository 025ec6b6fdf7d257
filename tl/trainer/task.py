"""Prepare a run before any network exists: labeled images, preprocessing, weights file, cached features.

Never imports torch, so that work on cached features starts fast.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from tl import __version__
from tl.data.boxed import locate
from tl.data.features import FeatureSet, open_features
from tl.data.images import (
    ImageStore,
    check_readable,
    color_statistics,
    content_key,
    load_images,
    preprocessing_key,
)
from tl.data.manifests import LabeledImage, bind_class_names, class_ids
from tl.data.sequences import tie_sequences
from tl.data.splits import Fold, assign_splits, cut_parts, find_folds, limit_per_class
from tl.errors import ConfigError, DataError
from tl.progress import Progress
from tl.runtime.ensembles.taxonomy import Taxonomy, taxonomy_of
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing, parse_channels
from tl.runtime.sources.paths import find_images
from tl.trainer.boxes import check_found, read_run_data, run_crop
from tl.trainer.config import TrainConfig
from tl.trainer.defaults import MAX_EPOCHS, MIN_STEPS, MOST_UNLABELED, SOLVER_FOLDS
from tl.trainer.fit.augment import Augment, build_augment
from tl.trainer.models.backbone_info import OWN_BACKBONES, BackboneInfo, library_of, remembered_info, with_channels
from tl.trainer.models.weight_files import WeightsFile, find_weights, read_colors
from tl.trainer.options import can_refit, resolve, settled
from tl.trainer.run_folder.network_card import NetworkCard

CLEAN = 0  # the view without augmentation, as used in validation and deployment


@dataclass(frozen=True)
class PreparedInputs:
    """What the inputs of every run have in common. `bad`: unreadable images, each with the reason.

    `info` has the color statistics in use.
    """

    config: TrainConfig
    info: BackboneInfo
    preprocessing: Preprocessing
    augment: Augment | None
    weights: WeightsFile | None
    store: ImageStore
    bad: list[tuple[LabeledImage, str]]


@dataclass(frozen=True)
class FeatureTask(PreparedInputs):
    """The prepared inputs of a run whose head can be trained on cached features.

    `outputs`: what the head has one output for: classes or targets. `ids`: class of each image in the store, 0 without
    classes. `features` is None if the trunk is randomly initialized, `taxonomy` if the classes have no groups.
    `has_own_split`: whether the data says which images are for validation.
    """

    outputs: tuple[str, ...]
    ids: tuple[int, ...]
    features: FeatureSet | None
    taxonomy: Taxonomy | None
    has_own_split: bool

    @property
    def uses_kept_features(self) -> bool:
        """Whether the head is trained on cached features."""
        return _needs_features_alone(self.config, self.augment)

    @property
    def train_views(self) -> tuple[int, ...]:
        """The views of the training images that a head is trained on."""
        return tuple(range(1, self.config.views + 1)) if self.config.views else (CLEAN,)

    def split_features(self, split: str, views: Sequence[int] = (CLEAN,)) -> NDArray[np.float32]:
        """Cached features (len(views) * N, ...) of a split."""
        if self.features is None:
            raise ValueError("this task caches no features")
        return self.features.get(self.store, self.store.indices(split), views)

    def features_at(self, places: Sequence[int]) -> NDArray[np.float32]:
        """Cached features (N, ...) of the images at `places` in the store."""
        if self.features is None:
            raise ValueError("this task keeps no features")
        return self.features.get(self.store, places, (CLEAN,))

    def strata(self, places: Sequence[int]) -> NDArray[np.int64]:
        """The stratum (N,) of each of the images at `places`, which all parts of them get in equal shares."""
        return np.array([self.ids[i] for i in places], np.int64)

    def folds(self, places: Sequence[int]) -> list[Fold] | None:
        """Folds of the images at `places` for choosing C; None if there are too few images or groups for two folds."""
        ids = self.strata(places)
        images = [self.store.images[i] for i in places]
        hashes = [self.store.hashes[i] for i in places]
        return find_folds(ids, hashes, [image.group for image in images], SOLVER_FOLDS, self.config.seed)

    def parts(self, places: Sequence[int], count: int) -> list[list[int]]:
        """The images at `places` in up to `count` parts of similar classes; groups and equal files stay together."""
        images, hashes = [self.store.images[i] for i in places], [self.store.hashes[i] for i in places]
        ids, groups = self.strata(places), [image.group for image in images]
        return [[places[i] for i in part] for part in cut_parts(ids, hashes, groups, count, self.config.seed)]


@dataclass(frozen=True)
class Task(FeatureTask):
    """The prepared inputs of a classification run. `ids`: class id of each image in the store.

    `unlabeled`: images without labels, None if there are none.
    """

    unlabeled: ImageStore | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; index = class id."""
        return self.outputs

    def true_ids(self, split: str) -> NDArray[np.int64]:
        """Class ids int64 (N,) of a split, in the store's order."""
        return np.array([self.ids[i] for i in self.store.indices(split)], dtype=np.int64)


# (config, info, number of outputs, weights file): raises `TlError` if no network can be built from them.
Check = Callable[[TrainConfig, BackboneInfo, int, WeightsFile | None], None]


def prepare_task(config: TrainConfig, progress: Progress, check: Check = lambda *parts: None) -> Task:
    """Read all inputs of a run. `check` is called before images are opened, which is slow.

    Raises any `TlError` of the individual steps.
    """
    asked, config = config, resolve(config)
    if config.task != "classification":
        raise ConfigError(
            f"{config.data} contains {config.task}, but this command requires classes; set "
            "task to override the detected task"
        )
    boxed = read_run_data(config, progress)
    found, failed = boxed.images, boxed.failed
    if (crop := run_crop(config, has_boxes=found[0].box is not None)) is not None:
        found, outside = locate(found, crop)
        failed = [*failed, *outside]
    if not config.skip_bad:
        check_found(failed)
    has_own_split = any(image.split == "val" for image in found)

    def split(images: Sequence[LabeledImage]) -> list[LabeledImage]:
        images = assign_splits(images, settled(config.val_fraction), config.seed)
        return images if config.per_class is None else limit_per_class(images, config.per_class, config.seed)

    def bind(images: Sequence[LabeledImage], config: TrainConfig) -> tuple[str, ...]:
        class_names = _check_data(images, config)
        taxonomy_of(config.taxonomy, class_names)
        return class_names

    inputs = prepare_inputs(asked, config, found, split, bind, check, progress)
    ids = tuple(class_ids(inputs.store.images, inputs.outputs))
    taxonomy = taxonomy_of(config.taxonomy, inputs.outputs)
    bad = [*inputs.bad, *failed, *((image, "no box to use") for image in boxed.unboxed)]
    unlabeled = None if config.unlabeled is None else _read_unlabeled(config.unlabeled, inputs, progress)
    task = Task(**vars(inputs) | {"ids": ids, "taxonomy": taxonomy, "bad": bad, "unlabeled": unlabeled})
    return dataclasses.replace(task, config=dataclasses.replace(task.config, refit=refits(task, has_own_split)))


def prepare_inputs(
    asked: TrainConfig,
    config: TrainConfig,
    found: Sequence[LabeledImage],
    split: Callable[[Sequence[LabeledImage]], list[LabeledImage]],
    bind: Callable[[Sequence[LabeledImage], TrainConfig], tuple[str, ...]],
    check: Check,
    progress: Progress,
) -> FeatureTask:
    """Read the images of a run; all `ids` are 0. `asked`: the config before it was resolved.

    `split` assigns the images to splits. `bind`: split images and config -> names of the head's outputs; called again
    for the readable images. `check` is called before images are opened. Raises any `TlError` of the individual steps.
    """
    info = remembered_info(config.backbone, find_info)
    preprocessing = build_run_preprocessing(config, info)
    augment = build_augment(str(config.augment), preprocessing)
    found = tie_sequences(found, config.sequence, progress.say)
    has_own_split = any(image.split == "val" for image in found)
    images = split(found)
    config = _fit_epochs(fit_batch(config, images, asked.batch_size), images, asked, has_own_split)
    weights, info = find_start(config, info)
    check(config, info, len(bind(images, config)), weights)
    features = None
    if weights is not None and config.normalize == "backbone":
        features = open_run_features(config, info, preprocessing, augment, weights)

    def is_done(image: LabeledImage, digest: str) -> bool:
        if features is None or not _needs_features_alone(config, augment):
            return False
        views = range((config.views or 0) + 1) if image.split == "train" else (CLEAN,)
        return features.has(content_key(image, digest), views)

    store, bad = load_images(images, preprocessing, config.cache, progress, is_done=is_done)
    if not config.skip_bad:
        check_readable(bad, options=["skip_bad"])
    outputs = bind(store.images, config)  # again: classes may have disappeared with unreadable images
    first = store.indices("train")[0]
    if augment is not None and not is_done(store.images[first], store.hashes[first]):
        augment(store.working(first), config.seed)  # detects an invalid augmentation now
    info = measure_colors(config, info, store, progress)
    if config.normalize == "dataset" and weights is not None:
        features = open_run_features(config, info, preprocessing, augment, weights)
    ids = (0,) * len(store.images)
    return FeatureTask(
        config, info, preprocessing, augment, weights, store, bad, outputs, ids, features, None, has_own_split
    )


def _read_unlabeled(folder: str, inputs: FeatureTask, progress: Progress) -> ImageStore:
    """Read the images of a folder that are not among the labeled ones, at most `MOST_UNLABELED`. Raises `DataError`."""
    features, known = inputs.features, {os.path.realpath(image.path) for image in inputs.store.images}
    paths = [path for path in find_images([folder]).paths if os.path.realpath(path) not in known]
    if len(paths) > MOST_UNLABELED:
        drawn = np.random.default_rng(inputs.config.seed).choice(len(paths), MOST_UNLABELED, replace=False)
        progress.say(f"{folder}: {MOST_UNLABELED} of {len(paths)} images without labels are used, drawn at random")
        paths = [paths[i] for i in sorted(drawn.tolist())]
    images = [LabeledImage(path, path, "") for path in paths]
    store, bad = load_images(
        *(images, inputs.preprocessing, inputs.config.cache, progress),
        is_done=lambda image, digest: features is not None and features.has(content_key(image, digest), (CLEAN,)),
    )
    if bad:
        progress.say(f"{folder}: {len(bad)} images cannot be read and are left out, first {bad[0][0].name}")
    labeled = set(inputs.store.hashes)
    kept = [i for i, digest in enumerate(store.hashes) if digest not in labeled]
    if not kept:
        raise DataError(f"{folder}: has no readable images besides the labeled ones: leave out unlabeled")
    return dataclasses.replace(
        store,
        images=tuple(store.images[i] for i in kept),
        hashes=tuple(store.hashes[i] for i in kept),
        kept={n: store.kept[i] for n, i in enumerate(kept) if i in store.kept},
    )


def refits(task: FeatureTask, has_own_split: bool) -> bool:
    """Whether the final network is fitted to all images. Raises `DataError` if that is asked for and impossible."""
    config = task.config
    if not _may_refit(config, has_own_split):
        return False
    if config.interpolate:
        return True
    is_possible = task.folds([*task.store.indices("train"), *task.store.indices("val")]) is not None
    if config.refit and not is_possible:
        raise DataError("refit requires two images of each class, in two groups if there are groups")
    return is_possible


def _may_refit(config: TrainConfig, has_own_split: bool) -> bool:
    """Whether the final network may be fitted to the validation images too."""
    return can_refit(config) and (not has_own_split if config.refit is None else config.refit)


def network_card(task: Task, temperature: float) -> NetworkCard:
    """The network's description, stored in `best.safetensors`."""
    weights = task.weights.description if task.weights else "none"
    return NetworkCard(task.class_names, (), task.preprocessing, weights, temperature)


def find_info(name: str) -> BackboneInfo:
    """Like `backbones`, which takes seconds to import."""
    from tl.trainer.models.backbones import find_backbone_info

    return find_backbone_info(name)


def open_run_features(
    config: TrainConfig, info: BackboneInfo, preprocessing: Preprocessing, augment: Augment | None, weights: WeightsFile
) -> FeatureSet:
    """Open the feature cache, keyed by everything that affects a feature, including torchvision's or timm's version."""
    pooling = "map" if config.head == "conv" else config.pooling
    if config.method != "features":
        pooling = "gap"  # features only used to inspect the data
    changes = {}
    if config.views and augment is not None:
        changes = {"augment": augment.fingerprint, "seed": str(config.seed)}
    return open_features(
        backbone=config.backbone,
        until=config.trunk_until or "",
        pooling=pooling,
        weights=weights.sha256,
        preprocessing=preprocessing_key(preprocessing),
        colors=f"{info.mean} {info.std}",
        tl=__version__ if config.backbone in OWN_BACKBONES else "",
        library=metadata.version(library_of(config.backbone)),
        **changes,
    )


def _needs_features_alone(config: TrainConfig, augment: Augment | None) -> bool:
    return config.method == "features" and (augment is None or config.views is not None)


def find_start(config: TrainConfig, info: BackboneInfo) -> tuple[WeightsFile | None, BackboneInfo]:
    """The tensors to start from, and the backbone with the color statistics they expect. Raises `WeightsError`."""
    weights = find_weights(info, str(config.weights))
    if weights is not None and weights.is_run and config.normalize == "backbone":
        mean, std = read_colors(weights)  # the statistics that this trunk was trained with
        info = dataclasses.replace(info, mean=mean, std=std)
    num_channels = len(parse_channels(config.channels) or ())
    return weights, with_channels(info, num_channels) if num_channels > len(info.mean) else info


def measure_colors(config: TrainConfig, info: BackboneInfo, store: ImageStore, progress: Progress) -> BackboneInfo:
    """The backbone with the color statistics of the training images, if the config requests them."""
    if config.normalize != "dataset":
        return info
    mean, std = color_statistics(store.input(i) for i in store.indices("train"))
    progress.say(f"colors of the training images: mean {_shown_rgb(mean)}, std {_shown_rgb(std)}")
    return dataclasses.replace(info, mean=mean, std=std)


def fit_batch(config: TrainConfig, images: Sequence[LabeledImage], asked: int | None) -> TrainConfig:
    """Shrink a default batch size to fit the data. Raises `ConfigError` if an explicitly set one does not fit."""
    count = sum(image.split == "train" for image in images) * (config.views or 1)
    if asked is not None and asked > count:
        raise ConfigError(
            f"batch_size {asked} is larger than the {count} training images", options=[f"batch_size={count}"]
        )
    return dataclasses.replace(config, batch_size=min(int(config.batch_size or count), count))


def _fit_epochs(
    config: TrainConfig, images: Sequence[LabeledImage], asked: TrainConfig, has_own_split: bool
) -> TrainConfig:
    """Increase the default number of epochs of fine-tuning from a solved head for few images."""
    if asked.epochs is not None or not config.interpolate:
        return config
    count = sum(image.split == "train" for image in images)
    if _may_refit(config, has_own_split):  # all validation images but one part
        soup = settled(config.soup)
        count += sum(image.split == "val" for image in images) * (soup - 1) // soup
    steps = math.ceil(count / settled(config.batch_size))
    epochs = max(settled(config.epochs), min(math.ceil(MIN_STEPS / steps), MAX_EPOCHS))
    drop = config.drop_epochs if asked.drop_epochs is not None else max(1, epochs // 3)
    return dataclasses.replace(config, epochs=epochs, drop_epochs=drop)


def _check_data(images: Sequence[LabeledImage], config: TrainConfig) -> tuple[str, ...]:
    """Return the class names after checking that the data suffices for training and evaluation. Raises `DataError`."""
    class_names = bind_class_names(images)
    class_ids(images, class_names)
    for split in ("val", "test") if config.test else ("val",):
        if not any(image.split == split for image in images):
            raise DataError(f"the data set has no images in its {split} split")
    return class_names


def build_run_preprocessing(config: TrainConfig, info: BackboneInfo) -> Preprocessing:
    """The preprocessing of a resolved config."""
    side = config.image_size or info.image_size
    short_side, channels = None, parse_channels(config.channels)
    if config.resize_mode == "short_side" and info.short_side > info.image_size:
        short_side = round(side * info.short_side / info.image_size)  # the ratio used to validate the published weights
    return build_preprocessing(
        (side, side),
        settled(config.resize_mode),
        short_side=short_side,
        interpolation=info.interpolation,
        pad_rgb=tuple(round(255 * info.mean[i % len(info.mean)]) for i in range(max(3, len(channels or ())))),
        bit_depth_max=config.bit_depth_max,
        jpeg_scale=config.jpeg_scale,
        channels=channels,
        project=config.project,
    )


def _shown_rgb(rgb: Sequence[float]) -> str:
    """Three numbers formatted for display."""
    return " ".join(f"{value:.4f}" for value in rgb)
