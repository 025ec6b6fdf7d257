from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from tl.studies.report.charts import Line, bar_chart, histogram, line_chart, reliability_chart

CHARTS = {
    "lines": lambda: line_chart("loss", "epoch", [Line("a < b & c", [1, 2, 3], [3.0, 2.0, 1.5])], marked_x=2),
    "bars": lambda: bar_chart("errors", "px", ["tip", "a name too long to be shown as a whole"], [1.0, 2.5]),
    "reliability": lambda: reliability_chart("sure", [0.5, 0.9], [0.4, 1.0], [10, 90]),
    "histogram": lambda: histogram("spread", "px", [1.0, 2.0, 2.5, 9.0]),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_charts__are_xml_in_the_colors_of_the_page(kind: str) -> None:
    svg = CHARTS[kind]()
    ElementTree.fromstring(svg)
    colors = set(re.findall(r"(?<![(\"])#[0-9a-f]{6}", svg))
    assert not colors - {"#000000"}  # matplotlib's default for paths that are not drawn
    assert "var(--s0)" in svg
    assert "http://" not in svg.replace("http://www.w3.org/", "")


def test_charts__say_in_words_what_they_show() -> None:
    assert 'aria-label="loss over epoch: a &lt; b &amp; c from 3 to 1.5"' in CHARTS["lines"]()
    assert "tip 1, a name too long to be shown as a whole 2.5" in CHARTS["bars"]()


def test_charts__names_of_any_kind() -> None:
    svg = line_chart("a", "epoch", [Line("$x_", [1, 2, 3], [1.0, 2.0, 1.0]), Line("_y$", [1, 2, 3], [1.0, 2.0, 1.0])])
    assert ">$x_<" in svg
    assert ">_y$<" in svg
    assert ">left$wing$tip<" in bar_chart("b", "px", ["left$wing$tip"], [1.0])


def test_charts__two_on_a_page_share_no_names() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', CHARTS[kind]())) for kind in CHARTS]
    assert sum(map(len, ids)) == len(set().union(*ids))


def test_charts__leave_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    CHARTS["lines"]()
    assert dict(mpl.rcParams) == before


def test_charts__are_the_same_each_time() -> None:
    assert CHARTS["lines"]() == CHARTS["lines"]()
