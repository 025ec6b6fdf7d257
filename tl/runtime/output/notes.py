"""Add columns to the rows of images that come from their files and not from the models: their sequence, EXIF facts.

They are added when a row is written, not when it is predicted, so that the ledger's rows do not depend on them.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import orjson

from tl.runtime.imaging.exif import CaptureFacts, read_facts
from tl.runtime.output.columns import Columns, ColumnType
from tl.runtime.results import Result
from tl.runtime.sources.boxed_images import BoxedImage, PredictionSource, UnboxedImage
from tl.runtime.sources.tables import csv_line

_Items = BoxedImage | UnboxedImage
EXIF_COLUMNS: dict[str, ColumnType] = {
    **{"captured": "text", "camera_make": "text", "camera_model": "text"},
    **{"latitude": "degrees", "longitude": "degrees"},
}


@dataclass
class Notes:
    """What is added to each row. `sequence_of`: image -> sequence, None for no such column.

    `with_exif`: add capture time, camera and place; empty where a photo does not record them.
    """

    sequence_of: Mapping[str, str] | None = None
    with_exif: bool = False
    _waiting: deque[CaptureFacts] = field(default_factory=deque)

    @property
    def types(self) -> dict[str, ColumnType]:
        """The added columns in order, with their types."""
        types: dict[str, ColumnType] = {} if self.sequence_of is None else {"sequence": "text"}
        return types | (EXIF_COLUMNS if self.with_exif else {})

    def watch(self, sources: Iterable[PredictionSource]) -> Iterable[PredictionSource]:
        """Return the sources of a prediction, one for each row, whose headers are read on the way."""
        return self._read(sources) if self.with_exif else sources

    def _read(self, sources: Iterable[PredictionSource]) -> Iterator[PredictionSource]:
        for source in sources:
            self._waiting.append(read_facts(source.source if isinstance(source, _Items) else source))
            yield source

    def add(self, path: str, row: str, *, is_csv: bool, failed: bool) -> str:
        """Return the row of the next image of `watch` with these columns before its last one, `error`."""
        if not self.types:
            return row
        values = self._next(path)
        if not is_csv:
            return f"{row[:-2]},{_dump(values)[1:]}\n"  # within the closing brace
        return insert_cells(row, [*values.values()], failed=failed)

    def _next(self, path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.sequence_of is not None:
            values["sequence"] = self.sequence_of[path]
        if self.with_exif:
            facts = self._waiting.popleft()
            values |= {
                "captured": None if facts.captured is None else facts.captured.isoformat(),
                "camera_make": facts.make or None,
                "camera_model": facts.model or None,
                "latitude": facts.latitude,
                "longitude": facts.longitude,
            }
        return values


def insert_cells(row: str, values: Sequence[Any], *, failed: bool) -> str:
    """Return a CSV row with more cells before its last one, `error`, which is empty unless `failed`."""
    if not failed:
        return f"{row[:-1]}{csv_line([*values, ''])}"
    cells = next(csv.reader(StringIO(row, newline="")))
    return csv_line([*cells[:-1], *values, cells[-1]])


@dataclass(frozen=True)
class NotedColumns:
    """The columns of results with those of notes."""

    inner: Columns
    notes: Mapping[str, ColumnType]

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""
        types = self.inner.types
        return {name: kind for name, kind in types.items() if name != "error"} | dict(self.notes) | {"error": "text"}

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Return one value per column."""
        *values, error = self.inner.values(line)
        return [*values, *map(line.get, self.notes), error]

    def line(self, result: Result) -> str:
        """Return a CSV row without the notes, see `Notes.add`."""
        return self.inner.line(result)


def _dump(values: dict[str, Any]) -> str:
    try:
        return orjson.dumps(values).decode()
    except orjson.JSONEncodeError:  # a path that is not valid UTF-8, with its bytes as surrogates
        return json.dumps(values, ensure_ascii=False)
