from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.conftest import RunTl
from tests.trainer.make import read_rows
from tl.commands.demo import CLASSES, UNKNOWN, summarize, write_patches


def test_write_patches__counts_and_images(tmp_path: Path) -> None:
    write_patches(tmp_path)
    counts = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "photos" / split).iterdir()}
        for split in ("train", "test")
    }
    assert counts == {"train": dict.fromkeys(CLASSES, 8), "test": dict.fromkeys(CLASSES, 32)}
    assert len(list((tmp_path / "unknown").iterdir())) == 5 * len(UNKNOWN)
    files = list(tmp_path.rglob("*.png"))
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in files}) == len(files)
    for path in files:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((64, 64), "L")
            assert np.asarray(image).std() > 1  # not a patch of nothing


def test_summarize__says_whether_voting_helps() -> None:
    rows = [
        {"model": "default", "voting": "", "top1_accuracy": "0.97"},  # no member of the ensemble
        {"model": "a", "voting": "", "top1_accuracy": "0.9"},
        {"model": "b", "voting": "", "top1_accuracy": "0.8"},
        {"model": "ensemble", "voting": "soft", "top1_accuracy": "0.95"},
        {"model": "oracle", "voting": "", "top1_accuracy": "1"},
    ]
    lines = summarize(rows, [{"label": "?"}, {"label": "x"}])
    wanted = ["a          0.900", "b          0.800", "default    0.970"]
    assert lines[2:6] == [*wanted, "ensemble   0.950   of the first three; more than a alone"]
    rows[3]["top1_accuracy"] = "0.9"
    lines = summarize(rows, [{"label": "?"}, {"label": "x"}])
    assert "ensemble   0.900   of the first three; no more than a alone" in lines
    assert lines[-1].startswith("1 of 2 images of no class were rejected")


def test_demo__never_writes_into_an_existing_folder(run_tl: RunTl, tmp_path: Path) -> None:
    done = run_tl("demo", tmp_path)
    assert done.code == 1
    assert "already exists" in done.err
    assert "--overwrite" in done.err
    assert list(tmp_path.iterdir()) == []


def test_demo__replaces_what_an_earlier_demo_made(
    run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[object, ...]] = []

    def run(*words: object) -> str:
        steps.append(words)
        if words[0] == "train":
            Path(str(words[-1])).mkdir(parents=True)  # fails if an earlier run is still there
        rows = "model,voting,top1_accuracy\nscratch,,1\nfeatures,,1\nfinetune,,1\ndefault,,1\nensemble,soft,1\n"
        return rows if words[0] == "evaluate" else "label\n"

    monkeypatch.setattr("tl.commands.demo._run", run)
    folder = tmp_path / "demo"
    for _ in range(2):
        assert run_tl("demo", folder).code == 0
    assert len([words for words in steps if words[0] == "export" and words[-1] == "--overwrite"]) == 8
    theirs = tmp_path / "theirs" / "runs" / "scratch"
    theirs.mkdir(parents=True)
    refused = run_tl("demo", theirs.parents[1], "--overwrite")
    assert (refused.code, f"{theirs}: exists and was not made by tl demo" in refused.err) == (1, True)
    theirs.rmdir()
    (theirs.parents[1] / "notes.txt").write_text("mine")
    assert run_tl("demo", theirs.parents[1], "--overwrite").code == 0
    assert (theirs.parents[1] / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_demo__transfer_helps_and_unknown_images_are_rejected(
    run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TL_WEIGHTS_DIR", raising=False)
    done = run_tl("demo", tmp_path / "demo")
    assert done.code == 0, done.err
    scores = {name: float(value) for name, value, *_ in (line.split() for line in done.out.splitlines()[2:6])}
    assert scores["features"] > 0.95
    assert scores["features"] > scores["scratch"] + 0.05
    assert scores["finetune"] > scores["scratch"]
    assert scores["default"] > scores["scratch"] + 0.05
    rows = read_rows(tmp_path / "demo" / "unknown.csv")
    assert any(row["label"] == "?" for row in rows)
    assert (tmp_path / "demo" / "runs" / "features" / "report.html").is_file()
