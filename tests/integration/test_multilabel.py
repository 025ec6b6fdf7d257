"""Several labels from training to prediction: a CSV, a run, a file, an ensemble, sets, an evaluation, a report."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.blobs import BLOBS, write_blobs
from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.runtime.distributed.agreement import assert_worker_agrees
from tests.trainer.make import StopsAt, timeless_file
from tl.errors import ConfigError, DataError, EnsembleError, RunInterrupted
from tl.exporter.export import export_run
from tl.exporter.export_source import ExtraOutputs
from tl.exporter.merging.merge import merge
from tl.progress import Silent
from tl.runtime import Failure, Multilabel, load, load_multilabel
from tl.runtime.output.columns import build_columns
from tl.runtime.session import Session
from tl.trainer.config import TrainConfig
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of blobs with a column for each color; read only."""
    return write_blobs(tmp_path_factory.mktemp("blobs"))


def label_config(data: Path, out: Path, **changes: object) -> TrainConfig:
    values = {"task": "multilabel", "target": BLOBS, "threads": 1, "device": "cpu"}
    return TrainConfig(data=str(data), out=str(out), **values | changes)  # type: ignore[arg-type]


def small(data: Path, out: Path, **changes: object) -> TrainConfig:
    own = {"method": "scratch", "backbone": "smallcnn", "image_size": 24, "augment": "flip", "lr": 0.003}
    return label_config(data, out, **own | {"epochs": 8, "batch_size": 16} | changes)


@pytest.fixture(scope="session")
def solved_run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of logistic regression on features of the installed backbone; read only."""
    config = label_config(blobs, tmp_path_factory.mktemp("runs") / "solved", test=True, image_size=64)
    return train(config, Silent()).run


@pytest.fixture(scope="session")
def solved_file(solved_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model file; read only."""
    return export_run(solved_run, tmp_path_factory.mktemp("files") / "solved.onnx", Silent()).path


@pytest.fixture(scope="session")
def stepped_run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small network trained from scratch; read only."""
    return train(small(blobs, tmp_path_factory.mktemp("runs") / "stepped"), Silent()).run


@pytest.fixture(scope="session")
def stepped_file(stepped_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model file; read only."""
    return export_run(stepped_run, tmp_path_factory.mktemp("files") / "stepped.onnx", Silent()).path


def test_train__scores_files_and_unknown_labels(solved_run: Run) -> None:
    metrics = json.loads((solved_run.folder / "metrics.json").read_text())
    assert metrics["val"]["n"] == 96  # out of fold: training and validation images
    assert metrics["test"]["n"] == 32
    assert metrics["test"]["map"] > 0.8  # half of the images have each label
    rows = solved_run.rows("predictions_val.csv")
    assert list(rows[0]) == ["path", "true_labels", "labels", *(f"p:{name}" for name in BLOBS)]
    assert any("?" in row["true_labels"] for row in rows)
    assert (solved_run.folder / "report.html").exists() is False  # made by the command
    assert set(metrics["thresholds"]) == set(BLOBS)


def test_export__the_graph_alone_gives_probabilities(solved_run: Run, solved_file: Path) -> None:
    session = Session(solved_file, device="cpu")
    contract = session.contract
    assert contract is not None
    assert contract.multilabel is not None
    assert (contract.task, contract.class_names) == ("multilabel", BLOBS)
    thresholds = json.loads((solved_run.folder / "metrics.json").read_text())["thresholds"]
    assert contract.multilabel.thresholds == pytest.approx([thresholds[name] for name in BLOBS], abs=1e-6)
    assert contract.multilabel.curve is not None
    assert contract.multilabel.curve.images == 84  # of 96; 12 have no label
    claimed = solved_run.val_predictions(BLOBS)
    with load_multilabel(solved_file) as model:
        found = model.predict_batch([key[0] for key in claimed])
    # The trainer's features were cached as float32.
    np.testing.assert_allclose([each.probabilities for each in found], list(claimed.values()), atol=1e-4)


def test_export__thresholds_for_a_precision(stepped_run: Run, tmp_path: Path) -> None:
    sure = export_run(stepped_run, tmp_path / "sure.onnx", Silent(), further=ExtraOutputs(min_precision=0.95))
    facts = sure.contract.multilabel
    assert facts is not None
    assert (facts.rule, facts.min_precision) == ("precision", 0.95)


def test_predict__sets_hold_more_labels_for_more_coverage(solved_file: Path, blobs: Path) -> None:
    paths = sorted(blobs.parent.glob("*.png"))[::5]
    sizes = []
    for coverage in (0.5, 0.9, 0.98):
        with load_multilabel(solved_file, coverage=coverage) as model:
            found = model.predict_batch(paths)
        sizes.append(sum(len(each.label_set or ()) for each in found))
    assert sizes[0] <= sizes[1] <= sizes[2]
    assert sizes[0] < sizes[2]
    with pytest.raises(EnsembleError, match=r"coverage 0\.99 requires 99 held-out images, but the file records 84"):
        load_multilabel(solved_file, coverage=0.99)
    with pytest.raises(EnsembleError, match="between 0 and 1"):
        load_multilabel(solved_file, coverage=1.0)


def test_worker__gives_the_same_labels(solved_file: Path, blobs: Path) -> None:
    images = sorted(blobs.parent.glob("*.png"))[:5]
    with load_multilabel(solved_file, device="cpu", threads=1, coverage=0.9) as predictor:
        assert_worker_agrees(predictor, images)
    with load_multilabel([solved_file, solved_file], device="cpu", threads=1, weights=[3, 1]) as predictor:
        assert_worker_agrees(predictor, images)


def test_predict__ensemble_averages_probabilities_and_thresholds(
    solved_file: Path, stepped_file: Path, blobs: Path
) -> None:
    paths = sorted(blobs.parent.glob("*.png"))[:6]
    alone: list[list[Multilabel]] = []
    for file in (solved_file, stepped_file):
        with load_multilabel(file) as model:
            alone.append(model.predict_batch(paths))
    with load_multilabel([solved_file, stepped_file], weights=[3, 1]) as model:
        together = model.predict_batch(paths)
    facts = [Session(file, device="cpu").contract.multilabel for file in (solved_file, stepped_file)]
    thresholds = np.average([each.thresholds for each in facts], axis=0, weights=[3, 1])
    for first, second, both in zip(*alone, together, strict=True):
        mean = 0.75 * first.probabilities + 0.25 * second.probabilities
        np.testing.assert_allclose(both.probabilities, mean, atol=1e-6)
        assert both.labels == tuple(name for name, p, t in zip(BLOBS, mean, thresholds, strict=True) if p >= t)
        assert both.votes == (first.labels, second.labels)
    with pytest.raises(EnsembleError, match="an ensemble has no sets"):
        load_multilabel([solved_file, stepped_file], coverage=0.9)


def test_load__other_tasks_are_refused(solved_file: Path, color_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EnsembleError, match="not a classification model"):
        load(solved_file)
    with pytest.raises(EnsembleError, match="does not give images several labels"):
        load_multilabel(color_model)
    with pytest.raises(EnsembleError, match="models for multilabel cannot be merged"):
        merge([solved_file, solved_file], tmp_path / "m.onnx", Silent())


def test_commands__from_table_to_table(solved_run: Run, solved_file: Path, blobs: Path, run_tl: RunTl) -> None:
    done = run_tl("predict", blobs.parent / "7-13.png", "-m", solved_file, "--coverage", "0.9")
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert list(row) == ["path", "labels", *(f"p:{name}" for name in BLOBS), "set", "error"]
    table = run_tl("evaluate", blobs, "--split", "test", "-m", solved_file)
    (scores,) = csv.DictReader(io.StringIO(table.out))
    metrics = json.loads((solved_run.folder / "metrics.json").read_text())["test"]
    assert float(scores["map"]) == pytest.approx(metrics["map"], abs=1e-4)  # four decimals
    again = run_tl("evaluate", solved_run.folder / "manifest.csv", "--split", "test", "-m", solved_file)
    assert again.out == table.out
    refused = run_tl("evaluate", blobs, "-m", solved_file, "--by-site")
    assert refused.code == 1
    assert "this model gives several" in refused.err
    assert "several labels" in run_tl("predict", blobs.parent / "7-13.png", "-m", solved_file, "--draw", "d").err


def test_report__curves_and_worst_images(solved_run: Run, run_tl: RunTl, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run_tl("report", solved_run.folder, "-o", page).code == 0
    text = page.read_text(encoding="utf-8")
    for part in ("mean average precision", "red: precision over recall", "threshold", "Worst images"):
        assert part in text


def test_train__manifest_of_a_run_trains_the_same(stepped_run: Run, tmp_path: Path) -> None:
    config = small(stepped_run.folder / "manifest.csv", tmp_path / "again", target=None, epochs=1)
    again = train(config, Silent()).run
    own, other = (
        [(r["label"], r["split"], r["sha256"]) for r in run.rows("manifest.csv")] for run in (stepped_run, again)
    )
    assert [(set(a.split(";")), *rest) for a, *rest in own] == [(set(a.split(";")), *rest) for a, *rest in other]


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_train__fine_tuning_is_resumed_exactly_and_exported(
    blobs: Path, stepped_run: Run, tmp_path: Path, weights: str
) -> None:
    options = {
        "method": "finetune",
        "weights": str(stepped_run.folder),
        "epochs": 3,
        "lr": None,
        "class_weights": weights,
    }
    config = small(blobs, tmp_path / "whole", **options)
    whole = train(config, Silent()).run
    stopped = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    with pytest.raises(RunInterrupted):
        train(stopped, StopsAt(2))
    resumed = train(stopped, Silent(), resume=Run(tmp_path / "stopped")).run
    assert timeless_file(resumed.folder / "history.csv") == timeless_file(whole.folder / "history.csv")
    assert (resumed.folder / "predictions_val.csv").read_text() == (whole.folder / "predictions_val.csv").read_text()
    assert (whole.folder / "c_search.csv").is_file()  # starts from the solved head
    columns = {"train_loss", "train_label_accuracy", "val_loss", "val_label_accuracy", "val_macro_f1"}
    assert columns <= whole.rows("history.csv")[0].keys()
    export_run(whole, tmp_path / "m.onnx", Silent())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.2}, "mixup: only for classification"),
        ({"unit": ("mm",)}, "unit: only for regression"),
        ({"head": "svm"}, "head svm does not predict several labels"),
        ({"monitor": "val_top1_accuracy", "lr": 0.1}, "monitor val_top1_accuracy does not exist for multilabel"),
        ({"target": ("red", "red")}, "target names a column twice"),
        ({"method": "auto"}, "method auto is only for classification"),
        ({"target": ("red",), "task": "classification"}, "only for regression and multilabel"),
    ],
)
def test_train__options_that_do_not_apply(
    blobs: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(label_config(blobs, tmp_path / "run", **options), Silent())


def test_train__a_label_that_cannot_be_learned(blobs: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = list(csv.DictReader(io.StringIO(blobs.read_text(encoding="utf-8"))))
    lines = [
        f"{blobs.parent / row['path']},{row['split']},{row['red'] or 0},{int(row['split'] == 'test')}" for row in rows
    ]
    table.write_text("\n".join(["path,split,red,late", *lines]), encoding="utf-8")
    with pytest.raises(DataError, match="no training image has the label 'late'"):
        train(label_config(table, tmp_path / "run", target=("red", "late")), Silent())


def test_columns__a_row_has_a_cell_for_every_column(solved_file: Path, stepped_file: Path, blobs: Path) -> None:
    path = blobs.parent / "7-13.png"
    for models, coverage in ((solved_file, 0.9), ([solved_file, stepped_file], None)):
        with load_multilabel(models, coverage=coverage) as model:
            columns, result = build_columns(model.fields), model.predict(path)
        (cells,) = csv.reader([columns.line(result)])
        assert len(cells) == len(columns.types)
        own = dict(zip(columns.types, cells, strict=True))
        assert own["labels"] == ";".join(result.labels)
        values = dict(zip(columns.types, columns.values(result.as_dict()), strict=True))
        assert float(own["p:red"]) == pytest.approx(values["p:red"], abs=1e-7)
        failed = columns.line(Failure("x.png", "broken"))
        assert failed == f"x.png{',' * (len(columns.types) - 1)}broken\n"
