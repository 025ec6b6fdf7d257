"""Self-training: by hand on clouds of points, and a whole run with a folder of images without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from tests.trainer.make import Listener, make_class_folders, make_config, make_noise, make_png, read_rows
from tl.data.splits import cut_folds
from tl.errors import ConfigError, DataError
from tl.progress import Silent
from tl.trainer.heads.self_training import SHARE, self_train, self_train_folds
from tl.trainer.heads.solvers import cross_validate, solve_with
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

pytestmark = pytest.mark.usefixtures("fresh_cache")


def make_moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two long parallel clouds (count, 6): labels of a few points say little about their direction."""
    rng = np.random.default_rng(seed)
    ids = np.arange(count) % 2
    features = rng.normal(0, 0.25, (count, 6))
    features[:, 0] += rng.normal(0, 3, count)
    features[:, 1] += 2.0 * ids - 1
    return features.astype(np.float32), ids


def test_self_train__is_a_fit_to_labels_and_the_most_certain_answers() -> None:
    features, ids = make_moons(20, 0)
    unlabeled, _ = make_moons(200, 1)
    head = solve_with("logistic", (features, ids), 0.1, 0)
    found = self_train("logistic", head, (features, ids), unlabeled, 0)
    logits = head.logits(unlabeled)
    margins = np.abs(np.tanh((logits[:, 1] - logits[:, 0]) / 2))  # p1 - p0 of two classes
    certain = margins >= np.quantile(margins, 1 - SHARE)
    assert certain.sum() == 180
    both = np.concatenate([features, unlabeled[certain]]), np.concatenate([ids, logits.argmax(axis=1)[certain]])
    wanted = solve_with("logistic", both, 0.1, 0)
    np.testing.assert_allclose(found.weight, wanted.weight, rtol=1e-6)
    assert found.c == 0.1


def test_self_train__learns_from_images_without_labels() -> None:
    unlabeled, _ = make_moons(600, 1)
    test, true_ids = make_moons(2000, 2)
    before, after = [], []
    for seed in range(10, 20):
        features, ids = make_moons(8, seed)
        head = solve_with("logistic", (features, ids), 10.0, 0)
        again = self_train("logistic", head, (features, ids), unlabeled, 0)
        before.append((head.logits(test).argmax(axis=1) == true_ids).mean())
        after.append((again.logits(test).argmax(axis=1) == true_ids).mean())
    assert np.mean(after) > np.mean(before)


def test_self_train_folds__held_out_labels_take_no_part() -> None:
    """Held-out logits stay the same when the held-out labels change."""
    features, ids = make_moons(60, 0)
    unlabeled, _ = make_moons(100, 1)
    folds = cut_folds(ids, [str(i) for i in range(60)], [""] * 60, 3, 0)
    found = cross_validate("logistic", (features, ids), folds, [0.1], 0)
    first = self_train_folds("logistic", found, (features, ids), folds, unlabeled, 0)
    own, held = folds[0]
    changed = ids.copy()
    changed[held] = 1 - changed[held]
    second = self_train_folds("logistic", found, (features, changed), folds, unlabeled, 0)
    np.testing.assert_allclose(second.held_out[held], first.held_out[held])
    assert np.abs(second.held_out[own] - first.held_out[own]).max() > 1e-3
    head = LogisticRegression(C=0.1, max_iter=1000)
    assert head.fit(features, ids).score(features, ids) > 0.9  # the labels themselves can be learned


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two classes of six images, and 20 images without labels, two of which are copies of labeled ones."""
    labeled = make_class_folders(tmp_path / "photos", classes=("red", "blue"))
    unlabeled = tmp_path / "unlabeled"
    for i in range(18):
        rgb = (200, 50, 40) if i % 2 else (40, 60, 190)
        make_png(unlabeled / f"{i}.png", make_noise(500 + i, rgb))
    for i, path in enumerate(sorted(labeled.rglob("*.png"))[:2]):
        (unlabeled / f"copy{i}.png").write_bytes(path.read_bytes())
    (unlabeled / "broken.png").write_bytes(b"not an image")
    return labeled, unlabeled


def head_options(weights: Run) -> dict[str, object]:
    return {"method": "features", "weights": str(weights.folder), "epochs": None, "optimizer": None, "lr": None}


def test_train__with_unlabeled_images(folders: tuple[Path, Path], finished_run: Run, tmp_path: Path) -> None:
    labeled, unlabeled = folders
    listener = Listener()
    options = head_options(finished_run)
    config = make_config(labeled, tmp_path / "run", unlabeled=str(unlabeled), **options)
    run = train(config, listener).run
    plain = train(make_config(labeled, tmp_path / "plain", **options), Silent()).run
    said = "\n".join(listener.lines)
    assert "1 images cannot be read and are left out" in said
    assert "self-training on 18 images without labels" in said
    assert len(read_rows(run.folder / "manifest.csv")) == 12  # labels are those that people gave
    weights = [load_file(one.best_path)["head.weight"] for one in (run, plain)]
    assert np.abs(weights[0] - weights[1]).max() > 1e-4
    assert run.load_config().unlabeled == str(unlabeled)
    assert json.loads((run.folder / "metrics.json").read_text())["val"]["n"] == 12


@pytest.mark.parametrize("changes", [{"head": "svm"}, {"head": "mlp"}, {"method": "finetune"}, {"bag": True}])
def test_train__refuses_unlabeled_images_where_they_are_not_used(
    folders: tuple[Path, Path], finished_run: Run, tmp_path: Path, changes: dict[str, object]
) -> None:
    labeled, unlabeled = folders
    options = {**head_options(finished_run), **changes}
    with pytest.raises(ConfigError, match="unlabeled requires a logistic head"):
        train(make_config(labeled, tmp_path / "run", unlabeled=str(unlabeled), **options), Silent())


def test_train__refuses_a_folder_without_other_images(
    folders: tuple[Path, Path], finished_run: Run, tmp_path: Path
) -> None:
    labeled, _ = folders
    options = head_options(finished_run)
    with pytest.raises(DataError, match="no readable images besides the labeled ones"):
        train(make_config(labeled, tmp_path / "run", unlabeled=str(labeled), **options), Silent())
