"""Charts as SVG text that takes its colors from the page, light or dark. The only file that imports matplotlib.

Knows numbers and labels. Does not know runs or HTML pages. No chart touches matplotlib's global state for longer than
it is drawn.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl.errors import MissingExtraError

# Stand-ins that no chart has by chance; the page's style says what they look like in light and dark.
_INK, _FAINT = "#010203", "#020304"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_VARIABLES = {_INK: "currentColor", _FAINT: "var(--faint)"} | {c: f"var(--s{i})" for i, c in enumerate(_SERIES)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, and in the page's own font
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.size": 10,
    "text.parse_math": False,  # a name may hold dollar signs
    "legend.frameon": False,
}
_SIZE = (6.4, 3.4)


@dataclass(frozen=True)
class Line:
    """One curve: `ys` over `xs`, equally long."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def line_chart(title: str, x_label: str, lines: Sequence[Line], *, marked_x: float | None = None) -> str:
    """Curves over one axis; `marked_x`: where a vertical line stands, such as the best epoch."""

    def draw(axes: Any) -> None:
        drawn: list[Any] = []
        for i, line in enumerate(lines):
            marker = "o" if len(line.xs) < 3 else None  # a single point is no line
            drawn += axes.plot(line.xs, line.ys, color=_SERIES[i % len(_SERIES)], linewidth=1.6, marker=marker)
        if marked_x is not None:
            axes.axvline(marked_x, color=_FAINT, linestyle="--", linewidth=1)
        axes.set_xlabel(x_label)
        if all(x == int(x) for line in lines for x in line.xs):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(drawn, [_short(line.name) for line in lines])  # named here: it would leave out names with _ before

    told = "; ".join(f"{line.name} from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines if len(line.ys))
    return _chart(title, f"{title} over {x_label}: {told}", draw)


def bar_chart(title: str, value_label: str, names: Sequence[str], values: Sequence[float]) -> str:
    """A horizontal bar for each name, the first on top."""

    def draw(axes: Any) -> None:
        places = range(len(names))
        axes.barh(places, values, color=_SERIES[0])
        axes.set_yticks(list(places), labels=[_short(name) for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(value_label)

    told = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
    return _chart(title, f"{title}, {value_label}: {told}", draw, height=1.2 + 0.24 * len(names))


def reliability_chart(
    title: str,
    confidence: Sequence[float],
    accuracy: Sequence[float],
    counts: Sequence[int],
    x_label: str = "confidence",
) -> str:
    """How often a model is right (`accuracy`) where it is so sure (`confidence`), over bins of `counts` images."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1, label="as sure as right")
        largest = max(counts, default=1)
        sizes = [12 + 180 * count / largest for count in counts]
        axes.scatter(confidence, accuracy, s=sizes, color=_SERIES[0], alpha=0.8, label="images, by number")
        axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.05), xlabel=x_label, ylabel="share right")
        axes.legend(loc="upper left")

    rows = zip(confidence, accuracy, counts, strict=True)
    told = ", ".join(f"{right:.2f} right at confidence {sure:.2f} ({count})" for sure, right, count in rows)
    return _chart(title, f"{title}: {told}", draw)


def histogram(title: str, value_label: str, values: Sequence[float]) -> str:
    """How values are spread."""

    def draw(axes: Any) -> None:
        axes.hist(values, bins=min(40, max(8, len(values) // 5)), color=_SERIES[0])
        axes.set(xlabel=value_label, ylabel="number")

    ordered = sorted(values)
    middle = ordered[len(values) // 2]
    told = f"{len(values)} values from {ordered[0]:.4g} to {ordered[-1]:.4g}, {middle:.4g} in the middle"
    return _chart(title, f"{title}, {value_label}: {told}", draw)


def _chart(title: str, description: str, draw: Any, height: float = _SIZE[1]) -> str:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("reports need more packages: pip install 'tl-toolkit[train]'") from error
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=11)
        draw(axes)
        text = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=unsaid)
    return _for_page(text.getvalue(), title, description)


def _for_page(svg: str, title: str, description: str) -> str:
    """Matplotlib's file -> an element of a page: its colors, names of its own, a text alternative."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    own = "c" + hashlib.sha256(f"{title}{description}".encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", svg)
    svg = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", svg)
    said = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:8]}…{name[-19:]}"
