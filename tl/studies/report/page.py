"""A page as data, rendered to one HTML file that loads no external script, style, font or image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from tl import __version__
from tl.errors import ConfigError, MissingExtraError
from tl.runtime.output.files import write_text
from tl.studies.report.thumbnails import Thumbnail
from tl.text import printable

Cell = str | int | float | None


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Mapping[str, str]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows that a click on a column header sorts. Numbers are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """SVG text."""

    svg: str
    kind: str = "chart"


@dataclass(frozen=True)
class Card:
    """An image with lines of text below it, a `badge` on it, and `beside` it small images with their labels."""

    image: Thumbnail | None
    lines: Sequence[str]
    badge: str = ""
    beside: Sequence[tuple[Thumbnail, str]] = ()


@dataclass(frozen=True)
class Gallery:
    """Images side by side. `note`: what they are, and how many there are in total."""

    cards: Sequence[Card]
    note: str = ""
    kind: str = "gallery"


@dataclass(frozen=True)
class Matrix:
    """Counts by true (row) and predicted class (column); a click on a cell shows its images."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    cards: Mapping[tuple[int, int], Sequence[Card]]
    kind: str = "matrix"


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Code:
    """A command to copy into a terminal."""

    text: str
    kind: str = "code"


Block = Facts | Table | Chart | Gallery | Matrix | Note | Code


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Id of the section in links."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """Contents of one HTML file. `figures`: key figures at the top, (name, value)."""

    title: str
    subtitle: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default=())


def write_page(page: Page, path: str | os.PathLike[str]) -> None:
    """Write the file atomically. Raises `ConfigError` for a non-HTML suffix, `OutputError`, `MissingExtraError`."""
    if Path(path).suffix not in (".html", ".htm"):  # such as the model file that the page is about
        raise ConfigError(f"{os.fspath(path)}: expected a file name that ends in .html")
    write_text(path, render(page))


def render(page: Page) -> str:
    """Render the page to HTML text. Raises `MissingExtraError` without jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("HTML pages require additional packages: pip install 'tl-toolkit[cli]'") from error
    own = resources.files("tl.studies.report")
    parts = {name: (own / f"page.{name}").read_text(encoding="utf-8") for name in ("html.j2", "css", "js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    template = environment.from_string(parts["html.j2"])
    return printable(template.render(page=page, style=parts["css"], script=parts["js"], version=__version__))


def shown(value: Cell) -> str:
    """Format a table cell as text."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
