"""The style sheets of all pages: one defines the tokens, and every page's own rules are for what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.studies.test_report import Tags
from tl.pages import BASE, read_base_style
from tl.studies.report.page import (
    Bins,
    Block,
    Card,
    Chart,
    Code,
    Comparison,
    Dot,
    Facts,
    Figure,
    Gallery,
    ImageMap,
    Mark,
    Matrix,
    Note,
    Page,
    Section,
    Step,
    Table,
    render,
)
from tl.studies.report.thumbnails import Thumbnail

TL = Path(__file__).resolve().parents[2] / "tl"
REPORT = TL / "studies" / "report"
SHEETS = sorted(path for path in TL.rglob("*.css") if path.parent != BASE)


def tokens_of(style: str) -> set[str]:
    """Names of the custom properties that a style sheet defines."""
    return set(re.findall(r"(--[\w-]+)\s*:", style))


def classes_of(style: str) -> set[str]:
    """Names of the classes in the selectors of a style sheet."""
    selectors = re.sub(r"/\*.*?\*/|\{[^{}]*\}", " ", re.sub(r"@[^{]*\{", " ", style), flags=re.DOTALL)
    return set(re.findall(r"\.(-?[a-zA-Z_][\w-]*)", selectors))


def every_block() -> Page:
    """A page with each kind of block, and with what only some of them have."""
    image = Thumbnail("data:image/webp;base64,AA==", (300, 200))
    cards = [
        Card(image, ["a", "b"], "label?", [(image, "near")], "0-1", is_right=False, confidence=0.9),
        Card(None, ["gone"], is_right=True),
    ]
    dots = [
        Dot(0.1 * i, 0.2, f"{i}.png", i % 2, [0, None][i % 2], 0.9, "val", ["outlier"] * (i == 2)) for i in range(3)
    ]
    names = [f"class {i}" for i in range(9)]
    marks = [Mark("validation", 0.8, 0.7, 0.9), Mark("test", 0.7)]
    blocks: list[Block] = [
        Facts({"a": "b"}),
        Note("text"),
        Code("tl"),
        Chart("<svg></svg>"),
        Table(("a", "b"), [("x", 1), ("y", Figure(0.5, "half"))], {"b": "technical"}),
        Table(("a",), [(1,)], title="More"),
        Gallery(cards, "note", most=1),
        Matrix(names, (np.eye(9, dtype=int) + np.eye(9, k=1, dtype=int)).tolist(), {(0, 0): cards}),
        ImageMap(names, dots, image, 72, 2),
        Bins((0.5, 0.9, 1.0), [1, 5], [1, 0]),
        Comparison(("n",), [("lr=1", marks, [1])]),
    ]
    steps = [Step("Do this", "for a reason", "Everything")]
    sections = [Section("Everything", blocks, narrow=True)]
    return Page("t", "s", [("n", "1")], sections, "kicker", "headline", steps, cards)


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda path: str(path.relative_to(TL)))
def test_sheets__take_their_tokens_from_the_base(sheet: Path) -> None:
    style, base = sheet.read_text(encoding="utf-8"), read_base_style()
    assert tokens_of(style) & tokens_of(base) == set()
    assert "prefers-color-scheme" not in style  # colors of the dark are values of tokens


def test_report__has_the_style_of_all_pages_before_its_own() -> None:
    text = render(every_block())
    own = (REPORT / "page.css").read_text(encoding="utf-8")
    assert text.count("<style>") == 1
    assert text.index(read_base_style().strip()) < text.index(own.strip())
    used = set(re.findall(r"var\((--[\w-]+)", own))
    assert used <= tokens_of(own) | tokens_of(read_base_style()) | {"--share"}  # a share is an attribute of its element


def test_report__every_class_is_in_a_style_sheet_or_the_script() -> None:
    found = {
        name for _, attributes in Tags(render(every_block())).tags for name in (attributes.get("class") or "").split()
    }
    styled = classes_of(read_base_style()) | classes_of((REPORT / "page.css").read_text(encoding="utf-8"))
    operated = set(re.findall(r"\.([a-z][\w-]*)", (REPORT / "page.js").read_text(encoding="utf-8")))
    assert found - styled - operated == set()
    assert {"panel", "chips", "table", "photo", "number"} <= found  # blocks of all pages


def test_report__has_no_rule_for_what_no_page_shows() -> None:
    shown = (REPORT / "page.html.j2").read_text(encoding="utf-8") + (REPORT / "page.js").read_text(encoding="utf-8")
    own = classes_of((REPORT / "page.css").read_text(encoding="utf-8"))
    numbered = {f"{name}{i}" for name, count in (("c", 8), ("series", 2)) for i in range(count)}
    unused = {name for name in own - numbered if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", shown)}
    assert unused == set()
