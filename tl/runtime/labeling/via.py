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
    only_name,
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


def has_points(parsed: Mapping[str, Any]) -> bool:
    """Return whether a region of a JSON file is a point, whatever its attributes. Raises `DataError`."""
    with reading_of("", TOOL):
        entries = parsed.get(_METADATA, parsed).values()
        return any(_has_points(_json_file(entry, "")) for entry in entries)


def has_points_csv(text: str, where: str) -> bool:
    """Return whether a region of a CSV file is a point, whatever its attributes. Raises `DataError`."""
    with reading_of(where, TOOL):
        return any(_has_points(file) for file in _csv_files(text, where))


def read(parsed: Mapping[str, Any], where: str, reading: Reading) -> ToolFile:
    """Return all images of a JSON file. Raises `DataError` naming the image."""
    with reading_of(where, TOOL):
        prefix = str(parsed.get("_via_settings", {}).get("core", {}).get("default_filepath", ""))
        files = [_json_file(entry, where) for entry in parsed.get(_METADATA, parsed).values()]
        return _build(files, where, reading, prefix)


def read_csv(text: str, where: str, reading: Reading) -> ToolFile:
    """Return all images of a CSV file, which has one row per region. Raises `DataError` naming the row."""
    files = _csv_files(text, where)
    with reading_of(where, TOOL):
        return _build(files, where, reading, "")


def _csv_files(text: str, where: str) -> list[_File]:
    table = parse_table(text.removeprefix("#"), where)  # VIA 1 writes #filename
    files: dict[str, _File] = {}
    for line, row in table.rows:
        place = f"{where} row {line}"
        with reading_of(place, TOOL):
            shape, named, own = (_cell(row[column], place) for column in _csv_order())
            known = files.setdefault(row["filename"], _File(f"{where}: {row['filename']}", row["filename"], own, ()))
            regions = [*known.regions, (shape, named)] if shape else known.regions
            files[row["filename"]] = _File(known.place, known.name, {**known.attributes, **own}, regions)
    return list(files.values())


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


def _is_point(shape: Mapping[str, Any]) -> bool:
    return shape.get("name") == _POINT


def _has_points(file: _File) -> bool:
    return any(_is_point(shape) for shape, _ in file.regions)


def _build(files: Sequence[_File], where: str, reading: Reading, prefix: str) -> ToolFile:
    passed = Passed()
    of_regions = [name for file in files for shape, named in file.regions if _is_point(shape) for name in _used(named)]
    of_files = [name for file in files for name in _used(file.attributes)]
    is_of_points = reading.wanted == "points"
    if is_of_points:
        if reading.label in set(of_files) - set(of_regions):
            why = "is an attribute of files, not of points"
            raise DataError(f"{where}: '{reading.label}' {why}", options=["task=classification"])
        region, own = one_name(of_regions, reading.label, where, "point attribute"), only_name(of_files)
    else:
        if reading.label in set(of_regions) - set(of_files):
            why = "is an attribute of points, not of files"
            raise DataError(f"{where}: '{reading.label}' {why}", options=["task=landmarks"])
        region, own = "", one_name(of_files, reading.label, where, "file attribute")
    images = []
    for file in files:
        with reading_of(file.place, TOOL):
            found = check_points(list(_points(file, region, passed)), file.place) if is_of_points else ()
            labels = tuple(_values(file.attributes.get(own))) if own else ()
            names = (*((prefix + file.name,) if prefix else ()), *names_of(file.name))
            images.append(ToolImage(file.place, names, labels or None, found))
            if not is_of_points:
                for shape, _ in file.regions:
                    passed(f"regions of the kind {shape.get('name')} are not used")
    if unused := [name for name in of_files if name != own]:
        passed(f"attributes of files are not used ({', '.join(dict.fromkeys(unused))})", len(unused))
    return ToolFile(where, tuple(images), used_point_names(images), passed.remarks())


def _points(file: _File, attribute: str, passed: Passed) -> Iterator[ToolPoint]:
    """Yield the points of an image. VIA counts whole pixels from 0, as this project does."""
    for shape, named in file.regions:
        if not _is_point(shape):
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
