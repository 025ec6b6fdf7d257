"""Read Roboflow's multi-label classification CSV: `_classes.csv` with a column of 0 and 1 for each class.

Folders of classes in train/, valid/ and test/, its other format, are read as any class folders.
"""

from __future__ import annotations

from pathlib import Path

from tl.errors import DataError
from tl.runtime.labeling.export import ToolFile, ToolImage
from tl.runtime.sources.names import composed
from tl.runtime.sources.tables import read_table

FILE_NAME = "_classes.csv"
_PRESENT = {"0": False, "1": True}


def tables_in(folder: Path) -> list[Path]:
    """Return the tables of a folder: its own, or those of its train, valid and test folders."""
    own = folder / FILE_NAME
    return [own] if own.is_file() else sorted(folder.glob(f"*/{FILE_NAME}"))


def read(path: Path) -> ToolFile:
    """Return all images of a table, or of the tables of a folder. Raises `DataError` naming the row."""
    if not path.is_dir():
        return ToolFile(path.name, tuple(_rows(path, "", "")), has_label_columns=True)
    tables = tables_in(path)
    known: dict[str, tuple[str, ...]] = {}
    images: list[ToolImage] = []
    for table in tables:
        split = table.parent.name if table.parent != path else ""
        where = table.relative_to(path).as_posix()
        known[where] = _class_names(table)
        images += _rows(table, split, f"{split}/" if split else "")
    first, *others = known
    for other in others:
        if different := set(known[first]) ^ set(known[other]):
            raise DataError(f"{path}: {first} and {other} differ in class '{min(different)}': export both again")
    return ToolFile(path.name, tuple(images), has_label_columns=True)


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(name.strip() for name in read_table(path).columns[1:])


def _rows(path: Path, split: str, folder: str) -> list[ToolImage]:
    table = read_table(path)
    if not table.columns or table.columns[0].strip() != "filename" or len(table.columns) < 2:
        raise DataError(f"{path}: expected the columns filename and one for each class, found: {table.shown}")
    images = []
    for line, row in table.rows:
        place, name = f"{folder}{table.where} row {line}", row[table.columns[0]].strip()
        labels = []
        for column in table.columns[1:]:
            cell = row[column].strip()
            if cell not in _PRESENT:
                raise DataError(f"{place}: column '{column.strip()}' must be 0 or 1, found '{cell}'")
            if _PRESENT[cell]:
                labels.append(composed(column.strip()))
        images.append(ToolImage(place, (f"{folder}{name}",), tuple(labels), split=split))
    return images
