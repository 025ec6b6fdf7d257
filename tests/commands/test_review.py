"""`tl review` without a page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.annotation.review_data import make_photos, spoil
from tests.annotation.test_review import decide, review_of
from tests.commands.conftest import RunTl
from tests.docs.stage import write_weights
from tests.models import make_model

COLUMNS = ["path", "kind", "score", "label", "suggested", "other", "reason"]
QUICK = ("--backbone", "smallcnn", "--threads", 1, "--device", "cpu")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos with a wrong label and a copy; the current folder is the one above."""
    write_weights(tmp_path / "weights")
    monkeypatch.setenv("TL_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    return spoil(make_photos(tmp_path / "photos", 12))


def test_review__prints_the_problems(run_tl: RunTl, data: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    done = run_tl("review", data, "--no-page", *QUICK)
    assert done.code == 0, done.err
    rows = done.rows()
    assert list(rows[0]) == COLUMNS
    found = {(row["kind"], row["path"], row["suggested"], row["other"]) for row in rows}
    assert ("label", "ant/wrong.png", "bee", "") in found
    assert ("duplicate", "bee/copy.png", "moth", "moth/00.png") in found
    assert "37 images are doubtful: wrong labels" in done.err
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before
    assert sorted(path.name for path in data.parent.iterdir()) == ["photos", "weights"]


def test_review__kinds_and_json(run_tl: RunTl, data: Path) -> None:
    done = run_tl("review", data, "--no-page", "--json", "--kinds", "label", *QUICK)
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert {row["kind"] for row in rows} == {"label"}
    assert list(rows[0]) == COLUMNS
    assert rows[0]["score"] > 0.5


def test_review__unreadable_images_are_rows_and_exit_code_3(run_tl: RunTl, data: Path) -> None:
    (data / "ant/cut.png").write_bytes((data / "ant/00.png").read_bytes()[:200])
    done = run_tl("review", data, "--no-page", "-o", "problems.csv", "--kinds", "duplicate", *QUICK)
    assert done.code == 3, done.err
    assert done.out == ""
    last = Path("problems.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith("ant/cut.png,unreadable,1.0,ant,,,")
    again = run_tl("review", data, "--no-page", "-o", "problems.csv", *QUICK)
    assert again.code == 1
    assert "problems.csv: exists" in again.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kinds", "label,typo"), "'typo' is not one of label, duplicate"),
        (("--kinds", ","), "names none of label"),
        (("--no-page", "--port", "1"), "--port: without a page there is nothing to serve"),
        (("--model", "a.onnx", "--ensemble", "b.onnx", "c.onnx"), "give either --model"),
        (("-o", "labels.csv"), "is read by this command"),
        (("-o", "mine.csv"), "mine.csv: exists"),
        (("-o", "mine.csv/reviewed.csv"), "cannot be written"),
    ],
)
def test_review__refuses(run_tl: RunTl, data: Path, words: tuple[str, ...], told: str) -> None:
    (data.parent / "mine.csv").write_text("path\n", encoding="utf-8")
    (data.parent / "labels.csv").write_text("path,label\nphotos/ant/00.png,ant\nphotos/bee/00.png,bee\n")
    done = run_tl(
        "review", data.parent / "labels.csv", "--no-browser" if "--no-page" not in words else "--json", *words
    )
    assert (done.code, told in done.err) == (1, True), done.err
    assert (data.parent / "mine.csv").read_text(encoding="utf-8") == "path\n"


@pytest.mark.parametrize("words", [("gone",), ("photos", "--backbone", "gone")])
def test_review__overwrite_sets_nothing_aside_if_no_page_is_shown(
    run_tl: RunTl, data: Path, words: tuple[str, ...]
) -> None:
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
    before = {path.name: path.read_bytes() for path in data.parent.glob("reviewed*")}
    done = run_tl("review", *words, "--overwrite", "--no-browser")
    assert (done.code, "gone" in done.err) == (1, True), done.err
    assert {path.name: path.read_bytes() for path in data.parent.glob("reviewed*")} == before


def test_review__one_model_is_no_ensemble(run_tl: RunTl, data: Path) -> None:
    model = make_model(data.parent / "color.onnx")
    done = run_tl("review", data, "--no-page", "--model", model, *QUICK)
    assert done.code == 1
    assert "two or more" in done.err


def test_review__members_that_disagree(run_tl: RunTl, data: Path) -> None:
    names = ("ant", "bee", "moth")
    models = [make_model(data.parent / f"{n}.onnx", tuple(order)) for n, order in enumerate((names, names[::-1]))]
    done = run_tl("review", data, "--no-page", "--kinds", "disagreement", "--ensemble", *models, *QUICK)
    assert done.code == 0, done.err
    assert {row["kind"] for row in done.rows()} == {"disagreement"}
