"""Gather the evidence on the images of a data set or of a run: features, held-out predictions, members' predictions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tl.annotation.problems.evidence import Evidence
from tl.annotation.problems.frozen import Embedded, embed_images, predict_held_out
from tl.annotation.problems.members import predict_members
from tl.data.class_folders import SPLITS
from tl.data.manifests import (
    USUAL_COLUMNS,
    LabeledImage,
    ManifestColumns,
    are_numbers,
    bind_class_names,
    read_images,
)
from tl.errors import DataError, WeightsError, first_line
from tl.progress import Progress, Silent

if TYPE_CHECKING:
    from tl.runtime.imaging.regions import Region
    from tl.trainer.config import TrainConfig

# Of a run's config, what its features depend on.
_OF_FEATURES = (
    *("backbone", "trunk_until", "weights", "pooling", "image_size", "resize_mode", "jpeg_scale", "bit_depth_max"),
    *("channels", "project", "normalize", "cache"),
)
# Those that also apply to another backbone.
_OF_IMAGES = ("jpeg_scale", "bit_depth_max", "channels", "project", "cache")


@dataclass(frozen=True)
class _Source:
    """The labeled images of a data set or run. `config`: how to compute features.

    `held_out`: a run's predictions of images that it was not trained on, in the order of `class_names`.
    """

    images: list[LabeledImage]
    config: TrainConfig
    class_names: tuple[str, ...] = ()
    held_out: Mapping[tuple[str, Region | None], list[float]] = field(default_factory=dict)


def gather_evidence(
    source: str | os.PathLike[str],
    *,
    columns: ManifestColumns = USUAL_COLUMNS,
    members: Sequence[Path] = (),
    backbone: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """Read a data set (class folders, CSV manifest, file of a labeling tool) or a run folder, and its images.

    `columns`: how a CSV manifest is read. `members`: two or more model files, whose predictions are compared.
    `backbone`: what computes the features of a data set; None for the default one. Unreadable images are listed in
    `Evidence.failed`.

    Features come from a frozen backbone: for a run, the one that it started from. A fine-tuned one has been fitted to
    the labels in question. A run's own held-out predictions are used where there are any, and cross-validated linear
    heads on the features predict all other images.
    Raises `DataError` for data of another task than classification, and for data with boxes; `RunError`; errors of
    model files.
    """
    progress = progress or Silent()
    found = _read_run(Path(source)) if is_run(source) else _read_data(source, columns, backbone, progress)
    if any(image.box is not None for image in found.images):
        raise DataError(f"{source}: has boxes, but only labels of whole images can be reviewed")
    embedded = _embed(found, device, threads, seed, progress)
    images = [found.images[i] for i in embedded.places]
    votes = predict_members(members, images, device, threads, progress) if members else None
    names = {*(image.label for image in images), *found.class_names, *(votes.class_names if votes else ())}
    class_names = tuple(sorted(names))
    ids = np.array([class_names.index(image.label) for image in images], np.int64)
    own = _own_predictions(found, images, class_names)
    is_by_run = np.asarray(np.isfinite(own).all(axis=1))
    folds, probabilities = 0, own
    if not is_by_run.all():
        progress.start("cross-validating labels", 1, "heads")
        groups = [image.group for image in images]
        validated = predict_held_out(embedded.features, ids, len(class_names), embedded.hashes, groups, seed)
        folds, probabilities = validated.folds, np.where(is_by_run[:, None], own, validated.probabilities)
        progress.advance()
    return Evidence(
        images=tuple(images),
        hashes=embedded.hashes,
        features=embedded.features,
        ids=ids,
        class_names=class_names,
        probabilities=probabilities,
        is_by_run=is_by_run,
        members=None if votes is None else _aligned(votes.probabilities, votes.class_names, class_names),
        member_names=() if votes is None else votes.names,
        failed=embedded.failed,
        source=_shown_source(folds, int(is_by_run.sum()), len(images)),
    )


def is_run(source: str | os.PathLike[str]) -> bool:
    """Whether a path is a run folder."""
    return (Path(source) / "config.yaml").is_file() and (Path(source) / "manifest.csv").is_file()


def _read_data(
    source: str | os.PathLike[str], columns: ManifestColumns, backbone: str | None, progress: Progress
) -> _Source:
    from tl.trainer.config import TrainConfig
    from tl.trainer.options import find_task

    data = os.fspath(source)
    _check_task(data, find_task(data))
    images = read_images(data, columns, progress.say)
    if are_numbers(images):
        _check_task(data, "regression")
    config = TrainConfig(data=data)
    return _Source(images, config if backbone is None else dataclasses.replace(config, backbone=backbone))


def _read_run(folder: Path) -> _Source:
    from tl.trainer.run_folder.run import Run

    run = Run(folder)
    config = run.load_config()
    _check_task(str(folder), config.task or "classification")
    images = [image for split in SPLITS for image in run.labeled(split)]
    class_names = bind_class_names(images)
    has_start = config.method != "scratch" and config.weights != "none"
    config = _features_config(config, _OF_FEATURES if has_start else _OF_IMAGES)
    config = dataclasses.replace(config, data=str(folder))
    return _Source(images, config, class_names, run.held_out_predictions(class_names))


def _check_task(source: str, task: str) -> None:
    if task != "classification":
        what = {"multilabel": "several labels an image", "regression": "numbers"}.get(task, task)
        raise DataError(f"{source}: has {what}, but only data with one class an image can be reviewed")


def _embed(found: _Source, device: str, threads: int | None, seed: int, progress: Progress) -> Embedded:
    """Features of the images, of the default backbone if the weights that a run started from are gone."""
    config = dataclasses.replace(found.config, device=device, threads=threads, seed=seed)
    try:
        return embed_images(found.images, config, progress)
    except WeightsError as error:
        if not found.class_names:
            raise
        progress.say(f"{first_line(error)}; features are those of the default backbone instead")
        return embed_images(found.images, _features_config(config, _OF_IMAGES), progress)


def _features_config(config: TrainConfig, names: Sequence[str]) -> TrainConfig:
    """The options of `names` of a config, and the defaults of all others."""
    kept: dict[str, Any] = {name: getattr(config, name) for name in names}
    return type(config)(data=config.data, device=config.device, threads=config.threads, seed=config.seed, **kept)


def _own_predictions(found: _Source, images: Sequence[LabeledImage], class_names: Sequence[str]) -> NDArray[np.float32]:
    """The run's held-out predictions (N, C) in the order of `class_names`; rows of NaN for other images."""
    rows = np.full((len(images), len(found.class_names)), np.nan, np.float32)
    for i, image in enumerate(images):
        rows[i] = found.held_out.get(image.key, np.nan)
    if not found.class_names:
        return np.full((len(images), len(class_names)), np.nan, np.float32)
    return _aligned(rows, found.class_names, class_names)


def _aligned(
    probabilities: NDArray[np.float32], own_names: Sequence[str], class_names: Sequence[str]
) -> NDArray[np.float32]:
    """Probabilities (..., own C) in the order of `class_names` (C,): 0 for other classes, rows of NaN stay NaN."""
    aligned = np.zeros((*probabilities.shape[:-1], len(class_names)), np.float32)
    aligned[..., [class_names.index(name) for name in own_names]] = probabilities
    aligned[np.isnan(probabilities).any(axis=-1)] = np.nan
    return aligned


def _shown_source(folds: int, by_run: int, count: int) -> str:
    validated = f"{folds}-fold cross-validation on frozen features" if folds else "nothing: too few images a class"
    if not by_run:
        return validated
    own = "held-out predictions of the run"
    return own if by_run == count else f"{own} for {by_run} images, and {validated}"
