"""Numbers as labels: read them from a CSV, convert them to arrays, and hold out images of all sizes of number.

Opens no images and never imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import TARGET_SEPARATOR, USUAL_COLUMNS, LabeledImage, ManifestColumns, read_manifest
from tl.data.splits import assign_splits
from tl.errors import DataError
from tl.runtime.sources.tables import read_table

# Images are held out from each tenth of the numbers; with fewer images, from larger parts.
_STRATA, _IMAGES_A_STRATUM = 10, 5
# float32 has 7 digits: beyond this ratio of mean to standard deviation, they do not suffice.
_MAX_OFFSET = 1000


def read_numbers(
    data: str, columns: ManifestColumns, say: Callable[[str], None]
) -> tuple[tuple[str, ...], list[LabeledImage]]:
    """Names of the targets, and the images with their numbers as labels. Without `columns.targets`, the label column.

    Raises `DataError`.
    """
    path = Path(data)
    if not path.is_file():
        raise DataError(f"{data}: numbers are read from a CSV file with a column of paths and columns of numbers")
    table = read_table(path)
    names = columns.targets or ((table.column("label", columns.label)),)
    if names == ("",):
        raise DataError(f"{path.name}: has no column label (found: {table.shown})", options=["target=COLUMN"])
    return names, _whole(path, read_manifest(path, dataclasses.replace(columns, targets=names), say))


def numbers_of(images: Sequence[LabeledImage], count: int) -> NDArray[np.float64]:
    """The numbers (N, T) in the images' labels, NaN where missing. Raises `DataError` for another kind of label."""
    rows = []
    for image in images:
        cells = image.label.split(TARGET_SEPARATOR)
        try:
            rows.append([float(cell) if cell else math.nan for cell in cells])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != count:
            expected = f"{count} numbers joined by '{TARGET_SEPARATOR}'" if count > 1 else "a number"
            raise DataError(f"{image.name}: expected {expected} as label, found '{image.label}'")
    return np.array(rows, np.float64).reshape(-1, count)


def strata_of(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """The part of the range of the first target (N,) that each image is in, by rank; a missing number is largest."""
    count = max(1, min(_STRATA, len(numbers) // _IMAGES_A_STRATUM))
    ranks = np.argsort(np.argsort(numbers[:, 0], kind="stable"), kind="stable")
    return np.asarray(ranks * count // len(numbers), np.int64)


def assign_number_splits(images: Sequence[LabeledImage], val_fraction: float, seed: int) -> list[LabeledImage]:
    """Like `assign_splits`; images are held out from every part of the range of numbers."""
    pool = [i for i, image in enumerate(images) if image.split in ("", "train")]
    numbers = numbers_of([images[i] for i in pool], len(images[0].label.split(TARGET_SEPARATOR)))
    strata = dict(zip(pool, strata_of(numbers).tolist(), strict=True)) if pool else {}
    by_stratum = [dataclasses.replace(image, label=str(strata.get(i, ""))) for i, image in enumerate(images)]
    splits = [image.split for image in assign_splits(by_stratum, val_fraction, seed)]
    return [dataclasses.replace(image, split=split) for image, split in zip(images, splits, strict=True)]


def check_numbers(numbers: NDArray[np.float64], names: Sequence[str]) -> None:
    """Raise `DataError` for targets of the training images (N, T) that a model cannot learn."""
    for name, column in zip(names, numbers.T, strict=True):
        known = column[~np.isnan(column)]
        if len(np.unique(known)) < 2:
            raise DataError(f"'{name}' has {len(np.unique(known))} different numbers in the training images")
        if abs(known.mean()) > _MAX_OFFSET * known.std():
            raise DataError(
                f"'{name}' varies by {known.std():.3g} around {known.mean():.6g}, too little for the 7 digits of a "
                "network's numbers: subtract a constant from it"
            )


def read_numbers_of(
    data: str | os.PathLike[str],
    names: Sequence[str],
    columns: ManifestColumns = USUAL_COLUMNS,
    say: Callable[[str], None] = lambda line: None,
) -> list[LabeledImage]:
    """The images, with the numbers of targets `names` as labels: from columns of these names, or the label column.

    Raises `DataError`.
    """
    path = Path(data)
    if not path.is_file():
        raise DataError(f"{data}: numbers are read from a CSV file with a column of paths and columns of numbers")
    table = read_table(path)
    if columns.label is None and set(names) <= set(table.columns):
        columns = dataclasses.replace(columns, targets=tuple(names))
    elif not columns.targets and not table.column("label", columns.label):
        lacking = next(name for name in names if name not in table.columns)
        raise DataError(f"{path.name}: has no column '{lacking}', which the model predicts (found: {table.shown})")
    return _whole(path, read_manifest(path, columns, say))


def _whole(path: Path, images: list[LabeledImage]) -> list[LabeledImage]:
    """The images. Raises `DataError` if a number is that of a box."""
    if boxed := next((image for image in images if image.box is not None), None):
        raise DataError(
            f"{path.name}: {boxed.name} has a box, but numbers are predicted for whole images: leave it out"
        )
    return images
