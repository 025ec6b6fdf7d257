"""List the images of a data set with their labels and splits.

Reads class folders, train/val/test folders and CSV manifests. Opens no images and never imports torch.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError
from tl.runtime.imaging.geometry import Region
from tl.runtime.sources.paths import find_images

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabeledImage:
    """One labeled image. `path` opens it; `name` is its path within the data set, with '/'.

    `split` is '' if the data set does not define it. `group` marks images of the same specimen; '' is no group.
    `region`: the part of the image to use, (left, top, width, height) in pixels; None for the whole image.
    """

    path: str
    name: str
    label: str
    split: str = ""
    group: str = ""
    region: Region | None = None


def read_images(
    data: str | os.PathLike[str], split_column: str = "split", say: Callable[[str], None] = lambda line: None
) -> list[LabeledImage]:
    """Read a data set. `say` receives messages about skipped files.

    Raises `DataError` with the place, what was found, and the remedy.
    """
    root = Path(data)
    if root.is_dir():
        images = _read_split_folders(root, say) if (root / "train").is_dir() else _read_classes(root, root, "", say)
    elif root.is_file():
        images = _read_manifest(root, split_column)
    else:
        raise DataError(f"{root}: no such folder or CSV file")
    if not images:
        raise DataError(f"{root}: no images found; expected one folder of images per class")
    _check_labels(root, images)
    return images


def bind_class_names(images: Sequence[LabeledImage]) -> tuple[str, ...]:
    """Return the training split's classes, sorted; index = class id. Raises `DataError` for fewer than two."""
    names = tuple(sorted({image.label for image in images if image.split == "train"}))
    if len(names) < 2:
        raise DataError(f"the training split has {len(names)} class ({', '.join(names)}): at least two are needed")
    return names


def class_ids(images: Iterable[LabeledImage], class_names: Sequence[str]) -> list[int]:
    """Map labels to ids. Raises `DataError` that names the first image of each unknown class."""
    index = {name: i for i, name in enumerate(class_names)}
    unknown: dict[str, LabeledImage] = {}
    ids = []
    for image in images:
        if image.label not in index:
            unknown.setdefault(image.label, image)
        ids.append(index.get(image.label, -1))
    if unknown:
        faults = []
        for label, image in unknown.items():
            match = get_close_matches(label, class_names, n=1)
            hint = f" (nearest: '{match[0]}')" if match else ""
            faults.append(f"class '{label}' of {image.name}{hint}")
        raise DataError(f"not among the {len(class_names)} known classes: {'; '.join(faults)}")
    return ids


def assign_splits(images: Sequence[LabeledImage], val_fraction: float, seed: int) -> list[LabeledImage]:
    """Assign every image to a split. Without splits in the data, hold out `val_fraction` of each class.

    Groups stay whole. If the data has a training but no validation split, take validation images from training. Raises
    `DataError`.
    """
    splits = Counter(image.split for image in images)
    if splits[""] and len(splits) > 1:
        nameless = next(image for image in images if not image.split)
        raise DataError(f"{nameless.name}: has no split, but other images do: give all images a split, or none")
    if splits["val"]:
        check_groups(images)
        if not splits["train"]:
            raise DataError("the data set has no training split")
        return list(images)
    pool = [i for i, image in enumerate(images) if image.split in ("", "train")]
    if not pool:
        raise DataError("the data set has no training split")
    held_out = {pool[i] for i in _held_out([images[i] for i in pool], val_fraction, seed)}
    assigned = [
        dataclasses.replace(p, split="val" if i in held_out else "train") if p.split in ("", "train") else p
        for i, p in enumerate(images)
    ]
    check_groups(assigned)
    return assigned


def limit_per_class(images: Sequence[LabeledImage], count: int, seed: int) -> list[LabeledImage]:
    """Keep `count` training images of each class, drawn with `seed`, and all images of the other splits.

    Raises `DataError` if a class has fewer.
    """
    by_label: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        if image.split == "train":
            by_label.setdefault(image.label, []).append(i)
    short = [f"'{label}' has {len(places)}" for label, places in sorted(by_label.items()) if len(places) < count]
    if short:
        raise DataError(f"per_class {count}: too few training images: class {', '.join(short)}")
    rng = np.random.default_rng(seed)
    kept = {int(i) for _, places in sorted(by_label.items()) for i in rng.permutation(places)[:count]}
    return [image for i, image in enumerate(images) if image.split != "train" or i in kept]


def hash_data(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return the SHA-256 over each image's (content hash, label, split), independent of order."""
    lines = sorted("\t".join(row) + "\n" for row in rows)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _held_out(images: Sequence[LabeledImage], val_fraction: float, seed: int) -> list[int]:
    by_label: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        by_label.setdefault(image.label, []).append(i)
    for label, places in by_label.items():
        if len(places) < 2:
            what = f"class '{label}' has" if label else "the data set has"
            raise DataError(f"{what} only one image: at least two are needed, for training and validation")
    if any(image.group for image in images):
        return _held_out_groups(images, val_fraction, seed)
    rng = np.random.default_rng(seed)
    held_out: list[int] = []
    for _, places in sorted(by_label.items()):
        count = min(len(places) - 1, max(1, round(len(places) * val_fraction)))
        held_out += rng.permutation(places)[:count].tolist()
    return held_out


def _held_out_groups(images: Sequence[LabeledImage], val_fraction: float, seed: int) -> list[int]:
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [image.label for image in images]
    groups = [image.group or f"\0{i}" for i, image in enumerate(images)]
    # scikit-learn allows no more folds than the largest class has images, and no more than there are groups.
    folds = min(max(2, round(1 / val_fraction)), max(Counter(labels).values()), len(set(groups)))
    if folds < 2:
        raise DataError(
            "all images belong to one group, which cannot be split: add a split column, or define more groups"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warns that a class is smaller than the number of folds
        held_out = [int(i) for i in next(iter(splitter.split(labels, labels, groups)))[1]]
    lost = set(labels) - {labels[i] for i in set(range(len(labels))) - set(held_out)}
    if lost:
        raise DataError(f"class '{min(lost)}' has too few groups for training and validation: add a split column")
    return held_out


def _read_classes(folder: Path, root: Path, split: str, say: Callable[[str], None]) -> list[LabeledImage]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = [entry for entry in entries if entry.is_dir()]
    if not classes:
        raise DataError(f"{folder}: contains no class folders; expected one folder of images per class")
    if not split:
        _check_not_splits(folder, classes)
    images = []
    hidden, others = 0, len(entries) - len(classes)
    for entry in classes:
        found = find_images([entry])
        if not found.paths:
            raise DataError(f"{entry}: this class folder contains no images: add images or remove it")
        hidden, others = hidden + found.hidden, others + found.not_images
        names = [Path(path).relative_to(root).as_posix() for path in found.paths]
        images += [LabeledImage(path, name, entry.name, split) for path, name in zip(found.paths, names, strict=True)]
    if hidden or others:
        say(f"{folder}: skipped {hidden} hidden files and {others} that are not images, by name or location")
    return images


def _check_not_splits(folder: Path, classes: Sequence[Path]) -> None:
    usual = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    named = [entry.name for entry in classes if entry.name.casefold() in usual]
    if named:
        wanted = usual[named[0].casefold()]
        raise DataError(
            f"{folder}: folder '{named[0]}' is probably a split, not a class: name the split folders "
            f"train, val and test; train is required ('{named[0]}' -> '{wanted}')"
        )


def _read_split_folders(root: Path, say: Callable[[str], None]) -> list[LabeledImage]:
    others = [e.name for e in root.iterdir() if e.is_dir() and e.name not in SPLITS and not e.name.startswith(".")]
    if others:
        raise DataError(f"{root}: unexpected folder '{sorted(others)[0]}': expected only train/, val/ and test/")
    splits = [split for split in SPLITS if (root / split).is_dir()]
    return [image for split in splits for image in _read_classes(root / split, root, split, say)]


def _read_manifest(manifest: Path, split_column: str) -> list[LabeledImage]:
    try:
        with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            rows, columns = [(reader.line_num, row) for row in reader], reader.fieldnames or []
    except (OSError, csv.Error) as error:
        raise DataError(f"{manifest}: not a readable CSV file ({error})") from error
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise DataError(f"{manifest}: has no column {' and '.join(missing)} (found: {', '.join(columns)})")
    if split_column != "split" and split_column not in columns:
        raise DataError(f"{manifest}: has no column '{split_column}' (found: {', '.join(columns)})")
    if not rows:
        raise DataError(f"{manifest}: contains a header but no rows")
    images = [_manifest_row(manifest, line, row, split_column) for line, row in rows]
    _check_manifest(manifest, images)
    return images


def _manifest_row(manifest: Path, line: int, row: dict[str, str], split_column: str) -> LabeledImage:
    name, label = os.path.normpath(row["path"]) if row["path"] else "", row["label"]
    split = (row.get(split_column) or "").strip()
    if not name or not label:
        raise DataError(f"{manifest.name} row {line}: path and label must not be empty")
    if split and split not in SPLITS:
        raise DataError(f"{manifest.name} row {line}: split '{split}' is not one of {', '.join(SPLITS)}")
    return LabeledImage(os.path.join(manifest.parent, name), name, label, split, row.get("group") or "")


def _check_manifest(manifest: Path, images: Sequence[LabeledImage]) -> None:
    names = Counter(image.name for image in images)
    if doubled := [name for name, count in names.items() if count > 1]:
        count = "1 image appears" if len(doubled) == 1 else f"{len(doubled)} images appear"
        raise DataError(f"{manifest.name}: {count} in several rows, first {doubled[0]}")
    if absent := [image.name for image in images if not os.path.lexists(image.path)]:
        raise DataError(
            f"{manifest.name}: {len(absent)} of {len(images)} images do not exist, first {absent[0]} "
            f"(paths are relative to {manifest.parent})"
        )


def _check_labels(root: Path, images: Sequence[LabeledImage]) -> None:
    spellings: dict[str, str] = {}
    for image in images:
        try:
            image.label.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{root}: class name {image.label!r} is not UTF-8: rename its folder") from error
        usual = unicodedata.normalize("NFKC", " ".join(image.label.split())).casefold()
        other = spellings.setdefault(usual, image.label)
        if other != image.label:
            raise DataError(
                f"{root}: labels '{other}' and '{image.label}' differ only in case or spaces: use one spelling"
            )
        if image.label != image.label.strip():
            raise DataError(
                f"{root}: label '{image.label}' of {image.name} begins or ends with a space: remove the space"
            )


def check_groups(images: Sequence[LabeledImage]) -> None:
    """Raise `DataError` for a group with images in two splits."""
    homes: dict[str, str] = {}
    for image in images:
        if image.group and homes.setdefault(image.group, image.split) != image.split:
            raise DataError(
                f"group '{image.group}' has images in both {homes[image.group]} and {image.split}, "
                f"for example {image.name}: keep each group in one split"
            )


# (training, held-out) indices in the pool of images.
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def cut_folds(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], count: int, seed: int
) -> list[Fold]:
    """Hold out every image once, with stratified classes; groups ('' is none) and equal files stay in one fold.

    `true_ids` int64 (N,). Raises `DataError` if there are too few images or groups for `count` folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    tied = _inseparable(hashes, groups)
    smallest = int(np.unique(true_ids, return_counts=True)[1].min())
    is_grouped = len(set(tied)) < len(tied)
    if count > min(smallest, len(set(tied))):
        groups_too = f" and at least as many groups (found {len(set(tied))})" if is_grouped else ""
        cure = "lower folds" if smallest > 1 else "add images to it"
        raise DataError(
            f"{count} folds require at least as many images of each class{groups_too}; the smallest "
            f"class has {smallest}: {cure}"
        )
    splitter = (StratifiedGroupKFold if is_grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    folds = list(splitter.split(true_ids, true_ids, tied if is_grouped else None))
    if any(len(set(true_ids[train])) < len(set(true_ids)) for train, _ in folds):
        raise DataError(f"{count} folds leave a class without training images: it has too few groups")
    return folds


def find_folds(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], most: int, seed: int
) -> list[Fold] | None:
    """Return `cut_folds` for the largest possible number of folds up to `most`; None if two are not possible."""
    for count in range(most, 1, -1):
        with suppress(DataError):
            return cut_folds(true_ids, hashes, groups, count, seed)
    return None


def cut_parts(
    true_ids: NDArray[np.int64], hashes: Sequence[str], groups: Sequence[str], count: int, seed: int
) -> list[NDArray[np.intp]]:
    """Divide images into up to `count` parts of similar size and classes; none is empty.

    `true_ids` int64 (N,). Groups ('' is none) and equal files stay in one part. Unlike `cut_folds`, a part may lack a
    class.
    """
    tied = np.array(_inseparable(hashes, groups))
    numbers, first, sizes = np.unique(tied, return_index=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    dealt = sorted(shuffled, key=lambda i: (true_ids[first[i]], -sizes[i]))  # as cards, class by class
    parts = [np.flatnonzero(np.isin(tied, numbers[dealt[start::count]])) for start in range(count)]
    return [part for part in parts if len(part)]


def _inseparable(hashes: Sequence[str], groups: Sequence[str]) -> list[int]:
    """A number for each image, shared by all images connected through equal files or groups, directly or indirectly."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ties = [*((i, ("hash", digest)) for i, digest in enumerate(hashes))]
    ties += [(i, ("group", group)) for i, group in enumerate(groups) if group]
    nodes = {key: len(hashes) + n for n, key in enumerate(dict.fromkeys(key for _, key in ties))}
    count = len(hashes) + len(nodes)
    rows, columns = [i for i, _ in ties], [nodes[key] for _, key in ties]
    graph = coo_array((np.ones(len(ties)), (rows, columns)), shape=(count, count))
    numbers: list[int] = connected_components(graph, directed=False)[1][: len(hashes)].tolist()
    return numbers
