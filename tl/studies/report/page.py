"""A page as data, rendered to one HTML file that loads no external script, style, font or image."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from tl import __version__
from tl.errors import ConfigError, MissingExtraError
from tl.pages import read_base_style
from tl.runtime.output.files import write_text
from tl.studies.report.thumbnails import Thumbnail
from tl.text import printable


@dataclass(frozen=True)
class Figure:
    """A table cell that is sorted by `value` and shown as `text`."""

    value: float
    text: str


Cell = str | int | float | Figure | None
# A table of more columns takes the whole width of a page.
_NARROW = 5
# Smaller numbers are shown without separators of thousands.
_SEPARATED = 100_000
# Values this close to 1 are 1, but for the rounding of a sum.
_ROUNDING = 1e-9
# Confusions that are also told in words, of more than two classes.
_TOLD_CONFUSIONS = 5
# Wider images, in pixels, are shown in a grid of fewer columns.
_NARROW_IMAGE = 260


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Mapping[str, str]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows that a click on a column header sorts. Numbers are right-aligned.

    `hints`: column -> its technical name, as in files. `title` folds the table under a line that opens it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    hints: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    kind: str = "table"

    @property
    def is_wide(self) -> bool:
        """Whether the table takes the whole width."""
        return len(self.columns) > _NARROW or bool(self.title)


@dataclass(frozen=True)
class Chart:
    """SVG text."""

    svg: str
    kind: str = "chart"


@dataclass(frozen=True)
class Card:
    """An image with lines of text below it, a `badge` on it, and `beside` it small images with their labels.

    `cell`: "true-predicted" class ids, which link it with the confusion matrix; `confidence` links it with bars of
    confidence. `is_right`: colors it, if known.
    """

    image: Thumbnail | None
    lines: Sequence[str]
    badge: str = ""
    beside: Sequence[tuple[Thumbnail, str]] = ()
    cell: str = ""
    is_right: bool | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Gallery:
    """Images side by side; those after the first `most` are folded. `note`: what they are, and how many in total."""

    cards: Sequence[Card]
    note: str = ""
    most: int = 12
    kind: str = "gallery"

    @property
    def is_wide(self) -> bool:
        """Whether its images are too large for a narrow grid."""
        return any(card.image is not None and card.image.size_wh[0] > _NARROW_IMAGE for card in self.cards)


@dataclass(frozen=True)
class Matrix:
    """Counts by true (row) and predicted class (column); a click on a cell shows its images."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    cards: Mapping[tuple[int, int], Sequence[Card]]
    kind: str = "matrix"

    @property
    def confusions(self) -> list[tuple[int, int, int]]:
        """The most frequent confusions, most frequent first: (true id, predicted id, images)."""
        found = [(i, j, count) for i, row in enumerate(self.counts) for j, count in enumerate(row) if i != j and count]
        return sorted(found, key=lambda each: (-each[2], each[:2]))[:_TOLD_CONFUSIONS]


@dataclass(frozen=True)
class Dot:
    """An image on a map: `x` and `y` within [0, 1], `name`, true class, and indices of the most similar `near` it.

    `label_id`: predicted class, None for an image without score. `marks`: such as "outlier". `likeness`: of `near`.
    """

    x: float
    y: float
    name: str
    true_id: int
    label_id: int | None
    confidence: float | None
    split: str
    marks: Sequence[str] = ()
    near: Sequence[int] = ()
    likeness: Sequence[float] = ()


@dataclass(frozen=True)
class ImageMap:
    """Images in two dimensions. `sheet`: their thumbnails in rows of `columns`, squares of `side` pixels."""

    names: Sequence[str]
    dots: Sequence[Dot]
    sheet: Thumbnail
    side: int
    columns: int
    kind: str = "map"


@dataclass(frozen=True)
class Bins:
    """Right and wrong answers by confidence: a bin lies between two of the `edges`. A click on it shows its images."""

    edges: Sequence[float]
    right: Sequence[int]
    wrong: Sequence[int]
    kind: str = "bins"

    @property
    def rows(self) -> list[tuple[float, float, int, int, float, float]]:
        """Each bin: from, to, right and wrong answers, and these as shares of the most in a bin."""
        most_right, most_wrong = max(1, *self.right), max(1, *self.wrong)
        ends = zip(self.edges, self.edges[1:], self.right, self.wrong, strict=False)
        return [(low, high, right, wrong, right / most_right, wrong / most_wrong) for low, high, right, wrong in ends]


@dataclass(frozen=True)
class Mark:
    """A value with its interval on the scale of a comparison. `series`: such as "validation"."""

    series: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A row for each setting, or what `heading` names: `marks` on a common scale, and cells, which `columns` names."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Mark], Sequence[Cell]]]
    hints: Mapping[str, str] = field(default_factory=dict)
    heading: str = "setting"
    kind: str = "comparison"

    @property
    def series(self) -> list[str]:
        """Names of the marks, in their order."""
        return list(dict.fromkeys(mark.series for _, marks, _ in self.rows for mark in marks))

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest value drawn, with a margin."""
        ends = [
            end for _, marks, _ in self.rows for m in marks for end in (m.value, m.low, m.high) if end is not None
        ] or [0.0, 1.0]
        margin = 0.04 * (max(ends) - min(ends)) or 0.5
        low, high = min(ends) - margin, max(ends) + margin
        # Shares and errors are not negative, and shares not above 1.
        return max(low, 0.0) if min(ends) >= 0 else low, min(high, 1.0) if max(ends) <= 1 else high

    def share(self, value: float) -> float:
        """Place of a value on the scale, in percent."""
        low, high = self.scale
        return 100 * (value - low) / (high - low)


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


Block = Facts | Table | Chart | Gallery | Matrix | ImageMap | Bins | Comparison | Note | Code


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading. Two that follow each other and are `narrow` are shown side by side."""

    title: str
    blocks: Sequence[Block]
    narrow: bool = False

    @property
    def anchor(self) -> str:
        """Id of the section in links."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Step:
    """Something worth doing next, with the reason in numbers. `section`: title of the section that shows it.

    `command`: command line that does it, if there is one.
    """

    title: str
    reason: str
    section: str = ""
    command: str = ""

    @property
    def anchor(self) -> str:
        """Id of the section."""
        return Section(self.section, []).anchor


@dataclass(frozen=True)
class Page:
    """Contents of one HTML file. `figures`: key figures at the top, (name, value).

    `kicker`: what the page is about, in a few words. `headline`: the result in a sentence. `strip`: examples.
    """

    title: str
    subtitle: str
    figures: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default=())
    kicker: str = ""
    headline: str = ""
    steps: Sequence[Step] = ()
    strip: Sequence[Card] = ()


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
    environment.filters |= {"shown": shown, "map_data": _map_data}
    template = environment.from_string(parts["html.j2"])
    shown_sections = [section for section in page.sections if section.blocks]
    titles = {section.title for section in shown_sections}
    text = template.render(
        page=page,
        sections=shown_sections,
        titles=titles,
        style=f"{read_base_style()}\n{parts['css']}",
        script=parts["js"],
        version=__version__,
    )
    return printable(_each_image_once(text))


def shown(value: Cell) -> str:
    """Format a table cell as text.

    Numbers from 0.001 to 1, such as scores, have three decimals, so that a column of them lines up; others have three
    significant digits, and at least all digits before the point. Thousands are separated from 100,000 on.
    """
    if value is None:
        return "-"
    if isinstance(value, Figure):
        return value.text
    if isinstance(value, float) and math.isfinite(value):
        if abs(value) < 99.95:  # others are "100" or more with three digits
            return f"{value:.{_decimals(value)}f}" if 0.001 <= abs(value) <= 1 else f"{value:.3g}"
        value = round(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= _SEPARATED else str(value)
    return str(value)


def _decimals(value: float) -> int:
    """Three, or as many as are needed to tell a value from 1: almost all is not all."""
    apart = 1 - abs(value)
    if apart < _ROUNDING:
        return 3
    return next(digits for digits in range(3, 11) if round(abs(value), digits) < 1)


def _map_data(block: ImageMap) -> dict[str, object]:
    """The facts about the dots that the script of the page shows."""
    dots = [
        {
            "name": dot.name,
            "true": dot.true_id,
            "label": dot.label_id,
            "sure": None if dot.confidence is None else round(dot.confidence, 3),
            "split": dot.split,
            "marks": list(dot.marks),
            "near": list(dot.near),
            "likeness": list(dot.likeness),
        }
        for dot in block.dots
    ]
    return {"names": list(block.names), "dots": dots}


def _each_image_once(text: str) -> str:
    """Let images in folded places (`data-src`) refer to the same image shown elsewhere, or to the first of equals."""
    numbers: dict[str, int] = {}
    visible = re.findall(r' src="(data:image/webp[^"]*)"', text)
    for uri in visible:
        numbers.setdefault(uri, len(numbers))
    named: set[str] = set()

    def once(match: re.Match[str]) -> str:
        kind, uri = match.groups()
        number = numbers.setdefault(uri, len(numbers))
        if uri in named or (kind == "data-src" and uri in visible_set):
            return f' src="{uri}"' if kind == "src" else f' data-from="{number}"'
        named.add(uri)
        return f' {kind}="{uri}" data-uri="{number}"'

    visible_set = set(visible)
    return re.sub(r' (data-src|src)="(data:image/webp[^"]*)"', once, text)
