"""Labeled images processed by a model file: the resulting classes, the embeddings, and the file's own predictions.

Does not fit a head or write a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.data.audit import find_duplicates, summarize
from tl.data.images import ImageStore, check_readable, load_images
from tl.data.manifests import USUAL_COLUMNS, LabeledImage, ManifestColumns, read_images
from tl.data.splits import assign_splits, check_groups
from tl.errors import DataError
from tl.evaluation.metrics import Metrics, classification_metrics
from tl.exporter.refitting.graph import EMBEDDING
from tl.progress import Progress
from tl.runtime.landmarks.files import contains_landmarks
from tl.runtime.model_file.contract import Contract
from tl.runtime.session import Session

_BATCH = 8


@dataclass(frozen=True)
class RefitOptions:
    """User options. `drop`: omit classes of the model that have no images; otherwise they are an error.

    `skip_bad`: continue without unreadable images. `golden`: self-test samples, validation images or synthetic ones.
    """

    head: Literal["linear", "svm"] = "linear"
    c_values: Sequence[float] | None = None
    val_fraction: float = 0.2
    seed: int = 0
    columns: ManifestColumns = USUAL_COLUMNS
    drop: bool = False
    skip_bad: bool = False
    golden: Literal["validation", "synthetic"] = "validation"
    false_alarm: float = 0.05


@dataclass(frozen=True)
class Seen:
    """Readable images and the old file's outputs: embeddings (N, D), probabilities (N, C_old)."""

    store: ImageStore
    class_names: tuple[str, ...]
    ids: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    old: NDArray[np.float32]

    def split(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings and class ids of a split."""
        places = self.store.indices(name)
        return self.embeddings[places], self.ids[places]


def embed(session: Session, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, H, W, 3) -> embeddings (N, D), in batches."""
    parts = [session.run(inputs[i : i + _BATCH], [EMBEDDING])[0] for i in range(0, len(inputs), _BATCH)]
    return np.concatenate(parts)


def read_labeled(
    data: Sequence[str | os.PathLike[str]], options: RefitOptions, progress: Progress
) -> list[LabeledImage]:
    """Read all data sets together; if only some define splits, each is split separately.

    Raises `DataError`, also for landmarks, and for a group that would be in both splits.
    """
    for each in data:
        _check_classes(Path(each))
    files = [Path(each).is_file() for each in data]  # without any, options for CSV files are an error
    usual = ManifestColumns(options.columns.split)
    columns = [options.columns if is_file or not any(files) else usual for is_file in files]
    found = [read_images(each, own, progress.say) for each, own in zip(data, columns, strict=True)]
    pool = [image for images in found for image in images]
    if not any(image.split for image in pool):
        return assign_splits(pool, options.val_fraction, options.seed)
    split = [p for images in found for p in assign_splits(images, options.val_fraction, options.seed)]
    check_groups(split)
    return split


def _check_classes(data: Path) -> None:
    """Raise `DataError` for landmark data, whose folder of photos would otherwise be taken for a class."""
    files = sorted(data.iterdir()) if data.is_dir() else [data]
    if points := next(filter(contains_landmarks, files), None):
        where = str(data) if points == data else f"{data}: {points.name}"
        raise DataError(
            f"{where} contains landmarks, but a classifier is refitted to classes: give class folders, or a CSV with "
            "path and label"
        )


def settle_class_names(contract: Contract, images: Sequence[LabeledImage], drop: bool) -> tuple[str, ...]:
    """Classes of the training images: the model's in its order, then new ones. Raises `DataError`."""
    there = {image.label for image in images if image.split == "train"}
    lacking = [name for name in contract.class_names if name not in there]
    new = sorted(there - set(contract.class_names))
    spellings: dict[str, str] = {}
    for name in (*contract.class_names, *new):
        other = spellings.setdefault(name.casefold(), name)
        if other != name and name in new:
            raise DataError(f"labels '{other}' and '{name}' differ only in case: use one spelling")
    if lacking and not drop:
        raise DataError(
            f"no training images of {', '.join(map(repr, lacking))}, which are classes of the model: the "
            "new head requires images of every class; give several data sets, or drop these classes permanently",
            options=["drop"],
        )
    names = (*(name for name in contract.class_names if name in there), *new)
    if len(names) < 2:
        raise DataError(f"{len(names)} class with training images: at least two are required")
    unknown = {image.label for image in images} - set(names)
    if unknown:
        raise DataError(
            f"no training images of {', '.join(map(repr, sorted(unknown)))}, but other splits contain such images"
        )
    return names


def audit_data(
    session: Session,
    contract: Contract,
    images: Sequence[LabeledImage],
    class_names: tuple[str, ...],
    options: RefitOptions,
    progress: Progress,
) -> Seen:
    """Open the training and validation images and run the old file on them. Raises `DataError`."""
    used = [image for image in images if image.split in ("train", "val")]
    store, bad = load_images(used, contract.preprocessing, "auto", progress)
    if not options.skip_bad:
        check_readable(bad, options=["skip_bad"])
    for line in summarize([each for each in find_duplicates(store.images, store.hashes) if "labels" in each.kind]):
        progress.say(line)
    store = _without_copies(store, progress)
    left = {store.images[i].label for i in store.indices("train")}
    if gone := [name for name in class_names if name not in left]:
        raise DataError(f"no readable training images of {', '.join(map(repr, gone))}")
    if not store.indices("val"):
        raise DataError(
            "no validation images that differ from the training images, which are required to select C and fit the "
            "temperature"
        )
    progress.start("computing embeddings", len(store.images), "images")
    embeddings, old = [], []
    inputs = store.map(store.input, range(len(store.images)), ahead=2 * _BATCH)
    for start in range(0, len(store.images), _BATCH):
        batch = np.stack([next(inputs) for _ in store.images[start : start + _BATCH]])
        found = session.run(batch, [EMBEDDING, "probabilities"])
        embeddings.append(found[0])
        old.append(found[1])
        progress.advance(len(batch))
    ids = np.array([class_names.index(image.label) for image in store.images], np.int64)
    return Seen(store, class_names, ids, np.concatenate(embeddings), np.concatenate(old))


def _without_copies(store: ImageStore, progress: Progress) -> ImageStore:
    """Leave out validation images that equal a training image: the head was fitted to them.

    Folds of `tl.trainer` keep such images on one side, too.
    """
    fitted = {store.hashes[i] for i in store.indices("train")}
    copies = [i for i in store.indices("val") if store.hashes[i] in fitted]
    if not copies:
        return store
    progress.say(
        f"{len(copies)} validation images equal training images and are left out, first {store.images[copies[0]].name}"
    )
    kept = sorted(set(range(len(store.images))) - set(copies))
    return replace(
        store,
        images=tuple(store.images[i] for i in kept),
        hashes=tuple(store.hashes[i] for i in kept),
        kept={new: store.kept[old] for new, old in enumerate(kept) if old in store.kept},
    )


def score_old(seen: Seen, old_names: tuple[str, ...]) -> Metrics | None:
    """Metrics of the old head on the same validation images, limited to its own classes."""
    labels = [image.label for image in seen.store.images]
    known = [i for i in seen.store.indices("val") if labels[i] in old_names]
    if not known:
        return None
    true_ids = np.array([old_names.index(labels[i]) for i in known], np.int64)
    return classification_metrics(true_ids, seen.old[known], old_names)
