from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from tests.commands.conftest import Outcome, RunTl
from tests.trainer.make import make_class_folders
from tl.progress import Silent
from tl.trainer.config import TrainConfig
from tl.trainer.task import prepare_task

QUICK = ("--backbone", "smallcnn", "--image-size", 16, "--device", "cpu", "--threads", 1)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Three class folders of five noisy squares, in a folder whose name a shell would split."""
    return make_class_folders(tmp_path / "my squares", 5)


def table(done: Outcome) -> list[dict[str, str]]:
    assert done.code == 0, done.err
    return done.rows()


def test_probe__default_tries_best_first(run_tl: RunTl, squares: Path, trunk_weights: Path) -> None:
    done = run_tl("probe", squares, "--weights", trunk_weights, *QUICK)
    rows = table(done)
    assert list(rows[0]) == ["options", "top1_accuracy", "ci_low", "ci_high", "macro_f1", "fits", "n", "seconds"]
    linear = [f"head=linear c={c}" for c in ("0.001", "0.01", "0.1", "1")]
    svm = [f"head=svm c={c}" for c in ("0.0001", "0.001", "0.01")]
    assert {row["options"] for row in rows} == {*linear, *svm, "head=mlp"}
    assert {(row["fits"], row["n"]) for row in rows} == {("5", "15")}
    assert all(float(row["ci_low"]) <= float(row["top1_accuracy"]) <= float(row["ci_high"]) for row in rows)
    best = f"best of 8: {rows[0]['options']}, top-1 accuracy {float(rows[0]['top1_accuracy']):.4f}"
    assert best in done.err.splitlines()


def test_probe__json(run_tl: RunTl, squares: Path, trunk_weights: Path) -> None:
    still = "head=mlp epochs=1 lr=1e-9"  # effectively untrained
    done = run_tl("probe", squares, "--weights", trunk_weights, *QUICK, "--try", still, "--try", "c=1", "--json")
    first, last = json.loads(done.out)
    assert (first["options"], last["options"]) == ("c=1", still)
    assert first["top1_accuracy"] > last["top1_accuracy"]
    assert (first["fits"], first["n"]) == (5, 15)


@pytest.mark.parametrize(
    ("tried", "kept"),
    [
        ("c=0.5", {"head": "linear", "c_values": [0.5], "optimizer": "lbfgs"}),
        ("head=svm c=0.02 class_weights=balanced", {"head": "svm", "c_values": [0.02], "class_weights": "balanced"}),
        (
            "head=mlp head-sizes=8x4 lr=0.01 epochs=2 dropout=0.5 sampler=balanced",
            {"head": "mlp", "head_sizes": [8, 4], "lr": 0.01, "epochs": 2, "dropout": 0.5, "sampler": "balanced"},
        ),
        ("head=conv head_sizes=4 epochs=1", {"head": "conv", "head_sizes": [4], "epochs": 1}),
    ],
)
def test_probe__suggested_command_trains_the_best_try(
    run_tl: RunTl,
    squares: Path,
    trunk_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tried: str,
    kept: dict[str, object],
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("--weights", trunk_weights, *QUICK, "--resize-mode", "letterbox", "--skip-bad", "--val-fraction", 0.4)
    done = run_tl("probe", squares, *base, "--try", tried, "--folds", 0)
    (row,) = table(done)
    (line,) = [line for line in done.err.splitlines() if line.startswith("next: ")]
    words = shlex.split(line)
    assert words[:3] == ["next:", "tl", "train"]
    trained = run_tl(*words[2:], "--json")
    assert trained.code == 0, trained.err
    answer = json.loads(trained.out)
    config = yaml.safe_load((Path(answer["run"]) / "config.yaml").read_text(encoding="utf-8"))
    common = {"method": "features", "resize_mode": "letterbox", "skip_bad": True, "val_fraction": 0.4, "image_size": 16}
    assert {name: config[name] for name in (*common, *kept)} == {**common, **kept}
    assert int(row["n"]) == 6
    assert answer["val"]["n"] == (15 if config["refit"] else 6)  # out of fold: all images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--try", "head=conv head_sizes=4", "--try", "head=svm"],
            "conv heads use feature maps",
        ),
        (["--folds", 1], "folds must be 0 or at least 2 and seeds at least 1, found 1 and 1"),
        (["--folds", -2], "folds must be 0 or at least 2"),
        (["--seeds", 0], "found 5 and 0"),
        (["--folds", 6], "the smallest class has 5: lower folds"),
        (["--try", "haed=svm"], "cannot vary 'haed' (nearest: 'head')"),
        (
            ["--try", "head=mlp lr=auto"],
            "lr auto and schedule plateau would use the validation images",
        ),
        (["--per-class", 9, "--folds", 0], "per_class 9: too few training images: class 'blue' has 4"),
    ],
)
def test_probe__faults_are_one_line(
    run_tl: RunTl, squares: Path, trunk_weights: Path, words: list[object], message: str
) -> None:
    done = run_tl("probe", squares, "--weights", trunk_weights, *QUICK, *words)
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_probe__nothing_given(run_tl: RunTl) -> None:
    done = run_tl("probe")
    assert done.code == 1
    assert "no data set: give a folder or CSV" in done.err


def test_probe__per_class_limits_what_folds_train_on(run_tl: RunTl, trunk_weights: Path, tmp_path: Path) -> None:
    gray = make_class_folders(tmp_path / "gray", 5, ("a", "b"))  # classes are indistinguishable, so heads make errors
    base = ("probe", gray, "--weights", trunk_weights, *QUICK, "--try", "c=1", "--folds", 3, "--seeds", 2)
    (whole,), (limited,) = table(run_tl(*base)), table(run_tl(*base, "--per-class", 1))
    assert (limited["fits"], limited["n"]) == (whole["fits"], whole["n"]) == ("6", "20")
    assert {**limited, "seconds": ""} != {**whole, "seconds": ""}


def test_probe__the_test_split_is_never_touched(
    run_tl: RunTl, trunk_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        make_class_folders(tmp_path / "d" / split, count, hw=(20, 20 + count))
    base = ("probe", tmp_path / "d", "--weights", trunk_weights, *QUICK, "--try", "c=0.001", "--folds", 3)
    with_test = table(run_tl(*base))
    # Files are read to find duplicates, but no features are computed.
    options = {"backbone": "smallcnn", "image_size": 16, "method": "features", "weights": str(trunk_weights)}
    task = prepare_task(TrainConfig(data=str(tmp_path / "d"), **options), Silent())
    assert task.features is not None
    missing = task.features.missing(task.store, range(len(task.store.images)), (0,))
    assert sorted(i for i, _ in missing) == task.store.indices("test")
    shutil.rmtree(tmp_path / "d" / "test")
    without = table(run_tl(*base))
    assert [{**row, "seconds": ""} for row in with_test] == [{**row, "seconds": ""} for row in without]
    assert without[0]["n"] == "18"


def test_probe__equal_files_are_said(run_tl: RunTl, trunk_weights: Path, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        make_class_folders(tmp_path / "d" / split, count)  # the first two of each class are equal
    done = run_tl("probe", tmp_path / "d", "--weights", trunk_weights, *QUICK, "--try", "c=1", "--folds", 3)
    (row,) = table(done)
    assert row["n"] == "15"
    (line,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert line.startswith("warning: duplicate across splits: train/blue/0.png and val/blue/0.png: ")
    assert line.endswith("(and 5 more)")
    assert "findings.csv" not in done.err
