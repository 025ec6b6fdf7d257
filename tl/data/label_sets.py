"""Several labels of one image: read them from a CSV, convert them to arrays, and hold out images of every label.

The label of such an image is a text: the names of its labels joined by `;`, and `?name` for a label of which it is
unknown whether the image has it. Opens no images and never imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import (
    MISSING,
    USUAL_COLUMNS,
    LabeledImage,
    LabelReader,
    ManifestColumns,
    check_labels,
    read_manifest,
)
from tl.data.splits import Fold, assign_splits, inseparable
from tl.data.stratification import stratified_parts
from tl.errors import DataError
from tl.runtime.labeling.label_table import read_label_table
from tl.runtime.labeling.tools import find_tool
from tl.runtime.output.columns import LABEL_SEPARATOR
from tl.runtime.sources.names import composed
from tl.runtime.sources.tables import Table

UNKNOWN = "?"
_PRESENT = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_LABELS_COLUMN = "labels"


def read_label_sets(
    data: str, columns: ManifestColumns, say: Callable[[str], None]
) -> tuple[tuple[str, ...], list[LabeledImage]]:
    """Names of the labels, and the images: from the 0/1 columns `columns.targets`, else from names in one column.

    Raises `DataError`.
    """
    table = _read(data, columns, say)
    if columns.targets:
        names, read_label = tuple(map(composed, columns.targets)), _column_reader(table, columns.targets)
        _check_names(table.where, names)
    else:
        names, read_label = (), _cell_reader(_label_column(table, columns))
    images = read_manifest(Path(data), columns, say, read_label, table)
    found = [(image, name.removeprefix(UNKNOWN)) for image in images for name in _split(image.label)]
    names = names or tuple(sorted({name for _, name in found}))
    if not names:
        raise DataError(f"{table.where}: names no label: every image has none")
    _check_names(table.where, names)
    check_labels(Path(data), [LabeledImage(image.path, image.name, name) for image, name in found])
    return names, images


def read_label_sets_of(
    data: str | os.PathLike[str],
    names: Sequence[str],
    columns: ManifestColumns = USUAL_COLUMNS,
    say: Callable[[str], None] = lambda line: None,
) -> list[LabeledImage]:
    """The images with their labels, of `names`: from columns of these names, or else names in one column.

    Raises `DataError`.
    """
    table = _read(data, columns, say)
    own = {composed(column): column for column in table.columns}
    if columns.label is None and set(names) <= own.keys():
        read_label = _column_reader(table, [own[name] for name in names])
    else:
        column = _label_column(table, columns, [name for name in names if name not in own])
        read_label = _cell_reader(column)
    images = read_manifest(Path(data), columns, say, read_label, table)
    label_matrix(images, names)  # rejects other names
    return images


def label_matrix(images: Iterable[LabeledImage], names: Sequence[str]) -> NDArray[np.float64]:
    """Which labels the images have (N, C): 1, 0 or NaN where unknown. Raises `DataError` for a foreign name."""
    index = {name: c for c, name in enumerate(names)}
    rows = []
    for image in images:
        row = np.zeros(len(names))
        for text in _split(image.label):
            name = text.removeprefix(UNKNOWN)
            if name not in index:
                nearest = _nearest(name, names)
                raise DataError(f"{image.name}: '{name}' is not one of the {len(names)} labels{nearest}")
            row[index[name]] = np.nan if text != name else 1
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, len(names))


def show_label(row: NDArray[np.float64], names: Sequence[str]) -> str:
    """A row (C,) of `label_matrix` as text."""
    return LABEL_SEPARATOR.join(
        name if value == 1 else UNKNOWN + name
        for name, value in zip(names, row.tolist(), strict=True)
        if value != 0  # also NaN
    )


def check_label_matrix(labels: NDArray[np.float64], names: Sequence[str]) -> None:
    """Raise `DataError` for labels of the training images (N, C) that a model cannot learn."""
    for name, column in zip(names, labels.T, strict=True):
        present, absent = int((column == 1).sum()), int((column == 0).sum())
        if not present:
            raise DataError(f"no training image has the label '{name}': add images that have it, or leave it out")
        if not absent:
            raise DataError(
                f"no training image is known to lack the label '{name}': add images that do, or leave it out"
            )


def assign_label_splits(
    images: Sequence[LabeledImage], names: Sequence[str], val_fraction: float, seed: int
) -> list[LabeledImage]:
    """Like `assign_splits`; holds out an equal share of the images of every label."""

    def hold_out(pool: Sequence[LabeledImage], fraction: float, seed: int) -> list[int]:
        groups = [image.group for image in pool]
        tied = inseparable([image.name for image in pool], groups)
        parts = stratified_parts(label_matrix(pool, names) == 1, tied, (1 - fraction, fraction), seed)
        if len(np.unique(parts)) < 2:
            what = "groups" if len(set(tied)) < len(tied) else "images"
            raise DataError(f"the data set has too few {what} for training and validation")
        return np.flatnonzero(parts == 1).tolist()

    return assign_splits(images, val_fraction, seed, hold_out)


def label_folds(
    labels: NDArray[np.float64], hashes: Sequence[str], groups: Sequence[str], count: int, seed: int
) -> list[Fold] | None:
    """Hold out every image once, in up to `count` folds with equal shares of every label (N, C).

    Groups ('' is none) and equal files stay in one fold. None if two folds are not possible.
    """
    tied = inseparable(hashes, groups)
    count = min(count, len(set(tied)))
    if count < 2:
        return None
    parts = stratified_parts(labels == 1, tied, [1 / count] * count, seed)
    folds = [(np.flatnonzero(parts != k), np.flatnonzero(parts == k)) for k in range(count)]
    return [(own, held) for own, held in folds if len(held)]


def _read(data: str | os.PathLike[str], columns: ManifestColumns, say: Callable[[str], None]) -> Table:
    path = Path(data)
    if not path.is_file() and find_tool(path) is None:
        raise DataError(
            f"{data}: several labels are read from a CSV file with a column of paths, and a column of 0 and 1 for each "
            "label or one column of names"
        )
    return read_label_table(
        path, images=columns.images, label=columns.label, several=True, annotators=columns.annotators, say=say
    )


def _label_column(table: Table, columns: ManifestColumns, lacking: Sequence[str] = ()) -> str:
    found = next((column for column in table.columns if column.strip().casefold() == _LABELS_COLUMN), "")
    column = table.column("label", columns.label) if columns.label or not found else found
    if not column and lacking:
        raise DataError(
            f"{table.where}: has no column '{lacking[0]}', a label of the model{_nearest(lacking[0], table.columns)} "
            f"(found: {table.shown})"
        )
    if not column:
        raise DataError(f"{table.where}: has no column labels (found: {table.shown})", options=["target=COLUMN"])
    return column


def _column_reader(table: Table, targets: Sequence[str]) -> LabelReader:
    """Reads a column of 0, 1 or nothing for each label."""
    for target in targets:
        if target not in table.columns:
            raise DataError(
                f"{table.where}: has no column '{target}'{_nearest(target, table.columns)} (found: {table.shown})"
            )

    def read(place: str, row: Mapping[str, str]) -> str:
        texts = []
        for target in targets:
            cell = row[target].strip().casefold()
            if cell not in MISSING and cell not in _PRESENT:
                raise DataError(
                    f"{place}: column '{target}' must be 1 (has the label), 0 (lacks it) or empty (unknown), found "
                    f"'{row[target].strip()}'"
                )
            if cell in MISSING:
                texts.append(UNKNOWN + composed(target))
            elif _PRESENT[cell]:
                texts.append(composed(target))
        if len(texts) == len(targets) and all(text.startswith(UNKNOWN) for text in texts):
            raise DataError(f"{place}: every label is unknown: fill one in, or remove the row")
        return LABEL_SEPARATOR.join(texts)

    return read


def _cell_reader(column: str) -> LabelReader:
    """Reads names joined by `;`."""

    def read(place: str, row: Mapping[str, str]) -> str:
        texts = sorted(set(_split(composed(row[column]))))
        if both := [text for text in texts if text.startswith(UNKNOWN) and text.removeprefix(UNKNOWN) in texts]:
            raise DataError(f"{place}: '{both[0]}' contradicts the label '{both[0].removeprefix(UNKNOWN)}'")
        if UNKNOWN in texts:
            raise DataError(f"{place}: '{UNKNOWN}' without a name: write {UNKNOWN}NAME for a label that is unknown")
        return LABEL_SEPARATOR.join(texts)

    return read


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(LABEL_SEPARATOR) if word.strip()]


def _check_names(where: str, names: Sequence[str]) -> None:
    for name in names:
        if LABEL_SEPARATOR in name or name.startswith(UNKNOWN) or not name or name != name.strip():
            raise DataError(
                f"{where}: '{name}' cannot be the name of a label: rename it, without '{LABEL_SEPARATOR}', a leading "
                f"'{UNKNOWN}' and spaces around it"
            )


def _nearest(word: str, known: Sequence[str]) -> str:
    found = get_close_matches(word, known, n=1)
    return f" (nearest: '{found[0]}')" if found else ""
