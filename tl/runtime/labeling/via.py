"""Read projects of VIA 2, the VGG Image Annotator, as JSON and CSV: points named by an attribute, attributes of files.

Sources: https://gitlab.com/vgg/via/-/blob/master/via-2.x.y/CodeDoc.md and the columns of its CSV export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tl.errors import DataError
from tl.runtime.labeling.export import (
    Passed,
    Reading,
    ToolFile,
    ToolImage,
    ToolPoint,
    check_points,
    names_of,
    number,
    one_name,
    reading_of,
    truthy,
    used_point_names,
)
from tl.runtime.sources.names import composed
from tl.runtime.sources.tables import parse_table

TOOL = "VIA"
_METADATA = "_via_img_metadata"
_CSV_COLUMNS = {"region_shape_attributes", "region_attributes", "file_attributes"}
_POINT = "point"


@dataclass(frozen=True)
class _File:
    """An image: its attributes, and for each region its shape and its attributes."""

    place: str
    name: str
    attributes: Mapping[str, Any]
    regions: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def is_via(parsed: Any) -> bool:
    """Return whether a JSON file is of VIA: a project, or its annotations alone."""
    if not isinstance(parsed, dict) or not parsed:
        return False
    entries = list(parsed.values())
    return _METADATA in parsed or all(isinstance(e, dict) and {"filename", "regions"} <= e.keys() for e in entries)


def is_via_csv(columns: Sequence[str]) -> bool:
    """Return whether a CSV with these columns is of VIA."""
    return set(columns) >= _CSV_COLUMNS


def read(parsed: Mapping[str, Any], where: str, reading: Reading) -> ToolFile:
    """Return all images of a JSON file. Raises `DataError` naming the image."""
    with reading_of(where, TOOL):
        prefix = str(parsed.get("_via_settings", {}).get("core", {}).get("default_filepath", ""))
        files = [_json_file(entry, where) for entry in parsed.get(_METADATA, parsed).values()]
        return _build(files, where, reading, prefix)


def read_csv(text: str, where: str, reading: Reading) -> ToolFile:
    """Return all images of a CSV file, which has one row per region. Raises `DataError` naming the row."""
    table = parse_table(text.removeprefix("#"), where)  # VIA 1 writes #filename
    files: dict[str, _File] = {}
    for line, row in table.rows:
        place = f"{where} row {line}"
        with reading_of(place, TOOL):
            shape, named, own = (_cell(row[column], place) for column in _csv_order())
            known = files.setdefault(row["filename"], _File(f"{where}: {row['filename']}", row["filename"], own, ()))
            regions = [*known.regions, (shape, named)] if shape else known.regions
            files[row["filename"]] = _File(known.place, known.name, {**known.attributes, **own}, regions)
    with reading_of(where, TOOL):
        return _build(list(files.values()), where, reading, "")


def _csv_order() -> tuple[str, str, str]:
    return "region_shape_attributes", "region_attributes", "file_attributes"


def _cell(text: str, place: str) -> Mapping[str, Any]:
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place}: not a readable cell of attributes ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{place}: attributes must be an object, found {text}")
    return found


def _json_file(entry: Mapping[str, Any], where: str) -> _File:
    regions = entry["regions"]
    listed = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them
    pairs = [(region["shape_attributes"], region["region_attributes"]) for region in listed]
    return _File(f"{where}: {entry['filename']}", entry["filename"], entry.get("file_attributes") or {}, pairs)


def _build(files: Sequence[_File], where: str, reading: Reading, prefix: str) -> ToolFile:
    passed = Passed()
    points = [named for file in files for shape, named in file.regions if shape.get("name") == _POINT]
    region_names = [name for named in points for name in _used(named)]
    file_names = [name for file in files for name in _used(file.attributes)]
    is_of_region = reading.label in region_names
    region = one_name(region_names, reading.label if is_of_region else None, where, "point attribute")
    given = None if is_of_region else reading.label
    own = one_name(file_names, given, where, "file attribute", is_optional=bool(points))
    images = []
    for file in files:
        with reading_of(file.place, TOOL):
            found = check_points(list(_points(file, region, passed)), file.place)
            labels = tuple(_values(file.attributes.get(own))) if own else ()
            names = (*((prefix + file.name,) if prefix else ()), *names_of(file.name))
            images.append(ToolImage(file.place, names, labels or None, found))
    if unused := [name for name in file_names if name != own]:
        passed(f"attributes of files are not used ({', '.join(dict.fromkeys(unused))})", len(unused))
    return ToolFile(where, tuple(images), used_point_names(images), passed.remarks())


def _points(file: _File, attribute: str, passed: Passed) -> Iterator[ToolPoint]:
    """Yield the points of an image. VIA counts whole pixels from 0, as this project does."""
    for shape, named in file.regions:
        if shape.get("name") != _POINT:
            passed(f"regions of the kind {shape.get('name')} are not used")
            continue
        values = list(_values(named.get(attribute)))
        if len(values) != 1:
            raise DataError(f"{file.place}: a point has {len(values)} names in its attributes, expected one")
        x, y = (number(shape[axis], file.place, f"{axis} of point '{values[0]}'") for axis in ("cx", "cy"))
        yield ToolPoint(values[0], x, y)


def _used(attributes: Mapping[str, Any]) -> list[str]:
    return [name for name, value in attributes.items() if any(_values(value))]


def _values(value: Any) -> Iterator[str]:
    """Yield the values of an attribute: a text, or the options of a list that are checked."""
    if isinstance(value, dict):
        yield from truthy(value)
    elif value is not None and str(value).strip():
        yield composed(str(value).strip())
