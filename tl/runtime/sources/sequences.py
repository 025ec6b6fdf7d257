"""Group images into sequences: by a column of a table, by capture times in EXIF data, or as the frames of a film.

Knows names, tables and headers; never decodes pixels. The decision on a sequence is made by `ensembles.sequences`.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path

from tl.errors import ConfigError, DataError
from tl.runtime.imaging.exif import CaptureFacts
from tl.runtime.sources.durations import parse_seconds
from tl.runtime.sources.names import FileFinder
from tl.runtime.sources.tables import Table, decode_text, parse_table, read_table

_EXIF = "exif"


@dataclass(frozen=True)
class SequenceRule:
    """How images form sequences: by the column of a table, or by capture times at most `seconds` apart."""

    column: str = ""
    seconds: float = 0.0

    @property
    def uses_times(self) -> bool:
        """Whether sequences come from capture times."""
        return not self.column


def parse_rule(text: str) -> SequenceRule:
    """Parse `exif:30s`, or the name of a column. Raises `ConfigError`."""
    kind, colon, duration = text.partition(":")
    if not text.strip():
        raise ConfigError("sequence: expected the name of a column, or exif:30s")
    if kind.strip().casefold() != _EXIF:
        return SequenceRule(column=text)
    seconds = parse_seconds(duration) if colon else None
    if not seconds:
        raise ConfigError(
            f"sequence: expected a duration above 0 such as exif:30s, exif:0.5s or exif:10m, found '{text}'"
        )
    return SequenceRule(seconds=seconds)


@dataclass(frozen=True)
class Sequences:
    """The sequence of each image. `of`: name of an image -> sequence; an image that is not listed is its own.

    `timeless`: images without a capture time, each a sequence of its own. `in_future`: images with a capture time that
    is still to come, of a camera with a wrong clock.
    """

    of: Mapping[str, str] = field(default_factory=dict)
    timeless: tuple[str, ...] = ()
    in_future: tuple[str, ...] = ()


def group_by_time(images: Sequence[tuple[str, CaptureFacts]], seconds: float, now: datetime | None = None) -> Sequences:
    """Chain photos of one camera that were taken at most `seconds` apart; a sequence is named after its first photo.

    `images`: names and facts. A camera is a folder with a make, model and serial number. Times are compared in UTC if
    all photos of the camera have an offset from it, else as the camera's clock showed them.
    """
    cameras: dict[tuple[str, ...], list[tuple[str, datetime]]] = defaultdict(list)
    timeless: list[str] = []
    for name, facts in images:
        if facts.captured is None:
            timeless.append(name)
        else:
            camera = (os.path.dirname(name), facts.make, facts.model, facts.serial)
            cameras[camera].append((name, facts.captured))
    of = {name: name for name in timeless}
    latest = (now or datetime.now(UTC)) + timedelta(days=1)  # local times may be ahead of UTC
    in_future: list[str] = []
    for photos in cameras.values():
        ordered = sorted(_comparable(photos), key=lambda photo: (photo[1], photo[0]))
        in_future += [name for name, taken in ordered if taken > latest]
        first, before = ordered[0]
        for name, taken in ordered:
            if (taken - before).total_seconds() > seconds:
                first = name
            of[name], before = first, taken
    return Sequences(of, tuple(timeless), tuple(in_future))


def _comparable(photos: Iterable[tuple[str, datetime]]) -> list[tuple[str, datetime]]:
    listed = list(photos)
    if all(taken.tzinfo is not None for _, taken in listed):
        return [(name, _to_utc(taken)) for name, taken in listed]
    return [(name, taken.replace(tzinfo=UTC)) for name, taken in listed]


def _to_utc(taken: datetime) -> datetime:
    try:
        return taken.astimezone(UTC)
    except OverflowError:  # in the first or last hours of what Python can represent
        return taken.replace(tzinfo=UTC)


def check_times(found: Sequences, count: int) -> None:
    """Raise `DataError` if none of `count` images has a capture time."""
    if count and len(found.timeless) == count:
        raise DataError(
            f"none of the {count} images has a capture time in its EXIF data, first {found.timeless[0]}: programs that "
            "edit or send photos often remove it; use the original files, or name a column with the sequence of each "
            "image",
            options=["sequence=COLUMN"],
        )


def read_sequence_table(
    list_file: str, column: str, path_column: str | None = None, images: str | os.PathLike[str] | None = None
) -> list[tuple[str, str]]:
    """Return (path, sequence) of each row of a CSV, `-` for stdin; an image with an empty cell is its own sequence.

    Paths are relative to `images`, else to the folder of the CSV. Raises `DataError`.
    """
    if list_file == "-":
        table = parse_table(decode_text(sys.stdin.buffer.read(), "stdin"), "stdin")
    else:
        table = read_table(Path(list_file))
    path = table.column("path", path_column)
    if not path:
        raise DataError(f"{list_file}: has no column path (found: {table.shown})", options=["path_column=NAME"])
    check_column(table, column)
    folder = images if images is not None else os.path.dirname(list_file) if list_file != "-" else ""
    finder = FileFinder([folder or os.curdir], by_file_name=images is not None)
    rows: dict[str, str] = {}
    for line, cells in table.rows:
        if not cells[path]:
            raise DataError(f"{table.where} row {line}: path must not be empty")
        found = finder.find(cells[path])
        name = os.path.normpath(os.path.join(folder, cells[path]) if found is None else found)
        if os.path.isdir(name):
            raise DataError(f"{table.where} row {line}: '{cells[path]}' is a folder: name an image")
        sequence = cells[column].strip() or name
        if rows.setdefault(name, sequence) != sequence:
            raise DataError(f"{table.where} row {line}: {name} is in '{rows[name]}' and in '{sequence}'")
    return list(rows.items())


def check_column(table: Table, column: str) -> None:
    """Raise `DataError`, with the nearest name, if a table does not have a column of sequences."""
    if column in table.columns:
        return
    near = get_close_matches(column, table.columns, n=1)
    hint = f"nearest: '{near[0]}'" if near else f"found: {table.shown}"
    raise DataError(
        f"{table.where}: has no column '{column}' for sequences ({hint}); capture times are used by exif:30s"
    )
