"""The classes in a labeling tool's file as the table that a CSV of labels is: one reader for both.

Opens no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tl.errors import DataError
from tl.runtime.labeling.export import Annotators, Reading, ToolFile, ToolImage, resolve
from tl.runtime.labeling.tools import find_tool, read_tool_file
from tl.runtime.output.columns import LABEL_SEPARATOR
from tl.runtime.sources.names import image_folders
from tl.runtime.sources.tables import Table, read_table


def read_label_table(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    label: str | None = None,
    several: bool = False,
    annotators: Annotators = "latest",
    say: Callable[[str], None] = lambda line: None,
) -> Table:
    """Read a CSV, or the file of a labeling tool as a table with path, label (or labels) and split.

    `images`: folder of the images; see `image_folders`. Paths are relative to the first of these folders.
    `label`: the name of the label column, or of the choice or attribute that holds the class. `several`: images may
    have several labels, or none. `say` receives what of the file is not used. Raises `DataError`.
    """
    path = Path(path)
    if find_tool(path) is None and path.suffix.lower() not in (".json", ".xml"):
        return read_table(path)
    column = label or ("labels" if several else "label")
    file = read_tool_file(path, Reading("classes", label, annotators, size=lambda names: (1, 1)))
    judged = [image for image in file.images if _is_judged(image, several=several)]
    if not judged:
        raise DataError(_nothing(path, file))
    for remark in file.remarks:
        say(f"{file.where}: {remark}")
    if unlabeled := len(file.images) - len(judged):
        say(f"{file.where}: {unlabeled} images without a class were left out")
    if file.has_points:
        say(f"{file.where}: its points are not used, only its classes")
    folders = image_folders(path, images)
    rows = []
    for line, (image, (name, found)) in enumerate(zip(judged, resolve(judged, folders), strict=True), start=1):
        relative = os.path.relpath(found, folders[0]) if found is not None else name
        cells = {"path": relative, column: _label(image, several=several), "split": image.split}
        rows.append((line, cells))
    return Table(file.where, ",", ("path", column, "split"), tuple(rows))


def _is_judged(image: ToolImage, *, several: bool) -> bool:
    return image.labels is not None if several else bool(image.labels)


def _label(image: ToolImage, *, several: bool) -> str:
    labels = image.labels or ()
    if several:
        if bad := [label for label in labels if LABEL_SEPARATOR in label or label.startswith("?")]:
            raise DataError(f"{image.place}: label '{bad[0]}' has '{LABEL_SEPARATOR}' or begins with '?': rename it")
        return LABEL_SEPARATOR.join(labels)
    if len(labels) > 1:
        raise DataError(
            f"{image.place}: has {len(labels)} classes ({', '.join(labels)}): keep one, or train for several labels",
            options=["task=multilabel"],
        )
    return labels[0]


def _nothing(path: Path, file: ToolFile) -> str:
    why = f" ({'; '.join(file.remarks)})" if file.remarks else ""
    return f"{path}: none of its {len(file.images)} images has a class{why}: label images, and export the file again"
