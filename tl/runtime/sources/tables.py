"""Read CSV files as spreadsheets, R and pandas write them: encodings, separators, decimal commas, column names. Write
them as all of these read them.

Knows nothing of what the columns mean to a command, except for the usual names of a few.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from tl.errors import DataError

_SEPARATORS = ",;\t"
# The usual names of columns, compared without case, spaces, hyphens and underscores.
_USUAL_NAMES = {
    "path": "path file filename filepath image imagepath imagename imagefile img imgpath photo picture",
    "label": "label class classname category species classification target taxon",
    "split": "split",
    "group": "group",
    "site": "site",
}


def read_text(path: Path) -> str:
    """Return the text of a file as `decode_text`. Raises `DataError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return decode_text(content, str(path))


def decode_text(content: bytes, where: str) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark; other bytes become surrogates, since file names may have any.

    Raises `DataError` for text in an encoding that cannot be read.
    """
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16") if is_utf_16 else content.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: damaged UTF-16: save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{where}: contains NUL bytes: save it as UTF-8")
    return text


def is_decoded(text: str) -> bool:
    """Return whether a text was completely decoded, without bytes that are not UTF-8."""
    return not any("\udc80" <= sign <= "\udcff" for sign in text)


@dataclass(frozen=True)
class Table:
    """A CSV file: `columns`, and for each row its line number and its cells by column; missing cells are ""."""

    where: str
    separator: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]

    def column(self, usual: str, given: str | None = None) -> str:
        """Return the column called `given`, or else the only one with a usual name for `usual`; "" if there is none.

        Raises `DataError` if `given` does not exist, or if several columns could be meant.
        """
        if given is not None and given not in self.columns:
            raise DataError(f"{self.where}: has no column '{given}' (found: {self.shown})")
        exact = given or usual
        names = _USUAL_NAMES.get(usual, usual).split()
        found = [name for name in self.columns if name == exact]
        found = found or [name for name in self.columns if _plain(name) == usual]
        found = found or [name for name in self.columns if _plain(name) in names]
        if len(found) > 1:
            options = [f"{usual}_column={name}" for name in dict.fromkeys(found)]
            listed = " and ".join(f"'{name}'" for name in found)
            message = f"{self.where}: columns {listed} could all be the {usual}: name one of them"
            raise DataError(message, options=options)
        return found[0] if found else ""

    @property
    def shown(self) -> str:
        """The columns, for messages."""
        return ", ".join(self.columns[:8]) + (" ..." if len(self.columns) > 8 else "")

    def number(self, text: str) -> float:
        """Return the number in a cell, which may have a decimal comma unless commas separate cells.

        Raises ValueError.
        """
        return decimal(text, self.separator)


def decimal(text: str, separator: str) -> float:
    """See `Table.number`."""
    return float(text.replace(",", ".") if separator != "," and "." not in text else text)


def read_table(path: Path) -> Table:
    """Read a CSV file. Raises `DataError`."""
    return parse_table(read_text(path), path.name)


def parse_table(text: str, where: str) -> Table:
    """Read a CSV text. Raises `DataError` naming the row."""
    separator = separator_of(text)
    columns: tuple[str, ...] = ()
    rows: list[tuple[int, dict[str, str]]] = []
    for line, cells in read_cells(text, where):
        if not columns:
            columns = tuple(cells)
            continue
        if any(cells[len(columns) :]):
            raise DataError(
                f"{where} row {line}: has {len(cells)} cells for {len(columns)} columns: "
                "put quotes around a cell that contains the separator"
            )
        padded = [*cells, *[""] * (len(columns) - len(cells))]
        rows.append((line, dict(zip(columns, padded, strict=False))))
    return Table(where, separator, columns, tuple(rows))


def read_cells(text: str, where: str) -> list[tuple[int, list[str]]]:
    """Return the line number and the cells of each row that is not blank. Raises `DataError`."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator_of(text))
    try:
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{where}: not a readable CSV file ({error})") from error
    return rows[1:] if rows and _declared_separator(text) else rows


def header_of(text: str) -> list[str]:
    """Return the cells of the first row, of a text that may be cut off."""
    lines = StringIO(text, newline="")
    if _declared_separator(text):
        lines.readline()
    return next(csv.reader([lines.readline()], delimiter=separator_of(text)), [])


def separator_of(text: str) -> str:
    """Return the separator: the one that Excel's line `sep=;` declares, or that splits the first line the most."""
    if declared := _declared_separator(text):
        return declared
    head = StringIO(text, newline="").readline()
    return max(_SEPARATORS, key=lambda sign: len(next(csv.reader([head], delimiter=sign), [])))


def _declared_separator(text: str) -> str:
    head = StringIO(text, newline="").readline().strip('\r\n "')
    return head[4:] if head.lower().startswith("sep=") and len(head) == 5 else ""


def csv_line(cells: Iterable[object]) -> str:
    """Return a CSV row with its line end; None is an empty cell."""
    line = StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # so that it quotes cells that contain a lone "\r"
    return line.getvalue()[:-2] + "\n"


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV."""
    return "".join(map(csv_line, rows))


def _plain(name: str) -> str:
    return "".join(sign for sign in name.strip().casefold() if sign not in " -_")


def not_decoded(where: str | os.PathLike[str], what: Sequence[str]) -> DataError:
    """Return the error for text that is not UTF-8, such as a class name from a Latin-1 file."""
    return DataError(f"{where}: {what[0]!r} is not UTF-8: save the file as UTF-8 (in Excel: 'CSV UTF-8')")
