"""Recognize and read the files of labeling tools, by what is in them."""

from __future__ import annotations

import csv
import os
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


def find_tool(path: str | os.PathLike[str]) -> Tool | None:
    """Return the tool that a file, or a folder of files, is of; None for anything else, also if it is unreadable."""
    path = Path(path)
    try:
        if path.is_dir():
            if roboflow.tables_in(path):
                return "roboflow"
            # An unreadable file among them is an error when they are read.
            return "labelme" if any(find_tool(each) == "labelme" for each in sorted(path.glob("*.json"))) else None
        found = path.stat()
        return _tool_of_file(path, found.st_mtime_ns, found.st_size)
    except (OSError, DataError, csv.Error):
        return None


@lru_cache(maxsize=32)
def _tool_of_file(path: Path, modified_ns: int, size: int) -> Tool | None:
    """Return the tool of a file, whose contents are known to be the same as long as time and size are."""
    if path.name == roboflow.FILE_NAME:
        return "roboflow"
    kind = path.suffix.lower()
    if kind == ".json":
        return _tool_of_json(load_json(path))
    if kind not in (".xml", ".csv"):
        return None
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    text = decode_text(head[: len(head) - len(head) % 2], str(path))
    if kind == ".xml":
        return "cvat" if cvat.is_cvat(text) else None
    return "via" if via.is_via_csv(header_of(text)) else None


def _tool_of_json(parsed: Any) -> Tool | None:
    if label_studio.is_label_studio(parsed):
        return "labelstudio"
    if labelme.is_labelme(parsed):
        return "labelme"
    return "via" if via.is_via(parsed) else None


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
    """Return whether a tool's file has points; False for other files and unreadable ones."""
    tool = find_tool(path)
    if tool is None or tool == "roboflow":
        return False
    try:
        return read_tool_file(path, Reading(size=lambda names: (1, 1))).has_points
    except DataError:
        return False


def has_several_labels(path: str | os.PathLike[str]) -> bool:
    """Return whether a tool's file has a column for each label, and an image that has several."""
    if find_tool(path) != "roboflow":
        return False
    try:
        images = read_tool_file(path, Reading()).images
    except DataError:
        return False
    return any(len(image.labels or ()) > 1 for image in images)
