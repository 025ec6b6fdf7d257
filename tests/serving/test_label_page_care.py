"""The page of `tl label` in headless Chromium: nothing is labeled, lost, moved or left unheard by accident."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.serving.page_steps import Step, click, evaluate, focus, keep, pause, press, settle, until, visible
from tests.serving.web_driver import drive

pytest.importorskip("tl.serving.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytest.importorskip("httpx", reason="needs httpx")

from tests.annotation.photos import make_photos
from tests.serving.label_server import FOCUS_GRID, KEYS, MESSAGE, NAMED, labeling, look, show
from tl.annotation.opening import SessionPlan
from tl.serving.local.run import write_link_page

pytestmark = pytest.mark.slow
FOCUSED = evaluate("document.activeElement.id || document.activeElement.tagName")


def test_page__a_held_key_acts_once(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    steps = [
        FOCUS_GRID,
        {"do": "hold", "key": "1", "times": 8},
        until(MESSAGE, "labeled red"),
        {"do": "hold", "key": "x", "times": 8},
        until(MESSAGE, "not sure"),
        {"do": "hold", "key": "ArrowRight", "times": 4},
        keep("place", {"do": "attribute", "selector": "#grid .tile.active", "name": "aria-posinset"}),
    ]
    with labeling(plan) as page:
        driven = look(page, npm, tmp_path, steps)
        counts = page.get("/api/state")["counts"]
    assert driven.errors == []
    assert (counts["labeled"], counts["unsure"]) == (1, 1)
    assert driven.named["place"] == "5", "arrows go on as long as they are held"


def test_page__asks_before_labels_are_lost(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    """A server that does not answer: the page says what is not saved, and closing it asks first."""
    steps: list[Step] = [
        FOCUS_GRID,
        press("1"),
        until("#about", "1 of 120"),
        keep("no banner", evaluate("document.querySelector('.banner').hidden")),
        {"do": "stall", "pattern": "**/api/label"},
        press("1", "2"),
        until(".banner", "2 actions not saved yet"),
        {"do": "leave"},
    ]
    with labeling(plan) as page:
        driven = look(page, npm, tmp_path, steps)
    assert driven.named["no banner"] is True
    assert len(driven.errors) == 1
    assert driven.errors[0].startswith("dialog:")


def test_page__merges_two_classes_after_asking(plan: SessionPlan, model: Path, npm: Path, tmp_path: Path) -> None:
    names = "[...document.querySelectorAll('#class-list .name')].map((one) => one.textContent).join()"
    edit = click("[aria-label='Edit the class green']")
    with labeling(plan, model) as page:
        page.label([0, 1, 2], "green", window="other")
        page.label([3], "red", window="other")
        steps = [
            {"do": "window", "url": page.access.url},
            *show("labeled"),
            visible("#groups button"),
            evaluate("[...document.querySelectorAll('#groups button')].find(({ textContent }) => "
                     "textContent.includes('green')).click()"),
            until("#view-title", "green"),
            {"do": "switch", "number": 0},
            edit,
            {"do": "type", "text": " RED"},
            press("Enter"),
            keep("question", {"do": "text", "selector": "#class-merge"}),
            keep("button", {"do": "text", "selector": "#class-rename"}),
            keep("axe", {"do": "axe"}),
            keep("before", evaluate(names)),
            press("Enter"),
            until(MESSAGE, "3 images of green labeled red."),
            keep("after", evaluate(names)),
            {"do": "switch", "number": 1},
            visible("#image-3.labeled"),  # the class that was shown is none any more
            keep("other window", evaluate(names)),
            {"do": "switch", "number": 0},
            FOCUS_GRID,
            press("u"),
            until(MESSAGE, "Undone: 3 images"),
            until("#class-list", "green"),
            keep("undone", evaluate(names)),
        ]  # fmt: skip
        driven = look(page, npm, tmp_path, steps)
        labels = [one["label"] for one in page.records(0, 1, 2, 3)]
    assert driven.errors == []
    asked = "There is a class red already. Merging labels 3 images of green as red, and removes green. U undoes."
    assert driven.named == {
        "question": asked,
        "button": "Merge 3 images",
        "axe": [],
        "before": "red,green,blue",
        "after": "red,blue",
        "other window": "red,blue",
        "undone": "red,green,blue",
    }
    assert labels == ["green"] * 3 + ["red"]


def test_page__closes_without_a_question_when_all_is_saved(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    steps: list[Step] = [FOCUS_GRID, press("1"), until("#about", "1 of 120"), pause(300), {"do": "leave"}]
    with labeling(plan) as page:
        assert look(page, npm, tmp_path, steps).errors == []


def test_page__a_copied_window_has_a_name_of_its_own(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    """So that undo in one does not take back what the other did; a window that is loaded anew keeps its name."""
    name = evaluate("sessionStorage.getItem('tl-window')")
    ready = visible(NAMED)
    steps: list[Step] = [keep("first", name), {"do": "reload"}, ready, keep("again", name), {"do": "copy"}, ready]
    steps += [keep("copied", name), press("1"), until("#about", "1 of 120")]
    steps += [{"do": "switch", "number": 0}, until("#about", "1 of 120"), FOCUS_GRID, press("u"), until(MESSAGE, ".")]
    with labeling(plan) as page:
        driven = look(page, npm, tmp_path, steps)
        assert page.get("/api/state")["counts"]["labeled"] == 1
    assert driven.named["first"] == driven.named["again"] != driven.named["copied"]


def test_page__is_heard_in_the_large_view(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    """All outside an open dialog is unheard, so that what is said must be in it."""
    heard = "[...document.querySelectorAll('dialog[open] [role=status]')].map((one) => one.textContent).join('')"
    steps = [
        FOCUS_GRID,
        press("z"),
        until("#zoom-name", ".png"),
        press("1"),
        pause(300),
        keep("in it", evaluate(heard)),
    ]
    steps += [press("Escape"), visible("body:not(:has(dialog[open]))"), press("x")]
    steps += [until("body > [role=status]", "not sure. U undoes.")]
    with labeling(plan) as page:
        driven = look(page, npm, tmp_path, steps)
    assert driven.errors == []
    assert "labeled red. U undoes." in driven.named["in it"]


def test_page__never_loses_the_focus(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    steps = [
        FOCUS_GRID,
        press("1"),
        until("#about", "1 of 120"),
        focus("#undo"),
        press("Enter"),
        until(MESSAGE, "Undone"),
        settle(),
        keep("undo", FOCUSED),
        focus("#view-unsure"),
        press("Enter"),
        visible("#empty h3"),
        keep("empty", FOCUSED),
        focus("#empty button"),
        press("Enter"),
        until("#view-title", "Next"),
        settle(),
        keep("next", FOCUSED),
        press("f"),
        until("#view-title", "Similar"),
        focus("#view-similar"),
        press("Escape"),
        until("#view-title", "Next"),
        settle(),
        keep("back", FOCUSED),
    ]
    with labeling(plan) as page:
        driven = look(page, npm, tmp_path, steps)
    assert driven.errors == []
    assert driven.named == {"undo": "grid", "empty": "view-unsure", "next": "grid", "back": "grid"}


def test_page__small_windows(npm: Path, tmp_path: Path) -> None:
    """Long names of classes leave room for their numbers; a narrow window shows which view it is; 200% shows all."""
    plan = SessionPlan(make_photos(tmp_path / "photos", 12), tmp_path / "labels.csv", ["Q" * 100, "bee"])
    inside = """(() => {
      const list = document.getElementById('class-list').getBoundingClientRect();
      return [...document.querySelectorAll('#class-list .number, #class-list .more')]
        .every((one) => one.getBoundingClientRect().right <= list.right + 1);
    })()"""
    seen = """(() => {
      const { left, right } = document.getElementById('view-skipped').getBoundingClientRect();
      return left >= 0 && right <= innerWidth;
    })()"""
    reached = """(() => {
      document.getElementById('estimate').scrollIntoView();
      const { top, bottom, height } = document.getElementById('estimate').getBoundingClientRect();
      return height > 0 && top >= 0 && bottom <= innerHeight && document.getElementById('grid').clientHeight >= 150;
    })()"""
    steps = [
        keep("inside", evaluate(inside)),
        {"do": "size", "width": 390, "height": 844},
        evaluate("document.getElementById('view-skipped').click()"),
        until("#view-title", "Skipped"),
        pause(200),
        keep("seen", evaluate(seen)),
        evaluate("document.getElementById('view-next').click()"),
        until("#view-title", "Next"),
        {"do": "size", "width": 640, "height": 400},
        pause(200),
        keep("reached", evaluate(reached)),
    ]
    with labeling(plan) as page:
        driven = look(page, npm, tmp_path, steps)
    assert driven.errors == []
    assert driven.named == {"inside": True, "seen": True, "reached": True}


WATCH = """(() => {
  const grid = document.getElementById('grid'), shown = (window.shown = []);
  const look = () => {
    const area = grid.getBoundingClientRect();
    const tiles = [...grid.querySelectorAll('.tile')].filter((one) => {
      const { top, bottom } = one.getBoundingClientRect();
      return top >= area.top - 1 && (top + bottom) / 2 < area.bottom;
    });
    const place = (tile) => Number(tile.getAttribute('aria-posinset'));
    const ids = tiles.sort((one, other) => place(one) - place(other)).map((tile) => tile.imageId);
    if (JSON.stringify(ids) !== JSON.stringify(shown.at(-1))) shown.push(ids);
    requestAnimationFrame(look);
  };
  look();
})()"""


def test_page__nothing_in_view_moves_while_one_labels(
    plan: SessionPlan, model: Path, npm: Path, tmp_path: Path
) -> None:
    """At speed, with a model that learns meanwhile: images leave, those behind them move up, others come at the end."""
    steps = [
        FOCUS_GRID,
        evaluate(WATCH),
        {"do": "decide", "count": 60, "keys": KEYS},
        settle(),
        pause(1500),
        keep("shown", evaluate("window.shown")),
        keep("focused", FOCUSED),
        keep("active", evaluate("document.querySelector('.tile.active') !== null")),
    ]
    with labeling(plan, model) as page:
        driven = look(page, npm, tmp_path, steps)
    assert driven.errors == []
    shown = driven.named["shown"]
    assert len(shown) > 40
    for before, after in pairwise(shown):
        kept = [image for image in before if image in after]
        assert after[: len(kept)] == kept, (before, after)
    assert (driven.named["focused"], driven.named["active"]) == ("grid", True)


def test_link_page__opens_the_page(plan: SessionPlan, npm: Path, tmp_path: Path) -> None:
    """The file that a browser is started with, which is of another origin: the cookie must be there at once."""
    with labeling(plan) as page:
        file = write_link_page(page.access.link()) / "open.html"
        driven = drive(npm, file.as_uri(), [], tmp_path, script="drive_images.mjs", ready=NAMED)
    assert driven.errors == []
