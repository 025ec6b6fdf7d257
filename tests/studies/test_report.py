"""Pages of real runs: their content, that they fetch nothing, and that a browser displays and operates them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.trainer.conftest import fresh_cache as fresh_cache
from tests.trainer.make import make_config
from tl.errors import RunError
from tl.progress import Silent
from tl.studies.report.neighbors import neighbors_among, open_embeddings
from tl.studies.report.page import Bins, Card, Code, Gallery, Matrix, Note, Page, Section, Table, render
from tl.studies.report.run_files import open_finished, read_found, read_judged
from tl.studies.report.run_page import build_run_page, write_run_report
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tags(HTMLParser):
    """All tags with their attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", ["finished_run", "spot_run"])
def test_report__needs_nothing_from_elsewhere(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Run = request.getfixturevalue(name)
    path = write_run_report(run, tmp_path / "r.html")
    parsed = Tags(path.read_text(encoding="utf-8"))
    fetched = [
        value
        for _, attributes in parsed.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href") and value and not value.startswith(("data:", "#"))
    ]
    assert fetched == []
    assert all(attributes.get("alt") for tag, attributes in parsed.tags if tag == "img")
    assert path.stat().st_size < 1_000_000


def test_report__of_classes(finished_run: Run) -> None:
    page = build_run_page(open_finished(finished_run))
    metrics = json.loads((finished_run.folder / "metrics.json").read_text(encoding="utf-8"))["val"]
    assert dict(page.figures)["top-1 accuracy (95%)"].startswith(f"{metrics['top1_accuracy']:.1%}")
    titles = [section.title for section in page.sections]
    assert titles[:3] == ["Confusion", "Classes", "Uncertainty"]
    assert {"Confidence", "Curves", "Data", "Repeat"} <= set(titles)
    (first, *_) = page.sections[2].blocks
    assert isinstance(first, Note)
    assert f"only {metrics['n']} images" in first.text
    assert f"between {metrics['ci_low']:.0%} and {metrics['ci_high']:.0%} (95% interval)" in first.text
    assert "the validation split, which also selected the epoch" in page.subtitle
    right = sum(metrics["confusion"][i][i] for i in range(3))
    assert f"right for {right} of {metrics['n']} validation images" in page.headline
    wrong = [card for card in page.strip if not card.is_right]
    assert len(wrong) == min(4, metrics["n"] - right)
    (matrix,) = [block for section in page.sections for block in section.blocks if isinstance(block, Matrix)]
    assert matrix.counts == metrics["confusion"]
    shown = {place: len(cards) for place, cards in matrix.cards.items()}
    counted = {(i, j): n for i, row in enumerate(matrix.counts) for j, n in enumerate(row) if n}
    assert shown == {place: min(n, 3 if place[0] == place[1] else 12) for place, n in counted.items()}


def test_report__of_landmarks(spot_run: Run) -> None:
    page = build_run_page(open_finished(spot_run))
    assert [section.title for section in page.sections][:4] == ["Points", "Errors", "Worst images", "Curves"]
    found = read_found(open_finished(spot_run))
    metrics = json.loads((spot_run.folder / "metrics.json").read_text(encoding="utf-8"))["val"]
    errors = [error for each in found for error in each.errors.tolist() if error == error]
    assert sum(errors) / len(errors) == pytest.approx(metrics["error_px"], rel=1e-6)


def test_report__repeats_the_run(finished_run: Run) -> None:
    (code,) = [b for s in build_run_page(open_finished(finished_run)).sections for b in s.blocks if isinstance(b, Code)]
    words = shlex.split(code.text)
    assert words[:2] == ["tl", "train"]
    assert words[words.index("--epochs") + 1] == "4"
    assert words[words.index("--backbone") + 1] == "smallcnn"


def test_report__images_that_are_gone(finished_run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder, tmp_path / "deep" / "moved")  # so that no path leads to an image
    path = write_run_report(Run(tmp_path / "deep" / "moved"))
    assert "image no longer available" in path.read_text(encoding="utf-8")


def test_read_judged__a_prediction_file_that_does_not_fit(finished_run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder, tmp_path / "run")
    path = tmp_path / "run" / "predictions_val.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(RunError, match="rows for"):
        read_judged(open_finished(Run(tmp_path / "run")))


def test_report__of_an_unfinished_run(tmp_path: Path, run_tl: RunTl) -> None:
    done = run_tl("report", tmp_path)
    assert done.code == 1
    assert "not a finished run; an interrupted one can be resumed" in done.err


def test_report__with_the_passport_of_its_model_alone(
    finished_run: Run, spot_run: Run, tmp_path: Path, run_tl: RunTl
) -> None:
    for run, name in ((finished_run, "own.onnx"), (spot_run, "other.onnx")):
        assert run_tl("export", run.folder, "-o", tmp_path / name).code == 0
    done = run_tl("report", finished_run.folder, "--model", tmp_path / "own.onnx", "--out", tmp_path / "r.html")
    assert done.code == 0
    assert "Model file" in (tmp_path / "r.html").read_text(encoding="utf-8")
    wrong = run_tl("report", finished_run.folder, "--model", tmp_path / "other.onnx")
    assert (wrong.code, "was not exported from" in wrong.err) == (1, True)


def test_report__by_the_command_line(finished_run: Run, tmp_path: Path, run_tl: RunTl) -> None:
    done = run_tl("report", finished_run.folder, "--out", tmp_path / "r.html")
    assert done.code == 0
    assert (tmp_path / "r.html").is_file()


def test_render__escapes_what_comes_from_outside() -> None:
    evil = "<script>alert(1)</script>"
    text = render(Page(evil, evil, [(evil, evil)], [Section("A", [Note(evil), Table((evil,), [(evil,)])])]))
    assert evil not in text


# --- in a browser

_PROBE = """
<script>
const said = [];
addEventListener("error", (event) => said.push(event.message));
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
  const column = (i) => rows().map((row) => row.cells[i].textContent);
  const heads = document.querySelectorAll("table.sortable th button");
  const found = {before: column(1)};
  heads[1].click(); found.rising = column(1);
  heads[1].click(); found.falling = column(1);
  const cells = [...document.querySelectorAll(".cell")];
  const open = () => cells.filter((cell) => !cell.hidden).map((cell) => cell.dataset.cell);
  const buttons = document.querySelectorAll(".matrix td button");
  found.closed = open(); buttons[0].click(); found.first = open(); buttons[1].click(); found.second = open();
  buttons[1].click(); found.again = open();
  const bright = () => [...document.querySelectorAll("main > section > .blocks > div > .gallery > .card:not(.dim)")]
    .map((card) => card.dataset.image);
  const bars = document.querySelectorAll(".bins button");
  bars[0].click(); found.unsure = bright(); bars[1].click(); found.sure = bright();
  bars[1].click(); found.all = bright();
  document.querySelector(".confusions button").click(); found.confused = [open(), bright()];
  found.errors = said;
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_page__works_in_a_browser(tmp_path: Path) -> None:
    rows = [("a", 10), ("b", 9.5), ("c", 200), ("d", None)]
    card = Card(None, ["x"])
    counts = [[3, 1, 0], [0, 2, 0], [0, 0, 1]]
    matrix = Matrix(("ant", "bee", "cat"), counts, {(0, 0): [card], (0, 1): [card], (1, 1): [card]})
    answers = [("low", "0-1", 0.6), ("edge", "0-0", 0.9), ("whole", "1-1", 1.0)]
    cards = Gallery([Card(None, [name], cell=cell, confidence=sure) for name, cell, sure in answers])
    blocks = [Table(("name", "size"), rows), matrix, Bins((0.5, 0.9, 1.0), [0, 2], [1, 0]), cards]
    text = render(Page("p", "s", [], [Section("T", blocks)]))
    (tmp_path / "p.html").write_text(text.replace("<head>", f"<head>{_PROBE}"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", (tmp_path / "p.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(re.search(r'data-found="([^"]*)"', done.stdout)[1].replace("&quot;", '"'))
    assert found["errors"] == []
    assert found["before"] == ["10", "9.5", "200", "-"]
    assert found["rising"] == ["9.5", "10", "200", "-"]
    assert found["falling"] == ["200", "10", "9.5", "-"]
    assert (found["closed"], found["first"], found["second"], found["again"]) == ([], ["0-0"], ["0-1"], [])
    assert (found["unsure"], found["sure"]) == (["low"], ["edge", "whole"])
    assert found["all"] == ["low", "edge", "whole"]
    assert found["confused"] == [["0-1"], ["low"]]


def test_neighbors_among__of_the_same_color(finished_run: Run, photos: Path, tmp_path: Path, fresh_cache: Path) -> None:
    config = make_config(photos, tmp_path / "r", method="features", weights=str(finished_run.folder), head="linear")
    run = train(config, Silent()).run
    finished = open_finished(run)
    embeddings = open_embeddings(finished)
    assert embeddings is not None
    find = neighbors_among(embeddings)
    for image in run.images("val"):
        nearest = find(image.path)
        assert [each.label for each in nearest] == [image.label] * 3
        assert 1.000001 > nearest[0].likeness >= nearest[2].likeness > 0.9
        assert {each.path for each in nearest} <= set(finished.paths("train"))
    assert find("/nowhere.png") == []
    shutil.rmtree(fresh_cache)
    assert open_embeddings(open_finished(run)) is None


def test_open_embeddings__of_a_run_from_scratch(finished_run: Run) -> None:
    assert open_embeddings(open_finished(finished_run)) is None


@pytest.mark.parametrize("has_val", [True, False])
@pytest.mark.parametrize("name", ["finished_run", "spot_run"])
def test_report__of_test_images(name: str, has_val: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The score of the test split is not shown as that of the validation split."""
    run = Run(shutil.copytree(request.getfixturevalue(name).folder, tmp_path / "run"))
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["test"] = metrics["val"]
    if not has_val:
        del metrics["val"]
    (run.folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    for file, old, new in (("manifest.csv", ",val,", ",test,"), ("predictions_val.csv", "", "")):
        text = (run.folder / file).read_text(encoding="utf-8").replace(old, new)
        (run.folder / file.replace("_val", "_test")).write_text(text, encoding="utf-8")
    figures = dict(build_run_page(open_finished(run)).figures)
    assert ("on validation" in figures) == has_val


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("red", "spider", "label 'spider' is not among the classes of the run: blue, green, red"),
        ("p:red", "p:spider", "has no column 'p:red'"),
    ],
)
def test_report__predictions_changed_by_hand(
    finished_run: Run, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    run = Run(shutil.copytree(finished_run.folder, tmp_path / "run"))
    path = run.folder / "predictions_val.csv"
    path.write_text(re.sub(rf"(?<=,){re.escape(old)}(?=,|$)", new, path.read_text(), flags=re.MULTILINE))
    with pytest.raises(RunError, match=re.escape(f"its predictions were changed after training ({reason})")):
        write_run_report(run, tmp_path / "r.html")
