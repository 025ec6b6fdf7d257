"""The page of `tl label`, in headless Chromium, with its real server."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image

from tests.models import solid
from tests.serving.page_steps import click, evaluate, keep, pause, press, settle, until, visible, when
from tests.serving.web_driver import drive

pytest.importorskip("tl.serving.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytest.importorskip("httpx", reason="needs httpx")

from tests.annotation.photos import color_of, link_photos, make_photos
from tests.serving.label_server import FOCUS_GRID, KEYS, MESSAGE, NAMED, labeling, look, show
from tl.annotation.opening import SessionPlan

pytestmark = pytest.mark.slow
# The titles of the images in the grid, as soon as all have one.
TITLES = """(() => {
  const titles = [...document.querySelectorAll('#grid .tile')].map((one) => one.title);
  return titles.length > 0 && titles.every(Boolean) ? titles : null;
})()"""
# Confirms by C what is seen, in one step: {title, names, button} of this moment.
CONFIRM = f"""(() => {{
  const names = {TITLES}, get = (id) => document.getElementById(id);
  if (names === null || get('confirm').hidden) return null;
  const seen = {{ title: get('view-title').textContent, names, button: get('confirm').textContent }};
  get('grid').dispatchEvent(new KeyboardEvent('keydown', {{ key: 'c', bubbles: true, cancelable: true }}));
  return seen;
}})()"""
MARKUP = "<img src=x onerror=alert(1)>&amp;-red.png"


def test_page__labels_by_keys_alone(npm: Path, model: Path, tmp_path: Path) -> None:
    """Typed names of classes, keys, undo and redo, a note, a selection; all of it is in labels.csv."""
    plan = SessionPlan(make_photos(tmp_path / "photos", 60), tmp_path / "labels.csv", [])
    steps = [
        keep("hint", {"do": "text", "selector": "#class-hint"}),
        {"do": "type", "text": "red"},
        press("Enter"),
        until("#class-list", "red"),
        {"do": "type", "text": "green"},
        press("Enter"),
        until("#class-list", "green"),
        press("Escape"),
        press("/"),
        {"do": "type", "text": "bl"},
        keep("options", {"do": "texts", "selector": "#class-options li"}),
        press("Escape"),
        keep("first", {"do": "attribute", "selector": "#grid .tile.active", "name": "title"}),
        press("1"),
        until(MESSAGE, "labeled red"),
        press("u"),
        until(MESSAGE, "Undone"),
        keep("undone", {"do": "attribute", "selector": "#grid .tile.active", "name": "title"}),
        press("Control+Shift+Z"),
        until(MESSAGE, "Done again"),
        press("u"),
        until(MESSAGE, "Undone"),
        press("x"),
        until(MESSAGE, "not sure"),
        press("s"),
        until(MESSAGE, "skipped"),
        press("n"),
        {"do": "type", "text": "antennae hidden, <b>sharp</b>"},
        press("Control+Enter"),
        until(MESSAGE, "Note saved"),
        keep("note", {"do": "text", "selector": ".noted"}),
        press("/"),
        {"do": "type", "text": "blue"},
        press("Enter"),
        until("#class-list", "blue"),
        press(" ", "Shift+ArrowRight", "2"),
        until(MESSAGE, "2 images labeled green"),
        until("#about", "3 of 60"),
    ]
    with labeling(plan, model) as page:
        driven = look(page, npm, tmp_path, steps)
        assert driven.errors == []
        counts = page.get("/api/state")["counts"]
    assert "Type a class name" in driven.named["hint"]
    assert driven.named["options"] == ["+Label 1 image bl, a new class", "+Add the class bl"]
    assert driven.named["first"] == driven.named["undone"], "an undone image is back, with the focus"
    assert driven.named["note"] == "Note: antennae hidden, <b>sharp</b>"
    assert counts == {"labeled": 3, "unsure": 1, "skipped": 1, "failed": 0}
    rows = list(csv.DictReader(StringIO((tmp_path / "labels.csv").read_text(encoding="utf-8"))))
    assert sorted(row["label"] for row in rows) == ["blue", "green", "green"]
    assert [row["note"] for row in rows if row["label"] == "blue"] == ["antennae hidden, <b>sharp</b>"]


def test_page__confirms_suggestions(plan: SessionPlan, model: Path, npm: Path, tmp_path: Path) -> None:
    """Labels by name until there are suggestions, then C confirms all in view; reserved images show no suggestion."""
    steps = [
        {"do": "decide", "count": 30, "keys": KEYS},
        visible("#grid .tile.suggested"),
        *show("suggested"),
        until("#view-title", "Suggested as"),
        keep("seen", when(CONFIRM)),
        until(MESSAGE, "images labeled"),
        settle(),
        pause(1500),
        keep("message", {"do": "text", "selector": MESSAGE}),
        *show("all"),
        visible("#grid .tile.labeled"),
        keep("open", {"do": "attributes", "selector": "#grid .tile:not(.labeled)", "name": "aria-label"}),
    ]
    with labeling(plan, model) as page:
        driven = look(page, npm, tmp_path, steps)
        assert driven.errors == []
        records = page.records(*range(120))
        page.wait(lambda state: state["head"] and not state["head"]["is_fitting"])
    seen = driven.named["seen"]
    suggested = seen["title"].removeprefix("Suggested as ")
    assert {color_of(name) for name in seen["names"]} == {suggested}
    assert f"as {suggested}" in seen["button"]
    count = int(driven.named["message"].split()[0])
    assert driven.named["message"] == f"{count} images labeled {suggested}."
    labeled = [one for one in records if one["label"] is not None]
    assert len(labeled) == 30 + count
    assert all(color_of(one["name"]) == one["label"] for one in labeled)
    blind = {one["name"] for one in records if one["is_reserved"] and one["label"] is None}
    shown = {label.split(",")[0]: label for label in driven.named["open"]}
    assert blind & set(shown)
    assert all("suggestion" not in shown[name] for name in blind & set(shown))


def test_page__says_what_the_accuracy_leaves_out(plan: SessionPlan, model: Path, npm: Path, tmp_path: Path) -> None:
    """All random images but one are decided, one of them skipped: what is promised is what is left."""
    with labeling(plan, model) as page:
        order = page.session._order.tolist()
        for record in page.records(*order[:-2]):
            page.label([record["id"]], color_of(record["name"]))
        page.label([order[-2]], do="skip")
        page.wait(lambda state: state["estimate"], 60)
        steps = [
            until("#estimate", "1 not sure or skipped is left out. 1 more is left to narrow the interval."),
            until("#view-title", "Next"),
            FOCUS_GRID,
            press("Control+a", "Delete"),
            until(MESSAGE, "There is no label to clear."),
        ]
        assert look(page, npm, tmp_path, steps).errors == []


def test_page__says_that_the_accuracy_is_not_measured(model: Path, npm: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 20, folders=("one",))
    with labeling(SessionPlan(photos, tmp_path / "labels.csv", list(KEYS), has_groups=True), model) as page:
        for record in page.records(0, 1, 2):
            page.label([record["id"]], color_of(record["name"]))
        assert look(page, npm, tmp_path, [until("#estimate", "The accuracy is not measured")]).errors == []


def test_page__finds_more_like_one_and_zooms(plan: SessionPlan, model: Path, npm: Path, tmp_path: Path) -> None:
    steps = [
        until("#features-text", "120 of 120"),
        FOCUS_GRID,
        keep("one", {"do": "attribute", "selector": "#grid .tile.active", "name": "title"}),
        press("f"),
        until("#view-title", "Similar"),
        keep("similar", when(TITLES)),
        press("Escape"),
        until("#view-title", "Next"),
        press("z"),
        until("#zoom-name", ".png"),
        until(".zoom-facts .facts", "PNG"),
        press("+", "+"),
        keep("can pan", evaluate("document.querySelector('.stage').classList.contains('can-pan')")),
        press("0", "1"),
        until(MESSAGE, "labeled red"),
        press("Escape"),
        settle(),
        keep("focused", evaluate("document.activeElement.id")),
    ]
    with labeling(plan, model) as page:
        driven = look(page, npm, tmp_path, steps)
        assert driven.errors == []
        assert page.get("/api/state")["counts"]["labeled"] == 1
    assert {color_of(name) for name in driven.named["similar"][:10]} == {color_of(driven.named["one"])}
    assert driven.named["can pan"] is True
    assert driven.named["focused"] == "grid"


def test_page__follows_other_windows_and_shows_conflicts(
    plan: SessionPlan, model: Path, npm: Path, tmp_path: Path
) -> None:
    """Two windows on the view All. What one does, the other shows; unless it did not hear, then that is a conflict."""
    with labeling(plan, model) as page:
        steps = [
            *show("all"),
            visible("#image-1"),
            {"do": "window", "url": page.access.url},
            *show("all"),
            visible("#image-1"),
            press("2"),
            until(MESSAGE, "labeled green"),
            {"do": "switch", "number": 0},
            visible("#image-0.labeled"),
            keep("first", {"do": "attribute", "selector": "#image-0", "name": "aria-label"}),
            settle(),
            {"do": "block", "pattern": "**/api/records"},
            {"do": "switch", "number": 1},
            press("3"),
            until(MESSAGE, "labeled blue"),
            settle(),
            {"do": "switch", "number": 0},
            FOCUS_GRID,
            press("ArrowRight", "1"),
            until(MESSAGE, "another window"),
            keep("message", {"do": "text", "selector": MESSAGE}),
            keep("second", {"do": "attribute", "selector": "#image-1", "name": "aria-label"}),
        ]
        driven = look(page, npm, tmp_path, steps)
        labels = [one["label"] for one in page.records(0, 1)]
    assert [error for error in driven.errors if "ERR_FAILED" not in error] == []
    assert "labeled green" in driven.named["first"]
    assert driven.named["message"] == "1 image was changed in another window meanwhile; look again."
    assert "labeled blue" in driven.named["second"]
    assert labels == ["green", "blue"]


def test_page__takes_back_what_the_server_refuses(plan: SessionPlan, model: Path, npm: Path, tmp_path: Path) -> None:
    steps = [
        keep("before", {"do": "attribute", "selector": "#grid .tile.active", "name": "title"}),
        FOCUS_GRID,
        press("/"),
        {"do": "evaluate", "code": "document.getElementById('class-box').removeAttribute('maxlength')"},
        {"do": "type", "text": "x" * 300},
        press("Enter"),
        until(MESSAGE, "Not saved"),
        keep("labeled", {"do": "texts", "selector": "#grid .tile.labeled"}),
        keep("names", when(TITLES)),
    ]
    with labeling(plan, model) as page:
        driven = look(page, npm, tmp_path, steps)
    assert [error for error in driven.errors if "status of 400" not in error] == []
    assert driven.named["labeled"] == []
    assert driven.named["names"][0] == driven.named["before"], "the image is back in its place"


def test_page__goes_on_when_the_server_is_back(npm: Path, model: Path, tmp_path: Path) -> None:
    """The server is killed and started anew on its port; its link opens another window, and the first loads anew."""
    photos = make_photos(tmp_path / "photos", 40)
    command = [sys.executable, "-m", "tl", "label", str(photos), "-o", str(tmp_path / "labels.csv")]
    command += ["--classes", "ant,bee"]
    command += ["--model", str(model), "--device", "cpu", "--no-browser", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    steps = [
        press("1"),
        until("#about", "1 of 40"),
        {"do": "signal", "pid": process.pid, "name": "SIGKILL"},
        until(".banner", "does not answer"),
        press("1"),
        until(MESSAGE, "nothing can be saved now"),
        {"do": "spawn", "command": [*command, "--port", str(told["port"])]},
        visible("#grid .tile"),
        {"do": "switch", "number": 0},
        until(MESSAGE, "this page was loaded again"),  # numbers of images may mean others
        keep("no banner", evaluate("document.querySelector('.banner').hidden")),
        visible(NAMED),
        FOCUS_GRID,
        press("2"),
        until("#about", "2 of 40"),
    ]
    try:
        driven = drive(npm, told["link"], steps, tmp_path, script="drive_images.mjs", ready=NAMED)
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
    refused = (
        "ERR_CONNECTION",
        "ERR_CONTENT_LENGTH",
        "ERR_INCOMPLETE_CHUNKED",
        "status of 401",
        "status of 409",
        "ERR_EMPTY_RESPONSE",
    )
    assert [error for error in driven.errors if not any(part in error for part in refused)] == []
    assert driven.named["no banner"] is True


def test_page__shows_markup_in_names_as_text(model: Path, npm: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    Image.fromarray(solid((200, 40, 40), 12, 16)).save(photos / MARKUP)
    (photos / "broken-<b>.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a JPEG")
    name = "<script>alert(2)</script>"
    steps = [
        {"do": "type", "text": name},
        press("Enter"),
        until("#class-list", name),
        *show("all"),
        visible("#grid .tile"),
        {
            "do": "evaluate",
            "code": "[...document.querySelectorAll('#grid .tile')].find((one) => one.title.startsWith('<')).click()",
        },
        until("#focused-name", "<img"),
        keep("name", {"do": "text", "selector": "#focused-name"}),
        FOCUS_GRID,
        press("1"),
        visible("#grid .tile.labeled"),
        keep("label", {"do": "text", "selector": "#grid .tile.labeled .strip"}),
        keep("elements", evaluate("document.querySelectorAll('[onerror], body script, b').length")),
        *show("errors"),
        until("#grid .tile.failed", " "),
    ]
    with labeling(SessionPlan(photos, tmp_path / "labels.csv", []), model) as page:
        driven = look(page, npm, tmp_path, steps)
    assert [error for error in driven.errors if "status of 422" not in error] == []
    assert driven.named["name"] == MARKUP
    assert driven.named["label"].strip() == name
    assert driven.named["elements"] == 0


def test_page__scrolls_20000_images(model: Path, npm: Path, tmp_path: Path) -> None:
    photos = link_photos(tmp_path / "photos", 20_000)
    place = "Number(document.querySelector('.active').getAttribute('aria-posinset'))"
    count = f"[document.querySelectorAll('#grid .tile').length, {place}]"
    middle = "document.getElementById('grid').scrollTop = document.getElementById('grid').scrollHeight / 2"
    steps = [
        *show("all"),
        visible("#grid .tile.loaded"),
        FOCUS_GRID,
        press("End"),
        visible("#image-19999.loaded"),
        keep("end", evaluate(count)),
        evaluate(middle),
        pause(300),
        visible("#grid .tile.loaded"),
        keep("middle", evaluate(count)),
        keep("top", evaluate("document.getElementById('grid').scrollTop")),
        *show("labeled"),
        visible("#empty h3"),
        *show("all"),
        visible("#grid .tile.loaded"),
        keep("top again", evaluate("document.getElementById('grid').scrollTop")),
    ]
    with labeling(SessionPlan(photos, tmp_path / "labels.csv", ["red"]), model) as page:
        driven = look(page, npm, tmp_path, steps)
    assert driven.errors == []
    assert driven.named["end"][1] == 20_000
    assert driven.named["end"][0] < 100
    assert driven.named["middle"][0] < 100
    assert driven.named["top again"] == driven.named["top"] > 0, "a view keeps its place"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 820), ("dark", 390)])
def test_page__is_accessible(
    scheme: str, width: int, plan: SessionPlan, model: Path, npm: Path, tmp_path: Path
) -> None:
    still = pause(400)
    axe = {"do": "axe"}
    steps = [
        axe,
        FOCUS_GRID,
        {"do": "decide", "count": 15, "keys": KEYS},
        visible("#grid .tile.suggested"),
        press(" ", "Shift+ArrowRight", "n"),
        still,
        axe,
        press("Escape", "Escape", "?"),
        axe,
        press("Escape", "z"),
        until(".zoom-facts", "PNG"),
        axe,
        press("Escape"),
        *show("suggested"),
        visible("#confirm"),
        still,
        axe,
        *show("labeled"),
        visible("#grid .tile.labeled"),
        still,
        axe,
        *show("skipped"),
        visible("#empty h3"),
        axe,
        click("#make-model"),
        axe,
        press("Escape", "/"),
        {"do": "type", "text": "r"},
        axe,
    ]
    with labeling(plan, model) as page:
        driven = look(page, npm, tmp_path, steps, scheme=scheme, width=width)
    assert driven.errors == []
    found = [output for step, output in zip(steps, driven.outputs, strict=True) if step is axe]
    assert found == [[]] * len(found)
