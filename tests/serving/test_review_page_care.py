"""The page of `tl review` in headless Chromium: title and list agree, keys act once, the focus is never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.page_steps import Step, evaluate, keep, pause, press, settle, until, visible
from tests.serving.review_server import look, serving

pytest.importorskip("tl.serving.local.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytestmark = pytest.mark.slow
FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
CARD = visible("#list .card.current .actions")


def choose(kind: str) -> list[Step]:
    """Choose a kind of problems without a pointer, and wait until its cards are shown."""
    button = f'#kinds [data-kind="problems {kind}"]'
    return [evaluate(f"document.querySelector({button!r}).click()"), visible(f"{button}[aria-current=true]"), CARD]


def test_page__shows_what_was_asked_last(npm: Path, data: Path, tmp_path: Path) -> None:
    """An answer that comes late, of the list asked before, is not shown below another title."""
    steps = [
        *choose("label"),
        {"do": "delay", "pattern": "**/api/list?*status=decided*", "milliseconds": 700},
        evaluate("document.getElementById('show-decided').click()"),
        *choose("label"),
        pause(1500),
        keep("cards", evaluate("document.querySelectorAll('#list .card').length")),
        keep("open", {"do": "attribute", "selector": "#show-open", "name": "aria-pressed"}),
        evaluate("document.getElementById('show-decided').click()"),
        visible("#empty h3"),
        keep("decided", {"do": "attribute", "selector": "#show-decided", "name": "aria-pressed"}),
    ]
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        driven = look(npm, link, steps, tmp_path)
    assert driven.errors == []
    assert driven.named["cards"] > 0
    assert (driven.named["open"], driven.named["decided"]) == ("true", "true")


def test_page__a_held_key_and_the_focus(npm: Path, data: Path, tmp_path: Path) -> None:
    steps = [
        *choose("label"),
        {"do": "hold", "key": "k", "times": 6},
        until(".toast-text", "1 image kept"),
        pause(300),
        until("#count", "1 of"),
        evaluate("document.getElementById('undo').focus()"),
        press("Enter"),
        until("#count", "0 of"),
        settle(),
        keep("after undo", evaluate(FOCUSED)),
        press("z", "k"),
        until("dialog[open] [role=status]", "U undoes"),
        press("Escape", "c"),
        visible(".diff"),
        keep("of changes", evaluate(FOCUSED)),
        evaluate("document.querySelector('.diff button').click()"),
        visible("dialog.zoom[open] .facts"),
        keep("facts", {"do": "text", "selector": ".zoom-facts"}),
    ]
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        driven = look(npm, link, steps, tmp_path)
    assert driven.errors == []
    assert "card" in driven.named["after undo"]
    assert driven.named["of changes"] == "changes"
    assert "keys that decide" not in driven.named["facts"], "there are none among the changes"


def test_page__follows_another_window_without_losing_the_focus(npm: Path, data: Path, tmp_path: Path) -> None:
    seen = """(() => {
      const { left, right } = document.querySelector('#kinds [aria-current=true]').getBoundingClientRect();
      return [left, right, innerWidth];
    })()"""
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        steps = [
            evaluate("document.getElementById('start').focus()"),
            {"do": "window", "url": link.partition("?")[0]},
            visible("#overview h2"),
            *choose("label"),
            press("k"),
            until("#count", "1 of"),
            {"do": "switch", "number": 0},
            until("#count", "1 of"),
            settle(),
            keep("focused", evaluate(FOCUSED)),
            {"do": "size", "width": 390, "height": 844},
            *choose("duplicate"),
            pause(200),
            keep("seen", evaluate(seen)),
            {"do": "size", "width": 640, "height": 400},
            pause(200),
            keep("height", evaluate("document.getElementById('scroll').clientHeight")),
        ]
        driven = look(npm, link, steps, tmp_path)
    assert driven.errors == []
    assert driven.named["focused"] == "start"
    left, right, width = driven.named["seen"]
    assert -1 <= left < right <= width + 1
    assert driven.named["height"] > 180
