from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold

import tl.runtime
from tests.trainer.make import (
    Listener,
    assert_same_run,
    forbid_decoding,
    make_class_folders,
    make_config,
    make_manifest,
    make_noise,
    make_png,
    read_rows,
)
from tl.errors import ConfigError, TlError
from tl.evaluation.evaluate import check_unseen
from tl.exporter.export import export_run
from tl.exporter.merging.merge import merge
from tl.progress import Silent
from tl.runtime.session import Session
from tl.trainer.classification import compute_features
from tl.trainer.config import TrainConfig
from tl.trainer.heads.solvers import solve_head
from tl.trainer.heads.training import solve_linear
from tl.trainer.run_folder.checkpoints import load_best
from tl.trainer.run_folder.run import Run
from tl.trainer.task import prepare_task
from tl.trainer.train import TrainResult, train

pytestmark = pytest.mark.usefixtures("fresh_cache")
ROOT = Path(__file__).parents[3]
# predictions_val.csv has six digits for numbers up to 1.
PRINTED = 1e-6
SOLVED = ({}, {"head": "svm"})
STEPPED = ({"optimizer": "adamw"}, {"head": "mlp"}, {"head": "conv", "head_sizes": (4, 8)})


@pytest.fixture(scope="session")
def close_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of nearly the same color with noise, so that heads make errors; read only."""
    root = tmp_path_factory.mktemp("close") / "photos"
    for c, name in enumerate(("甲虫", "Käfer", "worm")):
        for i in range(14):
            make_png(root / name / f"{i}.png", make_noise(100 * c + i, (120 + 6 * c, 125, 130 - 3 * c), (9, 9)))
    return root


def head_config(data: Path, weights: Run, out: Path, **changes: Any) -> TrainConfig:
    """A head on cached features: solved, or trained for two epochs if `changes` require steps."""
    is_stepped = "optimizer" in changes or changes.get("head") in ("mlp", "conv")
    epochs = 2 if is_stepped else None
    options = {"method": "features", "weights": str(weights.folder), "epochs": epochs, **changes}
    return make_config(data, out, **options)


def train_head(data: Path, weights: Run, out: Path, **changes: Any) -> TrainResult:
    return train(head_config(data, weights, out, **changes), Silent())


def read_predictions(run: Run, name: str = "predictions_val.csv") -> tuple[list[str], list[str], NDArray[np.float64]]:
    """True labels, decided labels and probabilities (N, C) of a table of predictions."""
    rows = read_rows(run.folder / name)
    columns = [name for name in rows[0] if name.startswith("p:")]
    probabilities = np.array([[float(row[name]) for name in columns] for row in rows])
    return [row["true_label"] for row in rows], [row["label"] for row in rows], probabilities


def read_metrics(run: Run) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def names_in(run: Run) -> set[str]:
    return {path.name for path in run.folder.iterdir() if "tfevents" not in path.name}


ALWAYS = {"best.safetensors", "config.yaml", "environment.json", "findings.csv", "manifest.csv", "metrics.json"} | {
    "predictions_val.csv"
}


@pytest.mark.parametrize("changes", SOLVED)
def test_solve__writes_its_files(photos: Path, finished_run: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    listener = Listener()
    run = train(head_config(photos, finished_run, tmp_path / "r", **changes), listener).run
    assert names_in(run) == {*ALWAYS, "c_search.csv", "predictions_fitted.csv"}
    rows = read_rows(run.folder / "c_search.csv")
    assert list(rows[0]) == ["c", "train_top1_accuracy", "val_top1_accuracy", "val_log_loss"]
    asked = (1e-4, 1e-3, 1e-2) if changes else (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    assert [float(row["c"]) for row in rows] == list(asked)
    assert "solving the head" in listener.tasks
    (line,) = (line for line in listener.lines if " head with C " in line)
    losses = [1 - float(row["val_top1_accuracy"]) if changes else float(row["val_log_loss"]) for row in rows]
    chosen = rows[losses.index(min(losses))]["c"]
    assert line.startswith(f"{'svm' if changes else 'logistic'} head with C {float(chosen):g}, selected from ")
    assert read_metrics(run)["best_epoch"] is None


@pytest.mark.parametrize("changes", STEPPED)
def test_train_by_steps__writes_its_files(
    photos: Path, finished_run: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = train_head(photos, finished_run, tmp_path / "r", **changes).run
    assert names_in(run) == {*ALWAYS, "history.csv", "last.pt"}
    history = read_rows(run.folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    best = max(history, key=lambda row: (float(row["val_top1_accuracy"]), -float(row["val_loss"])))
    metrics = read_metrics(run)
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["val"]["top1_accuracy"] == pytest.approx(float(best["val_top1_accuracy"]), abs=1e-5)  # six digits


@pytest.mark.parametrize("changes", [*SOLVED, STEPPED[0], {"augment": "flip", "views": 2}, {"pooling": "flatten"}])
def test_train__metrics_agree_with_the_predictions(
    close_photos: Path, finished_run: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = train_head(close_photos, finished_run, tmp_path / "r", val_fraction=0.5, **changes).run
    truth, decided, probabilities = read_predictions(run)
    names = ("Käfer", "worm", "甲虫")
    metrics = read_metrics(run)["val"]
    count = 21 if run.load_config().refit is False else 42  # out of fold: all images
    assert metrics["n"] == len(truth) == count
    assert metrics["top1_accuracy"] == accuracy_score(truth, decided)
    wanted = f1_score(truth, decided, average="macro", labels=sorted(set(truth)), zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(wanted, abs=1e-12)  # float64
    assert decided == [names[i] for i in probabilities.argmax(axis=1)]
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(count), abs=3 * PRINTED)
    confidence, right = probabilities.max(axis=1), np.array(truth) == np.array(decided)
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(15)) / count
    assert metrics["ece"] == pytest.approx(ece, abs=PRINTED)
    confusion = [[sum(t == a and d == b for t, d in zip(truth, decided, strict=True)) for b in names] for a in names]
    assert metrics["confusion"] == confusion


def test_train__scores_the_own_validation_images_out_of_fold_after_a_refit(
    close_photos: Path, finished_run: Run, tmp_path: Path
) -> None:
    images = sorted(close_photos.rglob("*.png"))
    rows = [f"{path},{path.parent.name},{'val' if i % 3 == 0 else 'train'}" for i, path in enumerate(images)]
    manifest = tmp_path / "photos.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]) + "\n", encoding="utf-8")
    run = train_head(manifest, finished_run, tmp_path / "own", refit=True).run
    every = train_head(close_photos, finished_run, tmp_path / "every", refit=True).run
    truth, _, probabilities = read_predictions(run)
    names = [Path(row["path"]).name for row in read_rows(run.folder / "predictions_val.csv")]
    assert names == [path.name for path in images[::3]]
    assert read_metrics(run)["val"]["n"] == len(truth) == 14
    # The head itself has seen these images and is fitted to all 42, as without a split of the data's own.
    fitted = read_predictions(run, "predictions_fitted.csv")[2]
    assert np.abs(fitted - probabilities).max() > 0.01
    np.testing.assert_allclose(load_file(run.best_path)["head.weight"], load_file(every.best_path)["head.weight"])


@pytest.mark.parametrize("changes", [*SOLVED, STEPPED[0]])
def test_train__best_tensors_give_the_predictions_by_hand(
    close_photos: Path, finished_run: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = train_head(close_photos, finished_run, tmp_path / "r", val_fraction=0.5, **changes).run
    tensors, card = load_best(run)
    own = {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}
    task = prepare_task(run.load_config(), Silent())
    features = (task.split_features("val") - own["standardize.mean"]) / own["standardize.std"]
    logits = features @ own["head.weight"].T + own["head.bias"]
    wanted = softmax(logits / card.temperature, axis=1)
    # float32 sums of 128 products, divided by the temperature, and rounding to six printed digits.
    name = "predictions_fitted.csv" if run.load_config().refit else "predictions_val.csv"
    np.testing.assert_allclose(read_predictions(run, name)[2], wanted, rtol=0, atol=1e-5)
    assert card.temperature == read_metrics(run)["temperature"]
    given = load_file(finished_run.best_path)
    assert {name for name in own if name.startswith("trunk.")} == {n for n in given if n.startswith("trunk.")}
    assert all((own[name] == given[name]).all() for name in given if name.startswith(("trunk.", "normalize.")))


def test_solve__is_the_solver_on_the_kept_features(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    changes = {"augment": "light", "views": 3, "c_values": (0.01, 1.0)}
    run = train_head(close_photos, finished_run, tmp_path / "r", **changes).run
    task = prepare_task(run.load_config(), Silent())
    train_ids = np.concatenate([task.true_ids("train")] * 3)  # one view after the other
    train_features = np.concatenate([task.split_features("train", (view,)) for view in (1, 2, 3)])
    val = (task.split_features("val"), task.true_ids("val"))
    head, trials = solve_head("logistic", (train_features, train_ids), val, (0.01, 1.0), 0)
    assert [float(row["train_top1_accuracy"]) for row in read_rows(run.folder / "c_search.csv")] == pytest.approx(
        [trial.train_top1_accuracy for trial in trials],
        abs=1e-5,  # six digits
    )
    np.testing.assert_array_equal(load_file(run.best_path)["head.weight"], head.weight.astype(np.float32))


def test_bag__is_the_mean_of_heads_on_folds(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    """Reference: scikit-learn's folds with one of our heads on each; the shipped head outputs their mean logits."""
    changes = {"bag": True, "folds": 3, "c_values": (0.01, 1.0), "augment": "light", "views": 2}
    listener = Listener()
    run = train(head_config(close_photos, finished_run, tmp_path / "r", **changes), listener).run
    assert "mean of 3 logistic heads with C " in "\n".join(listener.lines)
    task = prepare_task(run.load_config(), Silent())
    ids = task.true_ids("train")
    views = [task.split_features("train", (view,)) for view in (1, 2)]
    clean = task.split_features("val")
    logits: dict[float, list[NDArray[Any]]] = {0.01: [], 1.0: []}
    hits = dict.fromkeys(logits, 0)
    for own, held_out in StratifiedKFold(3, shuffle=True, random_state=0).split(ids, ids):
        data = (np.concatenate([v[own] for v in views]), np.tile(ids[own], 2))
        others = (np.concatenate([v[held_out] for v in views]), np.tile(ids[held_out], 2))
        for c in logits:
            head, (trial,) = solve_head("logistic", data, others, (c,), 0)
            logits[c].append(head.logits(clean))
            hits[c] += round(trial.val_top1_accuracy * len(others[1]))
    rows = read_rows(run.folder / "c_search.csv")
    wanted = [hits[c] / (2 * len(ids)) for c in logits]
    assert [float(row["val_top1_accuracy"]) for row in rows] == pytest.approx(wanted, abs=1e-6)  # six digits
    best = max(logits, key=lambda c: (hits[c], -c))
    tensors = load_file(run.best_path)
    found = clean @ tensors["head.weight"].T + tensors["head.bias"]
    np.testing.assert_allclose(found, np.mean(logits[best], axis=0), rtol=0, atol=1e-4)  # float32 sums of 128 products


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 3}, "also set bag"),
        ({"bag": True, "head": "mlp"}, "bag requires a solved linear head"),
        ({"bag": True, "folds": 1}, "folds must be at least 2"),
        ({"bag": True, "folds": 40}, "40 folds require at least as many images"),
    ],
)
def test_bag__refused(
    close_photos: Path, finished_run: Run, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TlError, match=message):
        train_head(close_photos, finished_run, tmp_path / "r", **changes)


@pytest.mark.parametrize("head", ["linear", "svm"])
def test_solve__balanced_class_weights(finished_run: Run, tmp_path: Path, head: str) -> None:
    make_class_folders(tmp_path / "d", 3, ("rare",))
    data = make_class_folders(tmp_path / "d", 12, ("blue",))
    changes = {"head": head, "c_values": (0.01,), "class_weights": "balanced"}
    run = train_head(data, finished_run, tmp_path / "r", **changes).run
    task = prepare_task(run.load_config(), Silent())
    places = range(len(task.ids))  # the head is fitted to all images
    train_data = task.features_at(places), np.array(task.ids)
    solver = "svm" if head == "svm" else "logistic"
    wanted, other = (solve_head(solver, train_data, train_data, (0.01,), 0, is_balanced=it)[0] for it in (True, False))
    found = load_file(run.best_path)["head.bias"]
    np.testing.assert_array_equal(found, wanted.bias.astype(np.float32))
    assert (found != other.bias.astype(np.float32)).any()


EXPORTED = (
    {"classes": ("blue", "red")},
    {"head": "svm"},
    {"head": "mlp", "augment": "flip", "views": 1},
    {"head": "conv", "head_sizes": (4, 8)},
    {"pooling": "flatten", "normalize": "dataset"},
)


@pytest.mark.slow
@pytest.mark.parametrize("changes", EXPORTED)
def test_export_run__a_model_file_gives_the_predictions(
    finished_run: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    classes = changes.get("classes", ("blue", "Größe", "red"))
    data = make_class_folders(tmp_path / "d", 8, classes)
    options = {name: value for name, value in changes.items() if name != "classes"}
    run = train_head(data, finished_run, tmp_path / "r", **options).run
    export_run(run, tmp_path / "m.onnx", Silent())
    # Out-of-fold predictions are not those of the shipped head.
    name = "predictions_fitted.csv" if run.load_config().refit else "predictions_val.csv"
    rows = read_rows(run.folder / name)
    _, decided, wanted = read_predictions(run, name)
    with tl.runtime.load(tmp_path / "m.onnx", device="cpu", threads=1) as model:
        results = [model.predict(data / row["path"]) for row in rows]
        assert list(model.class_names) == sorted(classes)
    assert [result.label for result in results] == decided
    found = np.stack([result.probabilities for result in results])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)  # onnxruntime's float32, and rounding to six digits


@pytest.mark.parametrize("changes", [*SOLVED, *STEPPED, {"augment": "flip", "views": 2}])
def test_train__a_second_run_decodes_nothing_and_is_the_same(
    photos: Path, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    first = train_head(photos, finished_run, tmp_path / "a", **changes).run
    forbid_decoding(monkeypatch)
    second = train_head(photos, finished_run, tmp_path / "b", **changes).run
    assert_same_run(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "svm"])
def test_solve__on_kept_features_imports_no_torch(photos: Path, finished_run: Run, tmp_path: Path, head: str) -> None:
    first = train_head(photos, finished_run, tmp_path / "a", head=head).run
    config = head_config(photos, finished_run, tmp_path / "b", head=head)
    code = (
        "import json, sys\n"
        "from tl.trainer.config_files import config_from_mapping\n"
        "from tl.progress import Silent\n"
        "from tl.trainer.train import train\n"
        "train(config_from_mapping(json.loads(sys.argv[1]), 'here'), Silent())\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    arguments = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(config))]
    ran = subprocess.run(arguments, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    loaded = {name.split(".")[0] for name in json.loads(ran.stdout)}
    assert not loaded & {"torch", "torchvision", "albumentations", "onnx", "onnxruntime", "tensorboard"}
    assert_same_run(first, Run(tmp_path / "b"))


def test_train__missing_cache_shard_is_recomputed(
    photos: Path, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tl.data.array_cache._SHARD_BYTES", 10_000)  # so that one network takes several shards
    first = train_head(photos, finished_run, tmp_path / "a").run
    shards = sorted((tmp_path / "cache" / "features").rglob("*.safetensors"))
    assert len(shards) > 3
    for i, shard in enumerate(shards):
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1])
        assert_same_run(first, train_head(photos, finished_run, tmp_path / str(i)).run)
        shard.write_bytes(whole)
        for new in set((tmp_path / "cache" / "features").rglob("*.safetensors")) - set(shards):
            new.unlink()


@pytest.mark.parametrize("changes", [*SOLVED, STEPPED[0]])
def test_train__unwritable_cache_folder_does_not_stop_training(
    photos: Path, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    first = train_head(photos, finished_run, tmp_path / "a", **changes).run
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "file"))
    listener = Listener()
    assert_same_run(first, train(head_config(photos, finished_run, tmp_path / "b", **changes), listener).run)
    (line,) = (line for line in listener.lines if "cannot be cached" in line)
    assert str(tmp_path / "file") in line


def test_solve__taken_up_again_is_solved_again(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    run = train_head(photos, finished_run, tmp_path / "a").run
    before = {name: (run.folder / name).read_bytes() for name in names_in(run) - {"metrics.json"}}
    (run.folder / "metrics.json").unlink()  # as if it had been stopped
    assert train(run.load_config(), Silent(), resume=run).run == run
    assert {name: (run.folder / name).read_bytes() for name in names_in(run) - {"metrics.json"}} == before
    assert (run.folder / "metrics.json").is_file()


@pytest.mark.parametrize("changes", [*SOLVED, *STEPPED, {"augment": "flip", "views": 2}])
@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_train__one_training_image_a_class(
    tmp_path: Path, finished_run: Run, changes: dict[str, Any], classes: tuple[str, ...]
) -> None:
    data = make_class_folders(tmp_path / "d", 2, classes)
    result = train_head(data, finished_run, tmp_path / "r", batch_size=None, **changes)
    is_out_of_fold = result.run.load_config().refit
    assert result.metrics["val"]["n"] == len(classes) * (2 if is_out_of_fold else 1)
    assert np.isfinite(read_predictions(result.run)[2]).all()


def test_train__the_test_split_of_a_solved_head(finished_run: Run, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        make_class_folders(tmp_path / "d" / split, count)
    result = train_head(tmp_path / "d", finished_run, tmp_path / "r", test=True)
    assert result.metrics["test"]["n"] == len(read_rows(result.run.folder / "predictions_test.csv")) == 9


def test_compute_features__only_required_views(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    for changes, views in (
        ({"method": "finetune", "audit": False, "head_init": "random"}, set()),
        ({"method": "finetune", "audit": False, "head_init": "solved"}, {0}),
        ({"method": "finetune"}, {0}),
        ({"method": "features", "augment": "flip", "views": 2}, {0, 1, 2}),
    ):
        task = prepare_task(head_config(photos, finished_run, tmp_path / "r", **changes), Silent())
        compute_features(task, Silent())
        assert task.features is not None
        missing = task.features.missing(task.store, task.store.indices("train"), range(3))
        assert {view for _, view in missing} == {0, 1, 2} - views


def make_grouped(folder: Path, groups: dict[str, list[str]]) -> Path:
    """Images of each class, one per group name."""
    rows = []
    for i, (label, names) in enumerate(groups.items()):
        for k, name in enumerate(names):
            make_png(folder / label / f"{k}.png", make_noise(100 * i + k, hw=(32, 32)))
            rows.append((f"{label}/{k}.png", label, name))
    return make_manifest(folder / "l.csv", rows, ("path", "label", "group"))


def test_refit__follows_the_data(finished_run: Run, tmp_path: Path) -> None:
    """All images are used unless the data has a validation split, or groups leave a fold without a class."""
    plain = make_class_folders(tmp_path / "plain", 6)
    own = tmp_path / "own"
    for split, count in (("train", 4), ("val", 2)):
        make_class_folders(own / split, count)
    # All images of "a" are of two groups, one of which is needed for validation: two folds are possible, no more.
    tied = make_grouped(tmp_path / "tied", {"a": ["x", "x", "y", "y"], "b": ["p", "q", "r", "s"]})
    for data, refit, count in ((plain, True, 18), (own, False, 6), (tied, True, 8)):
        result = train_head(data, finished_run, tmp_path / f"run-{data.parent.name}-{data.name}", batch_size=None)
        assert result.run.load_config().refit is refit
        assert result.metrics["val"]["n"] == count == len(read_rows(result.run.folder / "predictions_val.csv"))
    chosen = train_head(plain, finished_run, tmp_path / "chosen", refit=False)
    assert chosen.metrics["val"]["n"] < 18
    assert not (chosen.run.folder / "predictions_fitted.csv").exists()


def test_refit__the_head_is_fitted_to_all_images(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    run = train_head(close_photos, finished_run, tmp_path / "r", c_values=(0.1,)).run
    task = prepare_task(run.load_config(), Silent())
    features, ids = task.features_at(range(len(task.ids))), np.array(task.ids)
    head, _ = solve_head("logistic", (features, ids), (features, ids), (0.1,), 0)
    np.testing.assert_array_equal(load_file(run.best_path)["head.weight"], head.weight.astype(np.float32))


@pytest.mark.parametrize("split", ["train", "both"])
def test_solve_linear__is_fitted_to_the_given_images(
    close_photos: Path, finished_run: Run, tmp_path: Path, split: str
) -> None:
    config = head_config(close_photos, finished_run, tmp_path / "r", method="finetune", c_values=(0.1,))
    task = prepare_task(config, Silent())
    compute_features(task, Silent())
    places = list(range(len(task.ids))) if split == "both" else task.store.indices("train")
    found = solve_linear(task, places, Run(tmp_path / "r"), Silent())
    data = task.features_at(places), np.array(task.ids)[places]
    wanted, _ = solve_head("logistic", data, data, (0.1,), 0)
    np.testing.assert_array_equal(found.weight, wanted.weight)
    np.testing.assert_array_equal(found.bias, wanted.bias)


def test_refit__refused_where_it_has_no_meaning(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    for changes in ({"head": "mlp"}, {"augment": "flip", "views": 1}, {"bag": True}):
        with pytest.raises(ConfigError, match="refit requires a solved head"):
            train_head(photos, finished_run, tmp_path / "r", refit=True, **changes)


def test_refit__what_needs_unseen_images_refuses_the_validation_split(
    photos: Path, finished_run: Run, tmp_path: Path
) -> None:
    run = train_head(photos, finished_run, tmp_path / "r").run
    first, second = (export_run(run, tmp_path / f"{name}.onnx", Silent()).path for name in "ab")
    session = Session(first, device="cpu")
    check_unseen([session], "test")
    for refused in (
        lambda: check_unseen([session], "val"),
        lambda: merge([first, second], tmp_path / "m.onnx", Silent(), held_out=run.images("val")),
    ):
        with pytest.raises(TlError, match=r"fitted to (the validation images|them too)"):
            refused()
    assert not (tmp_path / "m.onnx").exists()


def test_refit__conformal_scores_are_out_of_fold(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    run = train_head(close_photos, finished_run, tmp_path / "r").run
    contract = export_run(run, tmp_path / "m.onnx", Silent()).contract
    assert contract.conformal is not None
    assert len(contract.conformal.scores) == len(read_predictions(run)[0]) == 42
    assert contract.conformal.source == "training and validation images, out of fold"
    assert contract.provenance.config["refit"] is True
