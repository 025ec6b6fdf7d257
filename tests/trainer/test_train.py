from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from tests.trainer.make import (
    Listener,
    make_class_folders,
    make_config,
    make_manifest,
    make_noise,
    make_png,
    read_rows,
    train_here,
    weights_of,
)
from tl.errors import ConfigError, DataError, RunError, TlError
from tl.runtime.geometry import load_input
from tl.trainer.config import TrainConfig
from tl.trainer.machine import build_machine
from tl.trainer.progress import Silent
from tl.trainer.runs import Run
from tl.trainer.train import load_network, train


@pytest.mark.parametrize("augment", ["none", "standard"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_train__features_leave_the_trunk_bit_for_bit(
    photos: Path, finished_run: Run, tmp_path: Path, augment: str, head: str
) -> None:
    run = train_here(
        photos, tmp_path / "r", method="features", weights=str(finished_run.folder), augment=augment, head=head
    ).run
    before, after = weights_of(finished_run), weights_of(run)
    trunk = [name for name in before if name.startswith("trunk.")]
    assert any("running_mean" in name for name in trunk)
    assert any("num_batches_tracked" in name for name in trunk)
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    last = torch.load(run.last_path, weights_only=True)["module"]
    for name in (name for name in trunk if name in last):  # with augmentation the whole network is in the checkpoint
        assert torch.equal(before[name], last[name])


def test_train__finetune_moves_the_trunk(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    run = train_here(photos, tmp_path / "r", method="finetune", weights=str(finished_run.folder)).run
    before, after = weights_of(finished_run), weights_of(run)
    assert not torch.equal(before["trunk.block1.0.weight"], after["trunk.block1.0.weight"])
    assert not torch.equal(before["trunk.block1.1.running_mean"], after["trunk.block1.1.running_mean"])


def test_train__run_files_hold_together(photos: Path, finished_run: Run) -> None:
    rows = read_rows(finished_run.folder / "predictions_val.csv")
    names = ("blue", "green", "red")
    assert list(rows[0]) == ["path", "true_label", "label", "confidence", *(f"p:{name}" for name in names)]
    manifest = read_rows(finished_run.folder / "manifest.csv")
    paths = {(finished_run.folder / row["path"]).resolve(): row for row in manifest if row["split"] == "val"}
    held_out = {path.relative_to(photos.resolve()).as_posix(): row["label"] for path, row in paths.items()}
    assert {row["path"]: row["true_label"] for row in rows} == held_out
    for row in rows:
        values = [float(row[f"p:{name}"]) for name in names]
        assert sum(values) == pytest.approx(1, abs=3e-6)  # three values printed with six digits
        assert row["label"] == names[int(np.argmax(values))]
        assert float(row["confidence"]) == max(values)
    metrics = json.loads((finished_run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"best_epoch", "train_seconds", "val"}
    truth, decided = [row["true_label"] for row in rows], [row["label"] for row in rows]
    assert metrics["val"]["n"] == len(rows) == 3  # a fifth of each class of 6, rounded
    assert metrics["val"]["top1_accuracy"] == accuracy_score(truth, decided)
    wanted = f1_score(truth, decided, average="macro", labels=sorted(set(truth)), zero_division=0)
    assert metrics["val"]["macro_f1"] == pytest.approx(wanted, abs=1e-12)  # float64
    history = read_rows(finished_run.folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    assert float(history[metrics["best_epoch"] - 1]["val_top1_accuracy"]) == pytest.approx(
        metrics["val"]["top1_accuracy"], abs=1e-5
    )  # six digits


def test_load_network__gives_what_validation_saw(photos: Path, finished_run: Run) -> None:
    build_machine("cpu", "fp32", 1)
    network, card, config = load_network(finished_run)
    assert not any(module.training for module in network.modules())
    assert card.class_names == ("blue", "green", "red")
    assert config.data == str(photos)
    for row in read_rows(finished_run.folder / "predictions_val.csv"):
        image = load_input(photos / row["path"], card.recipe)
        with torch.no_grad():
            probabilities = torch.softmax(network(torch.from_numpy(np.stack([image]))), dim=1)[0]
        shown = [float(row[f"p:{name}"]) for name in card.class_names]
        np.testing.assert_allclose(probabilities.numpy(), shown, rtol=0, atol=1e-5)  # six digits, another batch size


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", ["gap", "flatten"])
def test_train__overfits_eight_pictures(tmp_path: Path, head: str, pooling: str) -> None:
    rows = []
    for i in range(8):  # noise alone: to learn it is to remember it; validation holds copies
        image = make_noise(i, hw=(32, 32))
        for split in ("train", "val"):
            make_png(tmp_path / "d" / f"{split}{i}.png", image)
            rows.append((f"{split}{i}.png", "ab"[i % 2], split))
    manifest = make_manifest(tmp_path / "d" / "l.csv", rows, ("path", "label", "split"))
    result = train_here(manifest, tmp_path / "r", head=head, pooling=pooling, epochs=40, dropout=0.0, lr=3e-3)
    assert result.metrics["val"]["top1_accuracy"] == 1.0


def test_train__test_split_is_evaluated_on_request_alone(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        make_class_folders(tmp_path / "d" / split, count)
    without = train_here(tmp_path / "d", tmp_path / "a")
    assert not (without.run.folder / "predictions_test.csv").exists()
    with_test = train_here(tmp_path / "d", tmp_path / "b", test=True)
    assert with_test.metrics["test"]["n"] == 6
    assert len(read_rows(with_test.run.folder / "predictions_test.csv")) == 6


def test_train__test_without_a_test_split_is_refused_before_training(photos: Path, tmp_path: Path) -> None:
    listener = Listener()
    with pytest.raises(TlError, match="no pictures in its test split"):
        train(make_config(photos, tmp_path / "r", test=True), listener)
    assert "training" not in listener.tasks
    assert not (tmp_path / "r").exists()


def spoil(data: Path, *names: str) -> None:
    for name in names:
        (data / name).write_bytes((data / name).read_bytes()[:100])


def test_train__unreadable_pictures_stop_it_and_are_all_listed(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "d", 4)
    spoil(data, "blue/0.png", "red/3.png")
    with pytest.raises(DataError) as caught:
        train_here(data, tmp_path / "r")
    assert "2 pictures cannot be read" in str(caught.value)
    assert "blue/0.png: " in str(caught.value)
    assert "red/3.png: " in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_train__skip_bad_goes_on_and_lists_them(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "d", 5)
    spoil(data, "blue/0.png", "red/3.png")
    run = train_here(data, tmp_path / "r", skip_bad=True).run
    assert [row["path"] for row in read_rows(run.folder / "skipped.csv")] == ["blue/0.png", "red/3.png"]
    assert len(read_rows(run.folder / "manifest.csv")) == 13


def split_folders(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        make_class_folders(root / split, count)
    return root


def test_train__skip_bad_without_a_picture_of_a_class_keeps_labels_in_place(tmp_path: Path) -> None:
    # The first class loses every picture: the ids of the others must not slip by one against the class names.
    data = split_folders(tmp_path / "d")
    spoil(data, *(f"{split}/blue/{i}.png" for split, n in (("train", 3), ("val", 2)) for i in range(n)))
    try:
        result = train_here(data, tmp_path / "r", skip_bad=True, epochs=20)
    except DataError as error:
        if "blue" not in str(error):  # to stop and name the class is right as well
            raise
        return
    _, card, _ = load_network(result.run)
    rows = read_rows(result.run.folder / "predictions_val.csv")
    assert [row["label"] for row in rows] == [row["true_label"] for row in rows]
    assert {"green", "red"} <= set(card.class_names)


@pytest.mark.parametrize("split", ["train", "val"])
def test_train__skip_bad_that_leaves_a_split_empty(tmp_path: Path, split: str) -> None:
    data = split_folders(tmp_path / "d")
    spoil(data, *(path.relative_to(data).as_posix() for path in (data / split).rglob("*.png")))
    with pytest.raises(TlError):
        train_here(data, tmp_path / "r", skip_bad=True)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"backbone": "resnet81"}, ConfigError, "nearest: 'resnet18'"),
        ({"image_size": 4}, ConfigError, "image_size 4 does not fit"),
        ({"augment": "strange"}, ConfigError, "augment: 'strange'"),
        ({"data": "/nowhere"}, DataError, "no such folder"),
        ({"epochs": 0}, ConfigError, "epochs must be at least 1"),
    ],
)
def test_train__faults_stop_it_before_a_run_folder_is_made(
    photos: Path, tmp_path: Path, changes: dict[str, Any], error: type[TlError], reason: str
) -> None:
    config = dataclasses.replace(make_config(photos, tmp_path / "r"), **changes)
    with pytest.raises(error, match=reason):
        train(config, Silent())
    assert not (tmp_path / "r").exists()


def test_train__does_not_write_over_a_run(photos: Path, finished_run: Run) -> None:
    with pytest.raises(RunError, match="exists already"):
        train_here(photos, finished_run.folder)


def test_train__numbers_runs_without_a_name(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config: TrainConfig = dataclasses.replace(make_config(photos, Path("x"), epochs=1), out="")
    folders = [train(config, Silent()).run.folder for _ in range(2)]
    assert folders == [Path("runs/photos-scratch"), Path("runs/photos-scratch-2")]


def test_train__an_untrained_network_knows_nothing(photos: Path, tmp_path: Path) -> None:
    # Losses of the first epoch without a step that moves anything: about ln 3 for three classes.
    run = train_here(photos, tmp_path / "r", lr=1e-12, epochs=1).run
    (row,) = read_rows(run.folder / "history.csv")
    assert abs(float(row["val_loss"]) - math.log(3)) < 0.5  # a random head says a little of something
    network, _, _ = load_network(run)
    assert isinstance(network.head, nn.Linear)
