"""Draw charts as SVG text that takes its colors from the page, light or dark. The only module that imports matplotlib.

Matplotlib's global state is changed only while a chart is drawn.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl.errors import MissingExtraError

# Placeholder colors that no chart uses otherwise; the page's style sheet defines the light and dark colors.
_INK, _FAINT = "#010203", "#020304"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_VARIABLES = {_INK: "currentColor", _FAINT: "var(--faint)"} | {c: f"var(--s{i})" for i, c in enumerate(_SERIES)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text: small, searchable, and in the page's font
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
    "text.parse_math": False,  # names may contain dollar signs
    "legend.frameon": False,
}
_SIZE = (6.4, 3.4)
# Costs whose largest is this many times the smallest are drawn on a logarithmic scale; settings with a name.
_UNLIKE, _NAMED = 20, 8


@dataclass(frozen=True)
class Line:
    """One curve: `ys` over `xs`, of equal length."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def line_chart(title: str, x_label: str, lines: Sequence[Line], *, marked_x: float | None = None) -> str:
    """Draw curves over a shared x axis. `marked_x`: position of a vertical line, such as the best epoch."""

    def draw(axes: Any) -> None:
        drawn: list[Any] = []
        for i, line in enumerate(lines):
            marker = "o" if len(line.xs) < 3 else None  # a single point draws no line
            drawn += axes.plot(line.xs, line.ys, color=_SERIES[i % len(_SERIES)], linewidth=1.6, marker=marker)
        if marked_x is not None:
            axes.axvline(marked_x, color=_FAINT, linestyle="--", linewidth=1)
        axes.set_xlabel(x_label)
        if all(x == int(x) for line in lines for x in line.xs):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            drawn, [_short(line.name) for line in lines]
        )  # explicit labels: matplotlib skips names with a leading _

    told = "; ".join(f"{line.name} from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines if len(line.ys))
    return _chart(title, f"{title} over {x_label}: {told}", draw)


def bar_chart(title: str, value_label: str, names: Sequence[str], values: Sequence[float]) -> str:
    """Draw a horizontal bar for each name, the first at the top."""

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
    """Draw a reliability diagram: accuracy over confidence, in bins of `counts` images."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1, label="perfect calibration")
        largest = max(counts, default=1)
        sizes = [12 + 180 * count / largest for count in counts]
        axes.scatter(confidence, accuracy, s=sizes, color=_SERIES[0], alpha=0.8, label="bins, by number of images")
        axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.05), xlabel=x_label, ylabel="accuracy")
        axes.legend(loc="upper left")

    rows = zip(confidence, accuracy, counts, strict=True)
    told = ", ".join(f"accuracy {right:.2f} at confidence {sure:.2f} ({count})" for sure, right, count in rows)
    return _chart(title, f"{title}: {told}", draw)


def scatter_chart(title: str, x_label: str, y_label: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Draw a point for each pair of values, and the line where they are equal."""

    def draw(axes: Any) -> None:
        ends = [min(*xs, *ys), max(*xs, *ys)]
        axes.plot(ends, ends, color=_FAINT, linestyle="--", linewidth=1)
        axes.scatter(xs, ys, s=14, color=_SERIES[0], alpha=0.7)
        axes.set(xlabel=x_label, ylabel=y_label)

    ranges = [f"{label} from {min(v):.4g} to {max(v):.4g}" for label, v in ((x_label, xs), (y_label, ys))]
    told = f"{len(xs)} points, {', '.join(ranges)}"
    return _chart(title, f"{title}: {told}", draw)


def trade_chart(
    title: str, x_label: str, y_label: str, names: Sequence[str], xs: Sequence[float], ys: Sequence[float]
) -> str:
    """Draw a point with its name for each setting: what it reaches over what it costs, costs of unlike size by logs."""

    def draw(axes: Any) -> None:
        if min(xs) > 0 and max(xs) / min(xs) > _UNLIKE:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.scatter(xs, ys, s=34, color=_SERIES[0], alpha=0.85)
        # Names of a few settings can be read; those of many would cover each other.
        for name, x, y in zip(names, xs, ys, strict=True) if len(names) <= _NAMED else ():
            axes.annotate(_short(name), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.margins(x=0.25 if len(names) <= _NAMED else 0.05, y=0.12)
        axes.set(xlabel=x_label, ylabel=y_label)

    told = ", ".join(f"{name} {y:.3g} for {x:.3g}" for name, x, y in zip(names, xs, ys, strict=True))
    return _chart(title, f"{title}, {y_label} for {x_label}: {told}", draw)


def histogram(title: str, value_label: str, values: Sequence[float]) -> str:
    """Draw a histogram of the values."""

    def draw(axes: Any) -> None:
        axes.hist(values, bins=min(40, max(8, len(values) // 5)), color=_SERIES[0])
        axes.set(xlabel=value_label, ylabel="count")

    ordered = sorted(values)
    middle = ordered[len(values) // 2]
    told = f"{len(values)} values from {ordered[0]:.4g} to {ordered[-1]:.4g}, median {middle:.4g}"
    return _chart(title, f"{title}, {value_label}: {told}", draw)


def _chart(title: str, description: str, draw: Any, height: float = _SIZE[1]) -> str:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("reports require additional packages: pip install 'tl-toolkit[train]'") from error
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
    """Convert matplotlib's SVG file to a page element with the page's colors, unique ids and a text alternative."""
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
