"""A page as data, and its one HTML file: no script, style, font or image from elsewhere.

Knows sections and what stands in them. Does not know runs, files or charts' contents.
"""

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

Cell = str | int | float | None


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Mapping[str, str]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows that a click on a column's head sorts. Numbers stand right."""

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
    """An image with lines under it; `badge` stands on it, `beside` are small images with what they are."""

    image: Thumbnail | None
    lines: Sequence[str]
    badge: str = ""
    beside: Sequence[tuple[Thumbnail, str]] = ()


@dataclass(frozen=True)
class Gallery:
    """Images side by side. `note`: which they are, and how many more there would be."""

    cards: Sequence[Card]
    note: str = ""
    kind: str = "gallery"


@dataclass(frozen=True)
class Matrix:
    """Counts by true (row) and decided class (column); a click on a cell shows its images."""

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
    """Something to copy into a terminal."""

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
        """Its name in links."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """All that one file shows. `figures`: the few numbers on top, with what they are."""

    title: str
    subtitle: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default=())


def write_page(page: Page, path: str | os.PathLike[str]) -> None:
    """Write the file atomically. Raises `ConfigError` for another ending, `OutputError`, `MissingExtraError`."""
    if Path(path).suffix not in (".html", ".htm"):  # such as the model file that the page is about
        raise ConfigError(f"{os.fspath(path)}: a page's name ends in .html")
    write_text(path, render(page))


def render(page: Page) -> str:
    """HTML text. Raises `MissingExtraError` without jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("pages need more packages: pip install 'tl-toolkit[cli]'") from error
    own = resources.files("tl.studies.report")
    parts = {name: (own / f"page.{name}").read_text(encoding="utf-8") for name in ("html.j2", "css", "js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    template = environment.from_string(parts["html.j2"])
    return template.render(page=page, style=parts["css"], script=parts["js"], version=__version__)


def shown(value: Cell) -> str:
    """A table's cell as text."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
