"""Write results to files: CSV, JSON lines, Parquet, landmark files. Only a complete file gets its final name.

The only file that imports pyarrow. Independent of models and of where images come from.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import numpy as np
import orjson

from tl.errors import MissingExtraError, OutputError
from tl.runtime.labeling.label_studio_tasks import TaskLinks
from tl.runtime.landmarks.files import SUFFIXES, Format, write_landmarks
from tl.runtime.landmarks.sets import ImageLandmarks, LandmarkSet, image_landmarks
from tl.runtime.output.columns import Columns, build_columns
from tl.runtime.output.files import atomic_path, give_name, no_follow, output_errors, write_text
from tl.runtime.output.label_studio import write_class_tasks
from tl.runtime.output.megadetector import check_megadetector, write_megadetector
from tl.runtime.output.spreadsheets import check_xlsx, iter_values, write_excel_csv, write_xlsx
from tl.runtime.results import ClassFields, Fields, MultilabelFields, PointFields
from tl.runtime.sources.boxed_images import BoxList
from tl.runtime.sources.tables import csv_line, csv_text
from tl.text import printable

_ROWS_AT_ONCE = 10_000
# A format that is not selected by the name of the output.
GivenFormat = Format | Literal["megadetector"]


def check_parquet() -> None:
    """Raise `MissingExtraError` if Parquet files cannot be written."""
    _pyarrow()


def write_parquet(lines: Path, table: str | os.PathLike[str], columns: Columns) -> None:
    r"""Write a Parquet table atomically. Missing values are null; path bytes that are not UTF-8 become `\xNN`.

    Raises `OutputError`, `MissingExtraError`.
    """
    arrow = _pyarrow()
    schema = _schema(arrow, columns)
    with atomic_path(table) as temporary, arrow.parquet.ParquetWriter(temporary, schema) as writer:
        rows = iter_values(lines, columns)
        while chunk := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            values = zip(*chunk, strict=True)
            arrays = [arrow.array(column, field.type) for column, field in zip(values, schema, strict=True)]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _schema(arrow: Any, columns: Columns) -> Any:
    kinds = {"text": arrow.string(), "number": arrow.float32(), "flag": arrow.bool_()}
    kinds |= {"count": arrow.int64(), "degrees": arrow.float64()}
    return arrow.schema([(name, kinds[kind]) for name, kind in columns.types.items()])


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files require an additional package: pip install 'tl-toolkit[parquet]'"
        ) from error
    return pyarrow


def write_point_file(lines: Path, final: Path, kind: Format | None, links: TaskLinks | None = None) -> None:
    """Write landmarks to `final`; failed rows go to `NAME.failed.csv` beside it. `kind`: None to use its extension.

    Raises `OutputError`, `DataError`.
    """
    with lines.open(encoding="utf-8", errors="surrogateescape") as stream:
        rows = [json.loads(line) for line in stream]
    good = [row for row in rows if "error" not in row]
    names = tuple(good[0]["keypoints"]) if good else ()
    sizes = {row["path"]: (int(row["image_hw"][0]), int(row["image_hw"][1])) for row in good}
    write_landmarks(LandmarkSet(names, tuple(map(_image, good))), final, kind, sizes.__getitem__, links)
    failed = [row for row in rows if "error" in row]
    if failed:
        rows = [("path", "error"), *((row["path"], row["error"]) for row in failed)]
        write_text(f"{final}.failed.csv", csv_text(rows))


def _image(row: dict[str, Any]) -> ImageLandmarks:
    points = list(row["keypoints"].values())
    sure = [point["confidence"] for point in points if "confidence" in point]
    confidence = np.array(sure) if len(sure) == len(points) else None
    xy = [(point["x"], point["y"]) for point in points]
    return image_landmarks(row["path"], xy, confidence=confidence, mm_per_px=row["mm_per_px"])


class Row(Protocol):
    """What becomes a row: the result of an image, or the decision on a sequence."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""


class ResultWriter(Protocol):
    """Write results one by one. `is_csv`: whether rows are CSV, else JSON lines."""

    is_csv: bool

    def write(self, result: Row) -> None:
        """Write one complete row."""

    def row(self, result: Row) -> str:
        """Return a complete row as text, with its line end."""

    def write_row(self, row: str) -> None:
        """Write a row returned by `row`."""


class _RowWriter(ABC):
    is_csv = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, result: Row) -> None:
        """Write one complete row."""
        self._stream.write(self.row(result))

    def write_row(self, row: str) -> None:
        """Write a row returned by `row`."""
        self._stream.write(row)

    @abstractmethod
    def row(self, result: Row) -> str:
        """Return a complete row as text, with its line end."""


class CsvWriter(_RowWriter):
    """Write a header, then one row per result; for a failure, all cells but path and error are empty."""

    is_csv = True

    def __init__(self, stream: TextIO, columns: Columns) -> None:
        super().__init__(stream)
        self._columns = columns
        stream.write(csv_line(list(columns.types)))

    def row(self, result: Row) -> str:
        """Return a complete row."""
        return self._columns.line(result)


class JsonLinesWriter(_RowWriter):
    """Write one JSON object per line, with the keys of `as_dict`."""

    def row(self, result: Row) -> str:
        """Return one line."""
        plain = result.as_dict()
        try:
            return orjson.dumps(plain).decode() + "\n"
        except orjson.JSONEncodeError:  # a path that is not valid UTF-8, with its bytes as surrogates
            return json.dumps(plain, ensure_ascii=False) + "\n"


def lists_failures(output: Path, point_format: GivenFormat | None) -> bool:
    """Return whether a format has no rows for failed images, so that `NAME.failed.csv` lists them."""
    return output.suffix.lower() in (".tps", ".json", ".xml") or point_format in ("long", "deeplabcut")


@contextmanager
def open_writer(
    output: str | os.PathLike[str] | None,
    fields: Fields,
    point_format: GivenFormat | None = None,
    partial: Path | None = None,
    for_excel: bool = False,
    boxes: BoxList | None = None,
    columns: Columns | None = None,
    links: TaskLinks | None = None,
) -> Iterator[ResultWriter]:
    """Yield a writer of results to a path (`.csv`, `.jsonl` for JSON lines, `.xlsx`, `.parquet`), or as CSV to stdout.

    Landmarks can also be written as `.tps` and `.json` (COCO keypoints), or in the format `point_format`; failed images
    are then listed in `NAME.failed.csv`. Classes of `boxes` can be written as "megadetector". `for_excel`: see
    `write_excel_csv`. `columns`: None for those of `fields`. "labelstudio" writes
    tasks whose images are found by `links`, which it requires. The file gets its name when all rows are written. Until
    then, and after an error, the rows are in `partial` (`NAME.partial`), as JSON lines unless the output is a plain
    `.csv`. Raises `OutputError`, and `MissingExtraError` for a format without its package.
    """
    columns = columns or build_columns(fields)
    if output is None:
        yield CsvWriter(_Terminal(sys.stdout) if sys.stdout.isatty() else sys.stdout, columns)
        sys.stdout.flush()
        return
    final = Path(output)
    partial = partial or final.with_name(f"{final.name}.partial")
    finish = _finisher(final, fields, columns, point_format, for_excel, boxes, links)
    with output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="", opener=no_follow) as stream:
            is_plain = finish is None and final.suffix.lower() == ".csv"
            yield CsvWriter(stream, columns) if is_plain else JsonLinesWriter(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if finish is None:
            give_name(partial, final)
        else:
            finish(partial)
            partial.unlink()


def _megadetector_finisher(final: Path, fields: Fields, boxes: BoxList | None) -> Callable[[Path], None]:
    check_megadetector(final, boxes)
    if final.suffix.lower() != ".json":
        raise OutputError(f"{final}: expected the extension .json for format megadetector")
    if boxes is None or not isinstance(fields, ClassFields):
        raise OutputError(f"{final}: format megadetector is only for classes of boxes")
    known, names = boxes, tuple(fields.class_names)
    return lambda lines: write_megadetector(lines, final, known, names, fields.classifiers)


def _check_fits(final: Path, fields: Fields, point_format: GivenFormat | None) -> None:
    """Raise `OutputError` for a format that cannot hold such results."""
    if point_format in (None, "csv") or isinstance(fields, PointFields):
        return
    if point_format != "labelstudio":
        raise OutputError(f"{final}: format {point_format} is only for landmarks")
    if not isinstance(fields, ClassFields | MultilabelFields):
        raise OutputError(f"{final}: format labelstudio is only for classes, labels and landmarks")
    if isinstance(fields, ClassFields) and fields.boxes is not None:
        raise OutputError(f"{final}: format labelstudio is only for whole images, and not for boxes")


def _finisher(
    final: Path,
    fields: Fields,
    columns: Columns,
    point_format: GivenFormat | None,
    for_excel: bool,
    boxes: BoxList | None,
    links: TaskLinks | None,
) -> Callable[[Path], None] | None:
    """Return what makes the file from JSON lines, None if rows are written as they remain. Raises as `open_writer`."""
    if point_format == "megadetector":
        return _megadetector_finisher(final, fields, boxes)
    kind = final.suffix.lower()
    known = [".csv", ".jsonl", ".xlsx", ".parquet", *([".tps", ".json"] if isinstance(fields, PointFields) else [])]
    known += [SUFFIXES[point_format]] if point_format in ("labelstudio", "cvat") else []
    if kind not in known:
        raise OutputError(f"{final}: expected a name that ends in {', '.join(known[:-1])} or {known[-1]}")
    if point_format is not None and kind != SUFFIXES[point_format]:
        raise OutputError(f"{final}: expected the extension {SUFFIXES[point_format]} for format {point_format}")
    _check_fits(final, fields, point_format)
    if point_format == "labelstudio":
        if links is None:
            raise ValueError("format labelstudio needs links")
        if isinstance(fields, ClassFields | MultilabelFields):
            return lambda lines: write_class_tasks(lines, final, links)
    is_point_file = lists_failures(final, point_format)
    if for_excel and (kind != ".csv" or is_point_file):
        raise OutputError(f"{final}: only a CSV table can be written for Excel; .xlsx needs no option")
    if kind == ".parquet":
        check_parquet()
        return lambda lines: write_parquet(lines, final, columns)
    if kind == ".xlsx":
        check_xlsx(final, columns)
        return lambda lines: write_xlsx(lines, final, columns)
    if is_point_file:
        return lambda lines: write_point_file(lines, final, point_format, links)
    return (lambda lines: write_excel_csv(lines, final, columns)) if for_excel else None


class _Terminal(StringIO):
    """Text for a terminal, in which no text of a file can control it."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal

    def write(self, text: str, /) -> int:
        """Write text without control characters."""
        return self._terminal.write(printable(text))
