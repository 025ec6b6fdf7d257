"""Scores by site, from training to the evaluation page, and a warning of batches unlike the training images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.commands.conftest import trunk_weights as trunk_weights
from tests.trainer.make import make_noise, make_png

FLAGS = ("--method", "features", "--backbone", "smallcnn", "--image-size", "32", "--threads", "1", "--no-report")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two classes by color at three sites; at the third, the colors are dim."""
    rows = []
    for i in range(60):
        label, site = ("red", "blue")[i % 2], ("north", "south", "cave")[i // 2 % 3]
        strength = 25 if site == "cave" else 170
        rgb = (128 + strength // 2, 100, 100) if label == "red" else (100, 100, 128 + strength // 2)
        make_png(tmp_path / f"{i}.png", make_noise(i, rgb))
        rows.append((f"{i}.png", label, site))
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "Site"), *rows])
    return tmp_path / "labels.csv"


def test_train__scores_each_site_and_leaves_each_out(
    run_tl: RunTl, manifest: Path, trunk_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = run_tl("train", manifest, *FLAGS, "--weights", trunk_weights, "--out", run)
    assert done.code == 0, done.err
    assert "labels.csv: reads column 'Site' as site" in done.err
    assert "lowest of 3 sites: '" in done.err
    assert "sites left out of training: top-1 accuracy" in done.err
    with (run / "sites.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["site"]: row for row in csv.DictReader(stream)}
    assert {site: row["n"] for site, row in rows.items()} == {"north": "20", "south": "20", "cave": "20"}
    assert all(0 <= float(row["left_out_top1_accuracy"]) <= 1 for row in rows.values())
    assert float(rows["north"]["left_out_top1_accuracy"]) == 1
    report = run_tl("report", run)
    assert report.code == 0, report.err
    assert "accuracy if left out of training" in (run / "report.html").read_text(encoding="utf-8")

    model = tmp_path / "m.onnx"
    assert run_tl("export", run, "-o", model).code == 0
    by_site = run_tl("evaluate", manifest, "--model", model, "--by-site", "--split", "all").rows()
    assert sorted(row["site"] for row in by_site) == ["cave", "north", "south"]
    assert [float(row["top1_accuracy"]) for row in by_site] == sorted(float(row["top1_accuracy"]) for row in by_site)
    whole = run_tl("evaluate", run / "manifest.csv", "--model", model, "--report", tmp_path / "page.html")
    assert "lowest site: '" in whole.err
    assert "<h2>Sites" in (tmp_path / "page.html").read_text(encoding="utf-8")

    for i in range(20):  # another world
        make_png(tmp_path / "new" / f"{i}.png", np.random.default_rng(i).integers(0, 256, (20, 20, 3)).astype(np.uint8))
    strange = run_tl("predict", tmp_path / "new", "--model", model, "-o", tmp_path / "new.csv")
    assert "images (100%) are unlike the training images" in strange.err
    usual = run_tl("predict", *sorted(tmp_path.glob("*.png")), "--model", model, "-o", tmp_path / "old.csv")
    assert "unlike the training images" not in usual.err


def test_evaluate__by_site_needs_sites(run_tl: RunTl, tmp_path: Path, color_model: Path) -> None:
    for i, name in enumerate(("red", "green")):
        make_png(tmp_path / "d" / name / "0.png", make_noise(i))
    done = run_tl("evaluate", tmp_path / "d", "--model", color_model, "--by-site")
    assert done.code == 1
    assert "scores by site require a CSV with a column site" in done.err
    words = ["--by-site", "--sequence", "exif:30s"]
    refused = run_tl("evaluate", tmp_path / "d", "--model", color_model, *words)
    assert "--sequence: cannot be combined with --by-site" in refused.err
