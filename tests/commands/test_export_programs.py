"""tl export --input any-size and --triton, and the commands that use such a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.conftest import RunTl
from tests.exporter.any_size.test_graph import photo
from tests.models import make_model
from tests.trainer.make import make_class_folders, train_here


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """A folder of images of three sizes."""
    folder = tmp_path / "sizes"
    folder.mkdir()
    for seed, hw in enumerate([(40, 60), (90, 50), (31, 17)]):
        Image.fromarray(photo(hw, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    return make_model(tmp_path / "colors.onnx")


def test_export__a_model_file_to_any_size_and_the_commands_that_use_it(
    run_tl: RunTl, tmp_path: Path, fixed: Path, sizes: Path
) -> None:
    made, repository = tmp_path / "any.onnx", tmp_path / "repository"
    words = ("--input", "any-size", "--images", sizes, "--triton", repository, "--json")
    done = run_tl("export", fixed, "-o", made, *words)
    assert done.code == 0, done.err
    assert "resizing in the graph, 3 images: pixels differ by" in done.err
    assert "labels agree on 100%" in done.err
    report = json.loads(done.out)["any_size"]
    assert (report["images"], report["top1_agreement"]) == (3, 1.0)
    assert (repository / "any" / "1" / "model.onnx").read_bytes() == made.read_bytes()

    assert run_tl("verify", made).code == 0
    shown = run_tl("inspect", made)
    assert "images uint8 (N, H, W, 3) RGB of any size; the graph resizes them to 8x8" in shown.out
    predicted = [run_tl("predict", sizes, "--model", model).rows() for model in (fixed, made)]
    assert [row["label"] for row in predicted[0]] == [row["label"] for row in predicted[1]]
    for left, right in zip(*predicted, strict=True):
        assert float(left["confidence"]) == pytest.approx(float(right["confidence"]), abs=5e-3)
    both = run_tl("predict", sizes, "--ensemble", fixed, made, "--batch-size", "8")
    assert [row["agreement"] for row in both.rows()] == ["1"] * 3
    bench = run_tl("bench", made, "--images", sizes, "--seconds", "0.1", "--threads", "2", "--json")
    assert bench.code == 0, bench.err
    rows = json.loads(bench.out)["rows"]
    assert {row["batch_size"] for row in rows if row["part"] == "network"} == {1}


def test_export__a_model_file_into_a_model_repository(run_tl: RunTl, tmp_path: Path, fixed: Path) -> None:
    done = run_tl("export", fixed, "--triton", tmp_path / "repository")
    assert done.code == 0, done.err
    assert f"{tmp_path / 'repository' / 'colors'}: model repository folder" in done.err
    assert (tmp_path / "repository" / "colors" / "config.pbtxt").is_file()
    assert not Path("model.onnx").exists()
    again = run_tl("export", fixed, "--triton", tmp_path / "repository")
    assert again.code == 1
    assert "exists: give another name, or replace it" in again.err
    assert run_tl("export", fixed, "--triton", tmp_path / "repository", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--input", "any"], 2, "fixed-size"),
        ([], 1, "is a model file already: give --input any-size or --triton DIR to convert it"),
        (["--input", "any-size"], 1, "requires --images DIR"),
        (["--input", "any-size", "--images", "sizes", "--precision", "fp16"], 1, "--precision: a model file is"),
        (["--triton", "repository", "--cam"], 1, "--cam: a model file is converted as it is"),
    ],
)
def test_export__refused_of_a_model_file(
    run_tl: RunTl, fixed: Path, sizes: Path, words: list[str], code: int, why: str, tmp_path: Path
) -> None:
    done = run_tl("export", fixed, "-o", tmp_path / "out.onnx", *[str(sizes) if w == "sizes" else w for w in words])
    assert done.code == code
    assert why in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
def test_export__a_run_to_any_size(run_tl: RunTl, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 10)
    train_here(photos, tmp_path / "run", epochs=2)
    for extra in ([], ["--golden", "synthetic", "--overwrite"]):
        done = run_tl("export", tmp_path / "run", "-o", tmp_path / "any.onnx", "--input", "any-size", *extra)
        assert done.code == 0, done.err
        assert "resizing in the graph, 6 images" in done.err
        assert run_tl("verify", tmp_path / "any.onnx").code == 0
    assert run_tl("predict", photos, "--model", tmp_path / "any.onnx", "-o", tmp_path / "out.csv").code == 0
