"""The page of `tl review` in headless Chromium: title and list agree, keys act once, the focus is never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.page_steps import Step, evaluate, pause, press, until
from tests.serving.review_server import look, serving

pytest.importorskip("tl.serving.local.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytestmark = pytest.mark.slow
FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
CARD: Step = {"do": "visible", "selector": "#list .card.current .actions"}


def choose(kind: str) -> Step:
    return evaluate(f"document.querySelector('#kinds [data-kind=\"problems {kind}\"]').click()")


def test_page__shows_what_was_asked_last(npm: Path, data: Path, tmp_path: Path) -> None:
    """An answer that comes late, of the list asked before, is not shown below another title."""
    steps = [
        choose("label"),
        CARD,
        {"do": "delay", "pattern": "**/api/list?*status=decided*", "milliseconds": 700},
        evaluate("document.getElementById('show-decided').click()"),
        choose("label"),
        pause(1500),
        evaluate("document.querySelectorAll('#list .card').length"),
        {"do": "attribute", "selector": "#show-open", "name": "aria-pressed"},
        evaluate("document.getElementById('show-decided').click()"),
        {"do": "visible", "selector": "#empty h3"},
        {"do": "attribute", "selector": "#show-decided", "name": "aria-pressed"},
    ]
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        driven = look(npm, link, steps, tmp_path)
    assert driven.errors == []
    assert driven.outputs[6] > 0
    assert (driven.outputs[7], driven.outputs[10]) == ("true", "true")


def test_page__a_held_key_and_the_focus(npm: Path, data: Path, tmp_path: Path) -> None:
    heard = "[...document.querySelectorAll('dialog[open] [role=status]')].map((one) => one.textContent).join('')"
    steps = [
        choose("label"),
        CARD,
        {"do": "hold", "key": "k", "times": 6},
        until(".toast-text", "1 image kept"),
        pause(300),
        until("#count", "1 of"),
        evaluate("document.getElementById('undo').focus()"),
        press("Enter"),
        until("#count", "0 of"),
        pause(500),
        evaluate(FOCUSED),
        press("z", "k"),
        pause(500),
        evaluate(heard),
        press("Escape", "c"),
        {"do": "visible", "selector": ".diff"},
        evaluate(FOCUSED),
        evaluate("document.querySelector('.diff button').click()"),
        {"do": "visible", "selector": "dialog.zoom[open] .facts"},
        {"do": "text", "selector": ".zoom-facts"},
    ]
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        driven = look(npm, link, steps, tmp_path)
    assert driven.errors == []
    assert "card" in driven.outputs[10]
    assert "U undoes" in driven.outputs[13]
    assert driven.outputs[16] == "changes"
    assert "keys that decide" not in driven.outputs[19], "there are none among the changes"


def test_page__follows_another_window_without_losing_the_focus(npm: Path, data: Path, tmp_path: Path) -> None:
    seen = """(() => {
      const { left, right } = document.querySelector('#kinds [aria-current=true]').getBoundingClientRect();
      return [left, right, innerWidth];
    })()"""
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        steps = [
            evaluate("document.getElementById('start').focus()"),
            {"do": "window", "url": link.partition("?")[0]},
            {"do": "visible", "selector": "#overview h2"},
            choose("label"),
            CARD,
            press("k"),
            until("#count", "1 of"),
            {"do": "switch", "number": 0},
            until("#count", "1 of"),
            pause(300),
            evaluate(FOCUSED),
            {"do": "size", "width": 390, "height": 844},
            choose("duplicate"),
            CARD,
            pause(200),
            evaluate(seen),
            {"do": "size", "width": 640, "height": 400},
            pause(200),
            evaluate("document.getElementById('scroll').clientHeight"),
        ]
        driven = look(npm, link, steps, tmp_path)
    assert driven.errors == []
    assert driven.outputs[10] == "start"
    left, right, width = driven.outputs[15]
    assert -1 <= left < right <= width + 1
    assert driven.outputs[18] > 180
