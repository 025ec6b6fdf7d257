"""The page of `tl review` in headless Chromium, from photos with mistakes to a CSV that trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.annotation.test_reviewed import rows_of
from tests.serving.page_steps import Step, click, keep, press, visible
from tests.serving.review_server import look, serving, stop
from tl.data.manifests import read_images

pytest.importorskip("tl.serving.local.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytestmark = pytest.mark.slow
CURRENT = "#list .card.current h3"  # cards that leave are not in the list


def texts(selector: str, name: str) -> Step:
    """Remember the texts of elements as `name`."""
    return keep(name, {"do": "texts", "selector": selector})


def open_kind(kind: str) -> list[Step]:
    button = f'#kinds [data-kind="problems {kind}"]'
    return [click(button), visible(f"{button}[aria-current=true]"), visible("#list .card.current .actions")]


def named(npm: Path, link: str, steps: Sequence[Step], tmp_path: Path, ready: str = "#overview h2") -> dict[str, Any]:
    """Do the steps without an error of the page; returns the outputs of those that have a name."""
    driven = look(npm, link, steps, tmp_path, ready=ready)
    assert driven.errors == []
    return driven.named


def test_page__from_wrong_labels_to_a_model_by_keyboard(npm: Path, data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    output = tmp_path / "out" / "reviewed.csv"
    steps = [
        texts("#overview h2", "lead"),
        texts(".trust", "trust"),
        {"do": "axe", "as": "axe of overview"},
        *open_kind("label"),
        texts("#list .card h3", "names"),
        {"do": "axe", "as": "axe of cards"},
        press("Enter"),
        visible('.toast:has-text("1 image labeled")'),
        press("Enter"),
        visible("#empty h3"),
        press("u"),
        visible('.toast:has-text("Undone")'),
        visible("#list .card.current .actions"),
        texts(CURRENT, "undone"),
        press("/"),
        {"do": "fill", "selector": "#class-box", "value": "moth"},
        press("Enter"),
        visible("#empty h3"),
        visible('.toast:has-text("labeled moth")'),
        press("c"),
        visible(".diff"),
        texts(".diff del", "old"),
        texts(".diff ins", "new"),
        texts(".diff .path", "paths"),
        texts(".command code", "commands"),
        {"do": "axe", "as": "axe of changes"},
    ]
    with serving(data, output) as (process, link):
        found = named(npm, link, steps, tmp_path)
        told = stop(process)
    assert "of 37 images deserve a look" in found["lead"][0]
    assert "agree with" in found["trust"][0]
    assert sorted(found["names"]) == ["ant/wrong.png", "bee/copy.png"]
    (last,) = found["undone"]
    labels = {name: "moth" if name in ("bee/copy.png", last) else "bee" for name in found["names"]}
    assert sorted(found["old"]) == ["ant", "bee"]
    assert sorted(found["new"]) == sorted(labels.values())
    assert sorted(found["paths"]) == sorted(labels)
    assert found["commands"] == [f"tl train {output} --out runs/reviewed"]
    assert [found[f"axe of {part}"] for part in ("overview", "cards", "changes")] == [[], [], []]
    assert "decided: 2 relabel" in told
    rows = rows_of(output.with_name("reviewed.changes.csv"))
    changes = {row["path"].removeprefix("../photos/"): row["new_label"] for row in rows}
    assert changes == labels
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before
    reviewed = read_images(output)
    assert {image.label for image in reviewed} == {"ant", "bee", "moth"}
    assert len(reviewed) == len(read_images(data))
    train = [sys.executable, "-m", "tl", "train", str(output), "--out", str(tmp_path / "run"), "--backbone", "smallcnn"]
    done = subprocess.run([*train, "--device", "cpu"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_page__duplicates_and_selections(npm: Path, data: Path, tmp_path: Path) -> None:
    """`M` removes the copy, `Shift+M` the other; several selected images are decided at once."""
    output = tmp_path / "reviewed.csv"
    steps = [
        *open_kind("duplicate"),
        click('.card:has(.role:text("The same file")) .card-head'),
        texts(CURRENT, "shown"),
        texts("#list .card.current figure:nth-child(2) .file", "twin"),
        texts("#list .card.current .reasons li:last-child", "reason"),
        press("Shift+M"),
        visible('.toast:has-text("removed as a duplicate")'),
        *open_kind(""),
        press("Control+a"),
        visible("#selected"),
        {"do": "axe", "as": "axe"},
        press("k"),
        visible('.toast:has-text("kept")'),
        visible("#empty h3"),
        click("#show-decided"),
        visible("#list .card.current .decision"),
        texts("#list .decision", "decisions"),
    ]
    with serving(data, output, "--kinds", "label,duplicate") as (process, link):
        found = named(npm, link, steps, tmp_path)
        stop(process)
    (shown,), (twin,), (reason,) = found["shown"], found["twin"], found["reason"]
    assert {shown, twin} == {"bee/copy.png", "moth/00.png"}
    assert reason
    assert found["axe"] == []
    assert {text.strip("✓ ") for text in found["decisions"]} == {"Kept as it is"}
    changes = {row["path"].removeprefix("photos/"): row for row in rows_of(tmp_path / "reviewed.changes.csv")}
    assert (changes[twin]["change"], changes[twin]["of"]) == ("duplicate", f"photos/{shown}")
    assert changes["ant/wrong.png"]["change"] == "keep"
    assert len(rows_of(output)) == 36


def test_page__names_are_text(npm: Path, data: Path, tmp_path: Path) -> None:
    odd, name = data / "<i onmouseover=alert(2)>", "<img src=x onerror=alert(1)>.png"
    odd.mkdir()
    for n in range(6):
        shutil.copy(data / f"ant/{n:02d}.png", odd / f"{n}.png")
    (data / "ant/wrong.png").rename(data / "ant" / name)
    steps = [
        *open_kind("label"),
        texts("#list .card h3", "names"),
        texts("#classes .name", "classes"),
        press("Control+a", "d"),
        visible('.toast:has-text("removed")'),
        press("c"),
        visible(".diff"),
        texts(".diff .path", "paths"),
        {"do": "html", "selector": "main", "as": "html"},
    ]
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label") as (process, link):
        found = named(npm, link, steps, tmp_path)
        stop(process)
    assert f"ant/{name}" in found["names"]
    assert "<i onmouseover=alert(2)>" in found["classes"]
    assert f"ant/{name}" in found["paths"]
    assert "<img src=x" not in found["html"]


def test_page__goes_on_after_kill(npm: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "reviewed.csv"
    first = [
        *open_kind("label"),
        press("n"),
        {"do": "fill", "selector": "#note-text", "value": "see the wings"},
        press("Control+Enter"),
        visible("#list .card.current .note"),
        texts(CURRENT, "name"),
        press("Enter"),
        visible('.toast:has-text("labeled")'),
    ]
    with serving(data, output) as (process, link):
        (name,) = named(npm, link, first, tmp_path)["name"]
        process.kill()
    with open(tmp_path / "reviewed.journal.jsonl", "ab") as journal:
        journal.write(b'{"n":9,"at":"20')  # as if it was killed while it wrote
    second = [
        click("#show-decided"),
        visible("#list .card .decision"),
        texts("#list .card h3", "names"),
        texts("#list .note", "notes"),
        texts("#list .labels", "labels"),
    ]
    with serving(data, output) as (process, link):
        found = named(npm, link, second, tmp_path, ready=".card h3")
        told = stop(process)
    assert (found["names"], found["notes"]) == ([name], ["Note see the wings"])
    (label,) = found["labels"]
    assert label in ("ant → bee", "bee → moth")
    assert "the last action was not finished" in told
    assert "goes on with the 1 decisions" in told
    assert [row["note"] for row in rows_of(tmp_path / "reviewed.changes.csv")] == ["see the wings"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_command__folder_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = [sys.executable, "-m", "tl", "review", str(data), "-o", str(closed / "r.csv"), "--no-browser"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "cannot be written" in done.stderr) == (1, True)
