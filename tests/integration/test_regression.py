"""Numbers from training to prediction: a CSV, a run, a model file, an ensemble, intervals, an evaluation, a report."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.runtime.distributed.agreement import assert_worker_agrees
from tests.trainer.make import make_png
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.runtime import Regression, load_regression
from tl.runtime.session import Session
from tl.trainer.config import TrainConfig
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

COUNT = 60


def draw_square(side: int, seed: int) -> np.ndarray:
    """A bright square of a side on noise, uint8 (64, 64, 3)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (64, 64, 3))
    top, left = rng.integers(0, 64 - side, 2)
    image[top : top + side, left : left + side] += 180
    return image.astype(np.uint8)


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of squares with their area, and their side in another unit, which some rows lack; read only."""
    folder = tmp_path_factory.mktemp("squares")
    sides = np.random.default_rng(0).permutation(np.linspace(6, 50, COUNT)).astype(int).tolist()
    rows = []
    for i, side in enumerate(sides):
        make_png(folder / f"{i}.png", draw_square(side, i))
        split = "test" if i >= 45 else "train"
        rows.append([f"{i}.png", split, side**2, "" if i % 7 == 0 else 1000 + side / 10])
    with (folder / "squares.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "split", "area", "side"], *rows])
    return folder / "squares.csv"


def number_config(data: Path, out: Path, **changes: object) -> TrainConfig:
    values = {"target": ("area", "side"), "unit": ("px2", "mm"), "image_size": 64, "threads": 1, "device": "cpu"}
    return TrainConfig(data=str(data), out=str(out), **values | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def ridge_run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of ridge regression; read only."""
    return train(number_config(squares, tmp_path_factory.mktemp("runs") / "ridge", test=True), Silent()).run


@pytest.fixture(scope="session")
def ridge_file(ridge_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model file; read only."""
    return export_run(ridge_run, tmp_path_factory.mktemp("files") / "ridge.onnx", Silent()).path


def test_train__numbers_far_better_than_their_mean(ridge_run: Run) -> None:
    metrics = json.loads((ridge_run.folder / "metrics.json").read_text())
    for split in ("val", "test"):
        for scores in metrics[split]["per_target"].values():
            assert scores["mae"] < 0.65 * scores["baseline_mae"]
    assert metrics["val"]["n"] == 45  # out of fold: training and validation images
    rows = ridge_run.rows("predictions_val.csv")
    assert list(rows[0]) == ["path", "true:area", "true:side", "area", "side"]
    assert sum(row["true:side"] == "" for row in rows) == 7
    assert ridge_run.load_card().target_names == ("area", "side")


def test_export__the_file_answers_in_the_units_of_the_data(ridge_run: Run, ridge_file: Path, squares: Path) -> None:
    facts = Session(ridge_file).contract.regression
    assert (facts.target_names, facts.units) == (("area", "side"), ("px2", "mm"))
    assert [len(scores) for scores in facts.scores] == [45, 38]
    trained = [row for row in ridge_run.rows("manifest.csv") if row["split"] == "train"]
    areas = [float(row["label"].split(";")[0]) for row in trained]
    assert facts.std[0] == pytest.approx(np.std(areas))
    fitted = {row["path"]: row for row in ridge_run.rows("predictions_fitted.csv")}
    with load_regression(ridge_file, device="cpu", threads=1) as predictor:
        for name, row in fitted.items():
            found = predictor.predict(squares.parent / Path(name).name)
            # 1e-4 of a standard deviation
            assert found.values == pytest.approx([float(row["area"]), float(row["side"])], abs=1e-4 * facts.std[0])


def test_worker__gives_the_same_numbers(ridge_file: Path, squares: Path) -> None:
    images = [str(squares.parent / f"{i}.png") for i in range(5)]
    with load_regression(ridge_file, device="cpu", threads=1, coverage=0.8) as predictor:
        assert_worker_agrees(predictor, images)
    with load_regression([ridge_file, ridge_file], device="cpu", threads=1, merge="median") as predictor:
        assert_worker_agrees(predictor, images)


def test_load_regression__intervals_hold_what_was_never_fitted(ridge_file: Path, squares: Path) -> None:
    sides = {f"{i}.png": side for i, side in enumerate(np.random.default_rng(5).integers(8, 48, 80).tolist())}
    inside = {0.5: 0, 0.9: 0}
    for coverage in inside:
        with load_regression(ridge_file, device="cpu", threads=1, coverage=coverage) as predictor:
            images = [draw_square(side, 1000 + i) for i, side in enumerate(sides.values())]
            for side, found in zip(sides.values(), predictor.predict_batch(images), strict=True):
                assert isinstance(found, Regression)
                inside[coverage] += found.low[0] <= side**2 <= found.high[0]
    assert inside[0.9] / 80 >= 0.8  # two standard deviations of 80 draws and 45 scores below 0.9
    assert 0.2 <= inside[0.5] / 80 <= 0.8


def test_commands__from_a_csv_to_rows(run_tl: RunTl, squares: Path, ridge_file: Path, tmp_path: Path) -> None:
    options = ["--image-size", "64", "--threads", "1"]
    words = ["train", squares, "--target", "area", "--head", "mlp", "--epochs", "20", "--out", tmp_path / "mlp"]
    done = run_tl(*words, *options)
    assert done.code == 0, done.err
    assert "mean absolute error" in done.err
    page = (tmp_path / "mlp" / "report.html").read_text(encoding="utf-8")
    assert "predicted against true" in page
    done = run_tl("export", tmp_path / "mlp", "-o", tmp_path / "mlp.onnx", "--golden", "synthetic")
    assert done.code == 0, done.err
    assert "standard deviations" in done.err
    assert "1 numbers" in done.err
    assert run_tl("verify", tmp_path / "mlp.onnx").code == 0
    done = run_tl("predict", squares.parent, "--model", ridge_file, "--coverage", "0.8", "-o", tmp_path / "out.csv")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    columns = ["path", "area", "area_low", "area_high", "side", "side_low", "side_high", "error"]
    assert (list(rows[0]), len(rows)) == (columns, COUNT)
    assert all(float(row["area_low"]) < float(row["area"]) < float(row["area_high"]) for row in rows)
    done = run_tl("evaluate", squares, "--split", "test", "--model", ridge_file)
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert (row["n"], float(row["coverage_90"]) > 0.7) == ("15", True)


def test_commands__ensembles_give_mean_spread_and_members(
    run_tl: RunTl, squares: Path, ridge_file: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.onnx"
    second.write_bytes(ridge_file.read_bytes())
    out = tmp_path / "out.jsonl"
    done = run_tl("predict", squares.parent / "0.png", "--ensemble", ridge_file, second, "--merge", "median", "-o", out)
    assert done.code == 0, done.err
    targets = json.loads(out.read_text())["targets"]
    assert targets["area"]["spread"] == 0
    assert targets["area"]["members"] == [targets["area"]["value"]] * 2
    done = run_tl("evaluate", squares, "--split", "test", "--ensemble", ridge_file, second)
    assert [row["merging"] for row in csv.DictReader(io.StringIO(done.out))] == ["", "", "mean", "median"]
    done = run_tl("predict", squares.parent, "--ensemble", ridge_file, second, "--coverage", "0.9")
    assert "an ensemble has no intervals" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "DATA", "--model", "M", "--vote", "hard"], "applies only to classifiers"),
        (["predict", "DATA", "--model", "M", "--draw", "d"], "applies only to landmark models"),
        (["predict", "DATA", "--model", "M", "--coverage", "0.99"], "requires 99 held-out images"),
        (["predict", "DATA", "--model", "M", "--coverage", "2"], "must be between 0 and 1"),
        (["evaluate", "DATA/squares.csv", "--model", "M", "--label-column", "split"], "expected 2 numbers joined by"),
        (["merge", "M", "M", "-o", "x.onnx"], "cannot be merged"),
        (["refit", "M", "DATA", "-o", "x.onnx"], "classif"),
        (["export", "RUN", "-o", "x.onnx", "--cam"], "only for classifiers"),
        (["export", "RUN", "-o", "x.onnx", "--precision", "fp16"], "only to classifiers"),
    ],
)
def test_commands__what_numbers_do_not_have(
    run_tl: RunTl, squares: Path, ridge_run: Run, ridge_file: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    names = {
        "DATA": str(squares.parent),
        "M": str(ridge_file),
        "RUN": str(ridge_run.folder),
        "DATA/squares.csv": squares,
    }
    done = run_tl(*(names.get(word, str(tmp_path / word) if word.endswith("onnx") else word) for word in words))
    assert (done.code, message in done.err) == (1, True), done.err


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        ("about 7", [], "labels.csv row 3: column 'age' must be a number, found 'about 7'"),
        ("", [], "labels.csv row 3: has no number in age: fill it in, or remove the row"),
        ("inf", [], "must be a number, found 'inf'"),
        ("5", ["--target", "weight"], "has no column 'weight'"),
        ("5", ["--unit", "a", "--unit", "b"], "unit requires one unit for each target"),
        ("5", ["--mixup", "0.2"], "mixup: only for classification"),
        ("5", ["--head", "svm"], "head svm does not predict numbers"),
        ("5", [], "'age' has 1 different numbers in the training images"),
    ],
)
def test_train__bad_numbers(run_tl: RunTl, tmp_path: Path, cell: str, options: list[str], message: str) -> None:
    for name in "abcdef":
        make_png(tmp_path / f"{name}.png", draw_square(10, ord(name)))
    rows = [("path", "age"), ("a.png", "5"), ("b.png", cell), *((f"{name}.png", "5") for name in "cdef")]
    (tmp_path / "labels.csv").write_text("".join(f"{a},{b}\n" for a, b in rows))
    target = [] if "--target" in options else ["--target", "age"]
    words = ["train", tmp_path / "labels.csv", "--task", "regression", *target, *options]
    done = run_tl(*words, "--out", tmp_path / "run")
    assert (done.code, message in done.err) == (1, True), done.err


def test_sweep__ranks_by_error_and_judges_an_ensemble(run_tl: RunTl, squares: Path, tmp_path: Path) -> None:
    base = f"  data: {squares}\n  target: [area]\n  image_size: 64\n  device: cpu\n  threads: 1\n"
    variants = "  ridge: {}\n  mlp: {head: mlp, epochs: 2}\n"
    (tmp_path / "study.yaml").write_text(f"base:\n{base}variants:\n{variants}ensemble: true\n")
    done = run_tl("sweep", tmp_path / "study.yaml", "--out", tmp_path / "out", "--test")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "leaderboard.csv").read_text())))
    assert [row["variant"] for row in rows] == ["ridge", "mlp"]
    assert float(rows[0]["test_mae"]) < float(rows[1]["test_mae"])
    together = list(csv.DictReader(io.StringIO((tmp_path / "out" / "ensemble.csv").read_text())))
    assert [row["merging"] for row in together] == ["", "", "mean", "median"]
    assert (tmp_path / "out" / "report.html").exists()
