"""`tl label` as a command: its faults, and a few kills; `tests/attack` has many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.annotation.photos import make_embedding_model, make_photos
from tests.attack.test_label_kills import kill_often
from tests.commands.conftest import RunTl
from tests.models import make_model


def test_label__killed_three_times(tmp_path: Path) -> None:
    kill_often(tmp_path, 3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gone"], "gone: does not exist: expected a folder of photos"),
        (["s3://bucket/photos"], "s3://bucket/photos: is on a server: copy the photos"),
        (["photos", "-o", "labels.txt"], "labels are written as CSV"),
        (["photos", "--model", "plain.onnx"], "plain.onnx: has no output 'embedding'"),
        (["photos", "--model", "gone.onnx"], "gone.onnx"),
        (["photos", "--model", "good.onnx", "--backbone", "resnet18"], "give either --model or --backbone"),
        (["photos", "--classes", "a,A"], "there is a class 'a' already"),
        (["photos", "--import", "gone.csv"], "gone.csv: no such folder or CSV file"),
    ],
)
def test_label__faults_name_the_cure(
    run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", 3)
    make_model(tmp_path / "plain.onnx")
    make_embedding_model(tmp_path / "good.onnx")
    done = run_tl("label", *words, "--no-browser")
    assert done.code == 1
    assert told in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.onnx", "photos", "plain.onnx"]


def test_label__an_output_that_is_of_no_session(run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", 3)
    (tmp_path / "labels.csv").write_text("path,label\n")
    done = run_tl("label", "photos", "--model", make_embedding_model(tmp_path / "good.onnx"), "--no-browser")
    assert done.code == 1
    assert "exists, without the journal of a session" in done.err
    assert "hint: --import labels.csv or --overwrite" in done.err
    assert (tmp_path / "labels.csv").read_text() == "path,label\n"
