"""The table of a data set under review: its rows as they are, to be written again with other labels.

Opens no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tl.annotation.problems.gather import is_run
from tl.data.manifests import USUAL_COLUMNS, LabeledImage, ManifestColumns, read_images
from tl.runtime.labeling.label_table import read_label_table
from tl.runtime.labeling.tools import find_tool
from tl.runtime.sources.tables import Table


@dataclass(frozen=True)
class ReviewTable:
    """`rows` (N,): the cells of each image of `images` (N,), by `columns`. The four names are those of columns.

    `split`, `group`: "" if the data has no such column. `separator`: of the CSV file.
    """

    source: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    images: tuple[LabeledImage, ...]
    path: str = "path"
    label: str = "label"
    split: str = ""
    group: str = ""
    separator: str = ","

    @cached_property
    def places(self) -> dict[str, int]:
        """Place of each image by its absolute path."""
        return {place_key(image): i for i, image in enumerate(self.images)}


def place_key(image: LabeledImage) -> str:
    """Return what an image is found by in another list of the same data: its absolute path."""
    return os.path.abspath(image.path)


def read_review_table(
    source: Path, columns: ManifestColumns = USUAL_COLUMNS, say: Callable[[str], None] = lambda line: None
) -> ReviewTable:
    """Read class folders, a CSV manifest, the file of a labeling tool or a run. Raises `DataError`."""
    data = source / "manifest.csv" if is_run(source) else source
    columns = USUAL_COLUMNS if data is not source else columns
    images = tuple(read_images(data, columns, say))
    if data.is_dir() and find_tool(data) is None:
        return _from_folders(source, images)
    table = read_label_table(data, images=columns.images, label=columns.label, annotators=columns.annotators)
    return _from_table(source, table, images, columns)


def _from_folders(source: Path, images: tuple[LabeledImage, ...]) -> ReviewTable:
    has_splits = any(image.split for image in images)
    rows = tuple({"path": image.name, "label": image.label, "split": image.split} for image in images)
    names = ("path", "label", "split") if has_splits else ("path", "label")
    return ReviewTable(source, names, rows, images, split="split" if has_splits else "")


def _from_table(source: Path, table: Table, images: tuple[LabeledImage, ...], columns: ManifestColumns) -> ReviewTable:
    return ReviewTable(
        source,
        table.columns,
        tuple(cells for _, cells in table.rows),
        images,
        path=table.column("path", columns.path),
        label=table.column("label", columns.label),
        split=table.column("split", None if columns.split == "split" else columns.split),
        group=table.column("group"),
        separator=table.separator,
    )
