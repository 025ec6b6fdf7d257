"""List the images of a data set with their labels and splits.

Reads class folders (`class_folders`), CSV manifests and files of labeling tools. Opens no images.
"""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tl.data.class_folders import SPLIT_NAMES, SPLITS, iter_class_folders, iter_remote_folders
from tl.errors import DataError
from tl.runtime.ensembles.selective import REJECTED
from tl.runtime.imaging.regions import Box, Region
from tl.runtime.labeling.export import Annotators
from tl.runtime.labeling.label_table import read_label_table
from tl.runtime.labeling.tools import find_tool
from tl.runtime.sources.box_files import BOX, row_box
from tl.runtime.sources.boxed_images import BoxedImage
from tl.runtime.sources.names import FileFinder, composed
from tl.runtime.sources.remote import remote_name
from tl.runtime.sources.sequences import check_column, parse_rule
from tl.runtime.sources.tables import Table, is_decoded, not_decoded

# Joins the numbers of an image's targets to its label; a missing number is "".
TARGET_SEPARATOR = ";"
# Usual ways to write a missing value in a CSV, in lower case.
MISSING = ("", "na", "n/a", "nan")
# With fewer different numbers, they may be the names of classes.
_MANY_NUMBERS = 10
# Signs that separate several labels of an image in other tools.
_LABEL_SEPARATORS = "|;"


@dataclass(frozen=True)
class LabeledImage:
    """One labeled image. `path` opens it; `name` is its path within the data set, with '/'.

    `split` is '' if the data set does not define it. `group` marks images of the same specimen; '' is no group.
    `site`: where or with what the image was taken, for scores by site; '' if unknown. `sequence`: the burst, film or
    specimen that the image belongs to (see `data.sequences`); '' for an image alone.
    `region`: the part of the image to use, (left, top, width, height) in pixels; None for the whole image. `box`: the
    labeled box of the image, None if the label is that of the image.
    """

    path: str
    name: str
    label: str
    split: str = ""
    group: str = ""
    region: Region | None = None
    site: str = ""
    sequence: str = ""
    box: Box | None = None

    @property
    def source(self) -> str | BoxedImage:
        """What a predictor predicts for this image."""
        return self.path if self.box is None else BoxedImage(self.path, self.box)

    @property
    def key(self) -> tuple[str, Region | None]:
        """What distinguishes this image from others: boxes may share a path."""
        return self.path, self.region


@dataclass(frozen=True)
class ManifestColumns:
    """How to read a CSV manifest: the columns to use, None for those with usual names.

    `images`: the folder that paths are relative to, also tried with file names alone; None for the manifest's folder.
    `sequence`: rule of sequences (`parse_rule`), whose column is read. `targets`: columns of numbers that together are
    the label, joined by `;`. `annotators`: how a labeling tool's file combines the answers of several people.
    """

    split: str = "split"
    path: str | None = None
    label: str | None = None
    images: str | None = None
    sequence: str | None = None
    targets: tuple[str, ...] = ()
    annotators: Annotators = "latest"

    @property
    def sequence_column(self) -> str:
        """The column of sequences, "" if they come from capture times or there are none."""
        return parse_rule(self.sequence).column if self.sequence is not None else ""


USUAL_COLUMNS = ManifestColumns()


def read_images(
    data: str | os.PathLike[str],
    columns: ManifestColumns = USUAL_COLUMNS,
    say: Callable[[str], None] = lambda line: None,
) -> list[LabeledImage]:
    """Read a data set. `say` receives messages about skipped files and about what was recognized.

    Raises `DataError` with the place, what was found, and the remedy.
    """
    root = Path(data)
    if address := remote_name(os.fspath(data)):
        if columns != ManifestColumns(columns.split):
            raise DataError(f"{address}: is read as a folder: columns, images and sequences are for CSV files")
        images = [LabeledImage(*found) for found in iter_remote_folders(address.rstrip("/"), say)]
    elif root.is_dir() and find_tool(root) is None:
        if columns.sequence_column:
            raise DataError(
                f"{root}: is a folder, but the column '{columns.sequence_column}' of sequences is one of a CSV file; "
                "exif:30s uses capture times"
            )
        if columns != ManifestColumns(columns.split, sequence=columns.sequence):
            raise DataError(f"{root}: is a folder, but a path column, a label column and images are for CSV files")
        images = [LabeledImage(*found) for found in iter_class_folders(root, say)]
    elif root.exists():
        images = read_manifest(root, columns, say)
    else:
        raise DataError(f"{root}: no such folder or CSV file")
    if not images:
        raise DataError(f"{root}: no images found; expected one folder of images per class")
    check_labels(root, images)
    _ask_about_labels(images, say)
    return images


def bind_class_names(images: Sequence[LabeledImage]) -> tuple[str, ...]:
    """Return the training split's classes, sorted; index = class id. Raises `DataError` for fewer than two."""
    names = tuple(sorted({image.label for image in images if image.split == "train"}))
    if len(names) < 2:
        raise DataError(f"the training split has {len(names)} class ({', '.join(names)}): at least two are needed")
    return names


def class_ids(images: Iterable[LabeledImage], class_names: Sequence[str]) -> list[int]:
    """Map labels to ids. Raises `DataError` that names the first image of each unknown class."""
    index = {composed(name): i for i, name in enumerate(class_names)}
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


def hash_data(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return the SHA-256 over each image's (content hash, label, split), independent of order."""
    lines = sorted("\t".join(row) + "\n" for row in rows)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


# (where the row is, its cells by column) -> the label of the image, which may be empty. Raises `DataError`.
LabelReader = Callable[[str, Mapping[str, str]], str]


def read_manifest(
    manifest: Path,
    columns: ManifestColumns,
    say: Callable[[str], None],
    read_label: LabelReader | None = None,
    table: Table | None = None,
) -> list[LabeledImage]:
    """The images of a CSV manifest, or of a labeling tool's file. Labels are not compared. Raises `DataError`.

    `read_label` replaces the label column and `columns.targets`, for images that may have several labels. `table`: the
    table of the file, None to read it here.
    """
    several = bool(read_label or columns.targets)
    table = table or read_label_table(
        manifest, images=columns.images, label=columns.label, several=several, annotators=columns.annotators, say=say
    )
    used = {
        "path": table.column("path", columns.path),
        "label": "" if columns.targets or read_label else table.column("label", columns.label),
        "split": table.column("split", None if columns.split == "split" else columns.split),
        "group": table.column("group"),
        "site": table.column("site"),
        "sequence": columns.sequence_column,
    }
    if columns.sequence_column:
        check_column(table, columns.sequence_column)
    required = ("path",) if columns.targets or read_label else ("path", "label")
    if lacking := [name for name in required if not used[name]]:
        raise DataError(
            f"{manifest}: has no column {' and '.join(lacking)} (found: {table.shown})",
            options=[f"{name}_column=NAME" for name in lacking],
        )
    if recognized := [f"'{column}' as {name}" for name, column in used.items() if column and column != name]:
        say(f"{manifest.name}: reads column {', '.join(recognized)}")
    if not table.rows:
        raise DataError(f"{manifest}: contains a header but no rows")
    here = manifest if manifest.is_dir() else manifest.parent
    folder = Path(columns.images) if columns.images is not None else here
    finder = FileFinder([folder], by_file_name=columns.images is not None)
    read_label = read_label or _label_reader(table, used["label"], columns.targets)
    images = [_manifest_row(table, line, row, used, read_label, folder, finder) for line, row in table.rows]
    _check_manifest(manifest, folder, images)
    return images


def _label_reader(table: Table, column: str, target_columns: Sequence[str]) -> LabelReader:
    """Reads the label column, or joins the numbers of several columns."""
    targets = [table.column(name, name) for name in target_columns]

    def read(place: str, row: Mapping[str, str]) -> str:
        if targets:
            label = TARGET_SEPARATOR.join(_number(table, place, target, row[target]) for target in targets)
            if not label.strip(TARGET_SEPARATOR):
                raise DataError(f"{place}: has no number in {', '.join(targets)}: fill it in, or remove the row")
            return label
        if not row[column]:
            raise DataError(f"{place}: path and label must not be empty")
        return row[column]

    return read


def _manifest_row(
    table: Table,
    line: int,
    row: Mapping[str, str],
    used: Mapping[str, str],
    read_label: LabelReader,
    folder: Path,
    finder: FileFinder,
) -> LabeledImage:
    place = f"{table.where} row {line}"
    cells = {name: row[column] if column else "" for name, column in used.items()}
    if not cells["path"]:
        raise DataError(f"{place}: path and label must not be empty")
    label = read_label(place, row)
    if not is_decoded(label):
        raise not_decoded(place, [label])
    split = SPLIT_NAMES.get(cells["split"].strip().casefold(), "")
    if cells["split"].strip() and not split:
        raise DataError(f"{place}: split '{cells['split'].strip()}' is not one of {', '.join(SPLITS)}")
    name = os.path.normpath(cells["path"])
    path = os.path.join(folder, name)
    found = finder.find(name)
    if found is not None and found != path:
        path, name = found, os.path.relpath(found, folder)
    sequence = cells["sequence"].strip()
    xywh = row_box(place, table, row) if set(BOX) <= set(table.columns) else None
    box = None if xywh is None else Box(xywh)
    return LabeledImage(
        path, name, composed(label), split, cells["group"], site=cells["site"], sequence=sequence, box=box
    )


def _number(table: Table, place: str, column: str, cell: str) -> str:
    """A number in its usual spelling, "" for an empty cell. Raises `DataError` for anything else."""
    text = cell.strip()
    if text.casefold() in MISSING:
        return ""
    try:
        value = table.number(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: column '{column}' must be a number, found '{text}'; leave missing numbers empty")
    return repr(value)


def _check_manifest(manifest: Path, folder: Path, images: Sequence[LabeledImage]) -> None:
    names = Counter((image.name, image.box) for image in images)
    if doubled := [name for (name, _), count in names.items() if count > 1]:
        count = "1 image appears" if len(doubled) == 1 else f"{len(doubled)} images appear"
        raise DataError(f"{manifest.name}: {count} in several rows, first {doubled[0]}")
    if absent := [image.name for image in images if not os.path.lexists(image.path)]:
        raise DataError(
            f"{manifest.name}: {len(absent)} of {len(images)} images do not exist, first {absent[0]} "
            f"(paths are relative to {folder})",
            options=["images=FOLDER"],
        )


def check_labels(root: Path, images: Sequence[LabeledImage]) -> None:
    """Raise `DataError` for labels that cannot be used, or that differ only in spelling."""
    spellings: dict[str, str] = {}
    for image in images:
        try:
            image.label.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{root}: class name {image.label!r} is not UTF-8: rename its folder") from error
        if image.label == REJECTED:
            raise DataError(
                f"{root}: label '{REJECTED}' of {image.name} marks rejected images in predictions: rename it"
            )
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


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def are_numbers(images: Sequence[LabeledImage]) -> bool:
    """Whether the labels look like numbers to predict instead of names of classes: there are many different ones."""
    labels = {image.label for image in images}
    return len(labels) >= max(_MANY_NUMBERS, len(images) // 3) and all(map(_is_number, labels))


def _ask_about_labels(images: Sequence[LabeledImage], say: Callable[[str], None]) -> None:
    """Say if labels look like numbers, or like several labels of one image."""
    if are_numbers(images):
        count = len({image.label for image in images})
        say(f"the labels are {count} different numbers: to predict numbers, train for task regression")
    joined = sorted({image.label for image in images if any(sign in image.label for sign in _LABEL_SEPARATORS)})
    if joined:
        say(
            f"{len(joined)} labels look like several labels of one image, first '{joined[0]}': each is used as one "
            "class; if images show several classes, separate them by ; and train for task multilabel"
        )
