from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.trainer.make import (
    Listener,
    assert_same_run,
    make_class_folders,
    make_config,
    make_manifest,
    make_noise,
    make_png,
    read_rows,
    train_here,
    weights_of,
)
from tl.errors import ConfigError, DataError, OutputError, RunError, TlError
from tl.progress import Silent
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.output.claim import hold
from tl.trainer.config import TrainConfig
from tl.trainer.fit.machine import build_machine
from tl.trainer.models.build import load_network
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.mark.parametrize(
    ("head", "augment"),
    [
        ("linear", "none"),
        ("linear", "standard"),
        ("svm", "none"),
        ("mlp", "none"),
        ("mlp", "standard"),
        ("conv", "none"),
        ("conv", "light"),
    ],
)
def test_train__features_leave_the_trunk_bit_for_bit(
    photos: Path, finished_run: Run, tmp_path: Path, head: str, augment: str
) -> None:
    run = train_here(
        photos, tmp_path / "r", method="features", weights=str(finished_run.folder), augment=augment, head=head
    ).run
    before, after = weights_of(finished_run), weights_of(run)
    trunk = [name for name in before if name.startswith("trunk.")]
    assert any("running_mean" in name for name in trunk)
    assert any("num_batches_tracked" in name for name in trunk)
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    assert run.last_path.is_file() == (head in ("mlp", "conv") or augment != "none")  # else it is solved in one go
    last = torch.load(run.last_path, weights_only=True)["module"] if run.last_path.is_file() else {}
    for name in (name for name in trunk if name in last):  # with augmentation, the whole network is saved
        assert torch.equal(before[name], last[name])


@pytest.mark.parametrize(("batch_norm", "is_fixed"), [(None, True), ("fixed", True), ("update", False)])
def test_train__finetune_moves_the_trunk(
    photos: Path, finished_run: Run, tmp_path: Path, batch_norm: str | None, is_fixed: bool
) -> None:
    changes = {"method": "finetune", "weights": str(finished_run.folder), "interpolate": False}
    run = train_here(photos, tmp_path / "r", batch_norm=batch_norm, **changes).run
    before, after = weights_of(finished_run), weights_of(run)
    assert not torch.equal(before["trunk.block1.0.weight"], after["trunk.block1.0.weight"])
    assert torch.equal(before["trunk.block1.1.running_mean"], after["trunk.block1.1.running_mean"]) == is_fixed


@pytest.mark.parametrize("method", ["features", "finetune"])
def test_train__weights_of_a_run_bring_its_colors(photos: Path, tmp_path: Path, method: str) -> None:
    dark = make_class_folders(tmp_path / "dark", 4, ("blue", "red"), hw=(32, 32))  # not resized at 32 px
    first = train_here(dark, tmp_path / "first", normalize="dataset", epochs=1).run
    rows = read_rows(first.folder / "manifest.csv")
    seen = [np.asarray(Image.open(first.folder / row["path"])) for row in rows if row["split"] == "train"]
    pixels = np.concatenate([image.reshape(-1, 3) for image in seen]).astype(np.float64)
    changes = {"method": method, "weights": str(first.folder), "epochs": None if method == "features" else 1}
    network, _, _ = load_network(train_here(photos, tmp_path / "second", **changes).run)
    # In byte units; stored as float32, divided by 255 and multiplied again.
    np.testing.assert_allclose(network.normalize.mean.flatten(), pixels.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(network.normalize.std.flatten(), pixels.std(axis=0), rtol=1e-5)
    # If its own colors are requested, a run uses the statistics of its own images.
    own, _, _ = load_network(train_here(photos, tmp_path / "own", normalize="dataset", **changes).run)
    assert (own.normalize.mean - network.normalize.mean).abs().max() > 1


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
    assert set(metrics) == {"method", "best_epoch", "train_seconds", "trained_parameters", "temperature", "val"}
    assert metrics["temperature"] == load_network(finished_run)[1].temperature == 1.0  # too few images to fit another
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


def assert_deploys_what_validation_saw(photos: Path, run: Run, atol: float) -> None:
    build_machine("cpu", "fp32", 1)
    network, card, config = load_network(run)
    assert not any(module.training for module in network.modules())
    assert config.data == str(photos)
    rows = read_rows(run.folder / ("predictions_fitted.csv" if config.refit else "predictions_val.csv"))
    assert rows
    for row in rows:
        image = load_input(photos / row["path"], card.preprocessing)
        with torch.no_grad():
            logits = network(torch.from_numpy(np.stack([image])))[0]
        probabilities = torch.softmax(logits / card.temperature, dim=0)
        shown = [float(row[f"p:{name}"]) for name in card.class_names]
        np.testing.assert_allclose(probabilities.numpy(), shown, rtol=0, atol=atol)


def test_load_network__gives_what_validation_saw(photos: Path, finished_run: Run) -> None:
    assert load_network(finished_run)[1].class_names == ("blue", "green", "red")
    assert_deploys_what_validation_saw(photos, finished_run, 1e-5)  # six digits, another batch size


def test_load_network__gives_what_validation_saw_with_a_fitted_temperature(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "d", 16)
    run = train_here(data, tmp_path / "r", val_fraction=0.5, lr=1e-4).run  # all 24 are right, and far from certain
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["val"]["n"] == 24
    assert metrics["temperature"] == load_network(run)[1].temperature < 0.9
    assert metrics["val"]["ece"] < metrics["val"]["ece_uncalibrated"]
    assert_deploys_what_validation_saw(data, run, 1e-5)  # six digits, another batch size


def test_load_network__gives_what_validation_saw_after_a_refit(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    run = train_here(photos, tmp_path / "r", method="finetune", weights=str(finished_run.folder)).run
    assert run.load_config().refit is True
    assert_deploys_what_validation_saw(photos, run, 1e-5)  # six digits, another batch size


@pytest.mark.parametrize(
    ("head", "pooling"),
    [("linear", "gap"), ("linear", "flatten"), ("svm", "gap"), ("mlp", "flatten"), ("conv", "gap")],
)
def test_load_network__gives_what_validation_saw_on_kept_features(
    photos: Path, finished_run: Run, tmp_path: Path, head: str, pooling: str
) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder), "head": head, "pooling": pooling}
    run = train_here(photos, tmp_path / "r", **changes).run
    # Solved heads are float64 and deployed as float32, with logits of about 10; the tolerance of an export.
    assert_deploys_what_validation_saw(photos, run, 1e-4)


@pytest.mark.parametrize(
    ("head", "pooling"), [("linear", "gap"), ("linear", "flatten"), ("mlp", "gap"), ("mlp", "flatten"), ("conv", "gap")]
)
def test_train__overfits_eight_images(tmp_path: Path, head: str, pooling: str) -> None:
    rows = []
    for i in range(8):  # pure noise: learning it means memorizing it; validation contains copies
        image = make_noise(i, hw=(32, 32))
        for split in ("train", "val"):
            make_png(tmp_path / "d" / f"{split}{i}.png", image)
            rows.append((f"{split}{i}.png", "ab"[i % 2], split))
    manifest = make_manifest(tmp_path / "d" / "l.csv", rows, ("path", "label", "split"))
    lr = 1e-3 if head == "conv" else 3e-3  # no head loses its ReLUs at these rates
    result = train_here(manifest, tmp_path / "r", head=head, pooling=pooling, epochs=40, dropout=0.0, lr=lr)
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
    with pytest.raises(TlError, match="no images in its test split"):
        train(make_config(photos, tmp_path / "r", test=True), listener)
    assert "training" not in listener.tasks
    assert not (tmp_path / "r").exists()


def spoil(data: Path, *names: str) -> None:
    for name in names:
        (data / name).write_bytes((data / name).read_bytes()[:100])


def test_train__unreadable_images_stop_it_and_are_all_listed(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "d", 4)
    spoil(data, "blue/0.png", "red/3.png")
    with pytest.raises(DataError) as caught:
        train_here(data, tmp_path / "r")
    assert "2 images cannot be read" in str(caught.value)
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


def test_train__skip_bad_without_a_image_of_a_class_keeps_labels_in_place(tmp_path: Path) -> None:
    # The first class loses all its images: the ids of the others must not shift by one relative to the class names.
    data = split_folders(tmp_path / "d")
    spoil(data, *(f"{split}/blue/{i}.png" for split, n in (("train", 3), ("val", 2)) for i in range(n)))
    try:
        result = train_here(data, tmp_path / "r", skip_bad=True, epochs=20)
    except DataError as error:
        if "blue" not in str(error):  # an error that names the class is also correct
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
        ({"batch_size": 16}, ConfigError, r"batch_size 16 is larger than the 15 training images"),
        (
            {"per_class": 6},
            DataError,
            r"per_class 6: too few training images: class 'blue' has 5",
        ),
        ({"weights": "gone.pth"}, TlError, r"weights 'gone.pth': no such file"),
        ({"freeze": "block9"}, ConfigError, r"freeze: 'block9' matches no layer \(nearest: 'block"),
        ({"trunk_until": "block9"}, ConfigError, r"no layer 'block9' \(nearest: 'block"),
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
    with pytest.raises(RunError, match="already exists"):
        train_here(photos, finished_run.folder)


def test_train__numbers_runs_without_a_name(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config: TrainConfig = dataclasses.replace(make_config(photos, Path("x"), epochs=1), out="")
    folders = [train(config, Silent()).run.folder for _ in range(2)]
    assert folders == [Path("runs/photos-scratch"), Path("runs/photos-scratch-2")]


def test_train__untrained_network_predicts_at_chance(photos: Path, tmp_path: Path) -> None:
    # Losses of the first epoch with negligible steps: about ln 3 for three classes.
    run = train_here(photos, tmp_path / "r", lr=1e-12, epochs=1).run
    (row,) = read_rows(run.folder / "history.csv")
    assert abs(float(row["val_loss"]) - math.log(3)) < 0.5  # a random head is not exactly uniform
    network, _, _ = load_network(run)
    assert isinstance(network.head, nn.Linear)


@pytest.mark.parametrize(("head", "trials"), [("linear", 6), ("svm", 3)])
def test_train__a_solved_head_has_no_epochs(
    photos: Path, finished_run: Run, tmp_path: Path, head: str, trials: int
) -> None:
    result = train_here(photos, tmp_path / "r", method="features", weights=str(finished_run.folder), head=head)
    names = ["best.safetensors", "c_search.csv", "config.yaml", "environment.json", "findings.csv", "manifest.csv"]
    names += ["metrics.json", "predictions_fitted.csv", "predictions_val.csv"]
    assert sorted(path.name for path in result.run.folder.iterdir()) == names
    assert result.metrics["best_epoch"] is None
    searched = read_rows(result.run.folder / "c_search.csv")
    assert list(searched[0]) == ["c", "train_top1_accuracy", "val_top1_accuracy", "val_log_loss"]
    values = [float(row["c"]) for row in searched]
    assert values == sorted(values)
    assert len(values) == trials
    images = [image for split in ("train", "val") for image in result.run.images(split)]
    assert result.metrics["val"]["n"] == len(images)  # out of fold


def test_train__a_linear_head_steps_where_an_optimizer_is_named(
    photos: Path, finished_run: Run, tmp_path: Path
) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder), "optimizer": "sgd"}
    result = train_here(photos, tmp_path / "r", **changes)
    assert [row["epoch"] for row in read_rows(result.run.folder / "history.csv")] == ["1", "2"]
    assert result.metrics["best_epoch"] in (1, 2)
    assert not (result.run.folder / "c_search.csv").exists()


@pytest.mark.parametrize(("asked", "used"), [(None, 15), (15, 15), (4, 4)])
@pytest.mark.parametrize("method", ["scratch", "features"])
def test_train__default_batch_shrinks_to_the_data(
    photos: Path, finished_run: Run, tmp_path: Path, method: str, asked: int | None, used: int
) -> None:
    weights = str(finished_run.folder) if method == "features" else "none"
    changes = {"method": method, "weights": weights, "head": "mlp", "epochs": 1}
    run = train_here(photos, tmp_path / "r", batch_size=asked, **changes).run
    assert run.load_config().batch_size == used
    steps = torch.load(run.last_path, weights_only=True)["optimizer"]["state"][0]["step"]
    assert steps == -(-15 // used)


def test_train__per_class_trains_on_as_many_and_validates_on_the_same(photos: Path, tmp_path: Path) -> None:
    whole = train_here(photos, tmp_path / "a").run
    few = train_here(photos, tmp_path / "b", per_class=2).run
    counts = [
        Counter((row["split"], row["label"]) for row in read_rows(run.folder / "manifest.csv")) for run in (whole, few)
    ]
    assert counts[0] == {(s, c): n for s, n in (("train", 5), ("val", 1)) for c in ("blue", "green", "red")}
    assert counts[1] == {(s, c): n for s, n in (("train", 2), ("val", 1)) for c in ("blue", "green", "red")}
    names = [[row["path"] for row in read_rows(run.folder / "predictions_val.csv")] for run in (whole, few)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("method", "head"), [("scratch", "linear"), ("features", "linear"), ("features", "svm"), ("features", "mlp")]
)
def test_train__two_classes_of_one_image_with_odd_names(
    finished_run: Run, tmp_path: Path, method: str, head: str
) -> None:
    names = ("Käfer, rot", "甲虫")
    for split in ("train", "val"):
        make_class_folders(tmp_path / "d" / split, 1, names)
    weights = str(finished_run.folder) if method == "features" else "none"
    changes = {"method": method, "weights": weights, "head": head, "batch_size": None}
    result = train_here(tmp_path / "d", tmp_path / "r", **changes)
    assert result.metrics["val"]["n"] == 2
    assert math.isfinite(result.metrics["temperature"])
    assert load_network(result.run)[1].class_names == names
    assert_deploys_what_validation_saw(tmp_path / "d", result.run, 1e-4)  # the tolerance of an export


def test_train__a_cut_trunk_takes_the_weights_of_a_run_with_the_same_cut(photos: Path, tmp_path: Path) -> None:
    first = train_here(photos, tmp_path / "a", trunk_until="block2").run
    changes = {"method": "features", "trunk_until": "block2", "weights": str(first.folder)}
    second = train_here(photos, tmp_path / "b", **changes).run
    before, after = weights_of(first), weights_of(second)
    assert {name for name in after if name.startswith("trunk.block")} == {n for n in before if n.startswith("trunk.")}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items() if name.startswith("trunk."))


@pytest.mark.slow
def test_train__a_solved_head_on_kept_features_needs_no_torch(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder)}
    first = train_here(photos, tmp_path / "a", **changes).run
    code = (
        "import sys, dataclasses; from tl.trainer.run_folder.run import Run; from tl.trainer.train import train\n"
        "from pathlib import Path; from tl.progress import Silent\n"
        "config = dataclasses.replace(Run(Path(sys.argv[1])).load_config(), out=sys.argv[2])\n"
        "train(config, Silent()); sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(first.folder), str(tmp_path / "b")]
    assert subprocess.run(words, timeout=60, check=False).returncode == 0
    assert_same_run(first, Run(tmp_path / "b"))


def test_train__12_bit_images_are_a_finding(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            values = np.random.default_rng(i).integers(0, 4000, (8, 8), dtype=np.uint16)
            Image.fromarray(values).save(tmp_path / "data" / label / f"{i}.png")
    result = train_here(tmp_path / "data", tmp_path / "r", epochs=1)
    (finding,) = [one for one in result.findings if one.kind == "bit depth"]
    assert finding.detail.endswith("set bit_depth_max=4095")
    again = train_here(tmp_path / "data", tmp_path / "again", epochs=1, bit_depth_max=4095)
    assert [one for one in again.findings if one.kind == "bit depth"] == []


def test_train__imbalanced_classes_are_a_finding(run_tl: RunTl, tmp_path: Path) -> None:
    make_class_folders(tmp_path / "data", 40, ("blue",), (20, 26))
    make_class_folders(tmp_path / "data", 5, ("red",), (20, 26))
    words = ["train", tmp_path / "data", "--method", "scratch", "--backbone", "smallcnn", "--image-size", "32"]
    words += ["--epochs", "1", "--batch-size", "8", "--threads", "1", "--workers", "0", "--no-report"]
    done = run_tl(*words, "--out", tmp_path / "plain")
    assert done.code == 0, done.err
    assert "warning: imbalanced classes: class 'red' has 4 training images, class 'blue' 32: class_weights" in done.err
    assert "hint: for imbalanced classes, compare with --class-weights balanced" in done.err
    assert "imbalanced classes" in (tmp_path / "plain" / "findings.csv").read_text(encoding="utf-8")
    for choice in (("--class-weights", "balanced"), ("--sampler", "balanced")):
        weighted = run_tl(*words, *choice, "--out", tmp_path / choice[0])
        assert (weighted.code, "imbalanced classes" in weighted.err) == (0, False), weighted.err


def test_train__one_process_writes_a_run_folder(photos: Path, tmp_path: Path) -> None:
    run = train_here(photos, tmp_path / "run", epochs=1).run
    (run.folder / "metrics.json").unlink()
    with (
        hold(run.folder / ".lock", run.folder / ".holder.json", "the run"),
        pytest.raises(OutputError, match=rf"{run.folder.name}: is being written by process {os.getpid()} on "),
    ):
        train(run.load_config(), Silent(), resume=run)
    assert train(run.load_config(), Silent(), resume=run).metrics
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]
