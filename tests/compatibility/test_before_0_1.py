"""Model files and run folders from the version before 0.1 still load, export, predict and resume.

`before-0.1` contains a classifier and a landmark model of smallcnn, cut after its second block, with their runs. Their
images are regenerated from the same numbers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import tl.runtime
from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.trainer.conftest import _torch_as_before as _torch_as_before
from tests.trainer.landmarks.make import make_spots
from tests.trainer.make import make_class_folders, make_config, read_rows
from tl.cli import present_names
from tl.exporter.export import export_run
from tl.exporter.merging.merge import merge
from tl.exporter.refitting.refit import refit
from tl.exporter.refitting.seen import RefitOptions
from tl.progress import Silent
from tl.runtime.model_file.contract import SCHEMA_VERSION
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

FOLDER = Path(__file__).parent / "before-0.1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old files beside the images they were trained on, in the current folder."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    make_class_folders(tmp_path / "photos", 6)
    make_spots(tmp_path / "spots")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_model_file__classes(old: Path) -> None:
    assert tl.runtime.run_selftest(old / "classes.onnx", device="cpu").samples == 3
    rows = {row["path"]: row for row in read_rows(old / "classes-run" / "predictions_val.csv")}
    with tl.runtime.load(old / "classes.onnx", device="cpu") as model:
        assert model.ensemble.contracts[0].schema_version == SCHEMA_VERSION
        for name, row in rows.items():
            result = model.predict(old / "photos" / name)
            assert result.label == row["label"]
            assert result.confidence == pytest.approx(float(row["confidence"]), abs=1e-4)  # sums differ between CPUs
            assert result.ood_score is not None


def test_model_file__its_output_has_the_present_name_in_tables(old: Path, run_tl: RunTl) -> None:
    done = run_tl("predict", "photos", "--model", "classes.onnx", "--reject-unknown", "--device", "cpu")
    assert done.code == 0, done.err
    assert all(float(row["ood_score"]) >= 0 for row in done.rows())


def test_model_file__merged_and_refitted(old: Path) -> None:
    model = old / "classes.onnx"
    refitted = refit(model, [old / "photos"], old / "new.onnx", Silent(), RefitOptions()).path
    merged = merge([model, refitted], old / "both.onnx", Silent()).path
    images = sorted(map(str, (old / "photos").rglob("*.png")))
    with tl.runtime.load([model, refitted], device="cpu") as apart, tl.runtime.load([merged], device="cpu") as together:
        for ours, theirs in zip(together.predict_batch(images), apart.predict_batch(images), strict=True):
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)


def test_model_file__landmarks(old: Path) -> None:
    assert tl.runtime.run_selftest(old / "landmarks.onnx", device="cpu").samples >= 2
    with tl.runtime.load_landmarks(old / "landmarks.onnx", device="cpu") as model:
        assert model.predict(old / "spots" / "images" / "0.png").keypoints_xy.shape == (3, 2)


@pytest.mark.parametrize("kind", ["classes", "landmarks"])
def test_run__is_exported(old: Path, kind: str) -> None:
    done = export_run(Run(old / f"{kind}-run"), old / "again.onnx", Silent())  # also compares with predictions_val.csv
    assert done.contract.parity.images >= 2


def test_run__is_a_start_for_another(old: Path) -> None:
    config = make_config(
        old / "photos", old / "next", method="features", weights=str(old / "classes-run"), trunk_until="block2"
    )
    assert train(config, Silent()).run.best_path.is_file()


@pytest.mark.parametrize("kind", ["classes", "landmarks"])
def test_run__goes_on(old: Path, kind: str) -> None:
    """Resume from `last.pt` for one additional epoch."""
    run = Run(old / f"{kind}-run")
    config = old / f"{kind}-run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("epochs: 2", "epochs: 3"), encoding="utf-8")
    train(run.load_config(), Silent(), resume=run)
    assert [row["epoch"] for row in read_rows(run.folder / "history.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("word", ["--normalise", "--head-start"])
def test_command_line__old_options(old: Path, run_tl: RunTl, word: str) -> None:
    value = {"--normalise": "dataset", "--head-start": "random"}[word]
    small = "--method scratch --backbone smallcnn --image-size 16 --epochs 1 --batch-size 4 --augment none --device cpu"
    done = run_tl("train", "photos", *small.split(), word, value, "--out", "run")
    assert done.code == 0, done.err
    assert f"{value}\n" in (old / "run" / "config.yaml").read_text(encoding="utf-8")


def test_command_line__old_command(run_tl: RunTl) -> None:
    assert "tl neighbors" in run_tl("neighbours", "--help").out


def test_present_names__nothing_after_two_dashes() -> None:
    words = ["neighbours", "--output=a", "--", "--output", "--", "--normalise"]
    assert present_names(words) == ["neighbors", "--out=a", "--", "--output", "--", "--normalise"]
