"""Recognize and read the files of labeling tools, by what is in them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tl.errors import DataError
from tl.runtime.labeling import cvat, label_studio, labelme, roboflow, via
from tl.runtime.labeling.export import Reading, ToolFile
from tl.runtime.sources.box_files import load_json
from tl.runtime.sources.tables import decode_text, header_of, read_text

Tool = Literal["labelstudio", "cvat", "via", "labelme", "roboflow"]
_HEAD_BYTES = 1 << 17


@dataclass(frozen=True)
class _Kind:
    """What a file is: the tool that it is of, and whether it has points."""

    tool: Tool | None = None
    has_points: bool = False


def find_tool(path: str | os.PathLike[str]) -> Tool | None:
    """Return the tool that a file, or a folder of files, is of; None for anything else, also if it is unreadable."""
    path = Path(path)
    if not path.is_dir():
        return _kind_of(path).tool
    if roboflow.tables_in(path):
        return "roboflow"
    # An unreadable file among them is an error when they are read.
    return "labelme" if any(_kind_of(each).tool == "labelme" for each in sorted(path.glob("*.json"))) else None


def _kind_of(path: Path) -> _Kind:
    try:
        found = path.stat()
        return _read_kind(path, found.st_mtime_ns, found.st_size)
    except (OSError, DataError, csv.Error):
        return _Kind()


@lru_cache(maxsize=1 << 14)  # a folder of labelme has a file for each image
def _read_kind(path: Path, modified_ns: int, size: int) -> _Kind:
    """Read a file once to recognize it. Its contents are known to be the same as long as time and size are."""
    if path.name == roboflow.FILE_NAME:
        return _Kind("roboflow")
    kind = path.suffix.lower()
    if kind == ".json":
        return _kind_of_json(load_json(path))
    if kind not in (".xml", ".csv"):
        return _Kind()
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    text = decode_text(head[: len(head) - len(head) % 2], str(path))
    if kind == ".xml" and cvat.is_cvat(text):
        return _Kind("cvat", _is_true(lambda: cvat.has_points(read_text(path))))
    if kind == ".csv" and via.is_via_csv(header_of(text)):
        return _Kind("via", _is_true(lambda: via.has_points_csv(read_text(path), path.name)))
    return _Kind()


def _kind_of_json(parsed: Any) -> _Kind:
    if label_studio.is_label_studio(parsed):
        return _Kind("labelstudio", _is_true(lambda: label_studio.has_points(parsed)))
    if labelme.is_labelme(parsed):
        return _Kind("labelme", _is_true(lambda: labelme.has_points(parsed)))
    return _Kind("via", _is_true(lambda: via.has_points(parsed))) if via.is_via(parsed) else _Kind()


def _is_true(check: Callable[[], bool]) -> bool:
    """Return the answer of a check; False for a file that is not as its tool writes it."""
    try:
        return check()
    except (OSError, DataError, csv.Error):
        return False


def read_tool_file(path: str | os.PathLike[str], reading: Reading) -> ToolFile:
    """Read what `find_tool` recognizes. Raises `DataError` that says where and how to mend it."""
    path = Path(path)
    tool, where = find_tool(path), path.name
    if tool in ("roboflow", "labelme", "cvat") and reading.label is not None:
        raise DataError(f"{path}: files of {tool} have nothing called '{reading.label}' to choose: leave out the name")
    if tool == "roboflow":
        return roboflow.read(path)
    if tool == "labelme":
        return labelme.read_folder(path) if path.is_dir() else labelme.read(load_json(path), where)
    if tool == "cvat":
        return cvat.read(read_text(path), where)
    if tool == "labelstudio":
        return label_studio.read(load_json(path), where, reading)
    if tool == "via":
        is_csv = path.suffix.lower() == ".csv"
        return via.read_csv(read_text(path), where, reading) if is_csv else via.read(load_json(path), where, reading)
    raise DataError(
        f"{path}: not recognized as a file of Label Studio (JSON, JSON-MIN), CVAT for images 1.1 (XML), VIA 2 (JSON, "
        "CSV), labelme (JSON) or Roboflow (_classes.csv)"
    )


def has_points(path: str | os.PathLike[str]) -> bool:
    """Return whether a tool's file has points, whatever their names are; False for other files and unreadable ones."""
    path = Path(path)
    if path.is_dir():
        return find_tool(path) == "labelme" and any(_kind_of(each).has_points for each in path.rglob("*.json"))
    return _kind_of(path).has_points


def has_several_labels(path: str | os.PathLike[str]) -> bool:
    """Return whether a tool's file has a column for each label, and an image that has several."""
    if find_tool(path) != "roboflow":
        return False
    try:
        images = read_tool_file(path, Reading("classes")).images
    except DataError:
        return False
    return any(len(image.labels or ()) > 1 for image in images)
