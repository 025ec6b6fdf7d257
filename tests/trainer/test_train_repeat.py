from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.make import (
    StopsAt,
    assert_same_run,
    equal,
    make_class_folders,
    make_config,
    make_noise,
    make_png,
    stop_and_resume,
    train_here,
    weights_of,
)
from tl.errors import RunInterrupted, TlError
from tl.progress import Silent
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_train__same_seed_same_run_with_any_workers(photos: Path, tmp_path: Path, head: str) -> None:
    changes: dict[str, Any] = {"augment": "strong", "head": head, "dropout": 0.5, "epochs": 3}
    first = train_here(photos, tmp_path / "a", workers=0, **changes).run
    again = train_here(photos, tmp_path / "b", workers=0, **changes).run
    with_workers = train_here(photos, tmp_path / "c", workers=2, **changes).run
    other = train_here(photos, tmp_path / "d", workers=0, seed=1, **changes).run
    assert_same_run(first, again)
    assert_same_run(first, with_workers)
    assert not equal(weights_of(first), weights_of(other))


@pytest.mark.parametrize("cache", ["none", "auto", "disk"])
def test_train__cache_changes_nothing(photos: Path, tmp_path: Path, cache: str) -> None:
    kept = train_here(photos, tmp_path / "a", cache="ram", augment="light").run
    assert_same_run(kept, train_here(photos, tmp_path / "b", cache=cache, augment="light").run)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["scratch", "features"])
def test_train__resumed_equals_never_interrupted(
    photos: Path, finished_run: Run, tmp_path: Path, method: str, workers: int
) -> None:
    weights = str(finished_run.folder) if method == "features" else "none"
    changes: dict[str, Any] = {
        "method": method,
        "weights": weights,
        "augment": "strong",
        "head": "mlp",
        "workers": workers,
    }
    whole = train_here(photos, tmp_path / "whole", epochs=4, **changes).run
    config = make_config(photos, tmp_path / "stopped", epochs=4, **changes)
    with pytest.raises(RunInterrupted, match="stopped: interrupted"):
        train(config, StopsAt(3))
    run = Run(tmp_path / "stopped")
    # Checkpoints are throttled: after fast epochs only the first is saved, and the second is trained again.
    kept = torch.load(run.last_path, weights_only=True)["history"]
    assert 1 <= len(kept) <= 2
    resumed = train(run.load_config(), Silent(), resume=run)
    assert resumed.run == run
    assert_same_run(run, whole)


def test_train__resumed_features_without_augmentation(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": "features", "weights": str(finished_run.folder), "head": "mlp", "epochs": 5}
    whole = train_here(photos, tmp_path / "whole", **changes).run
    assert_same_run(stop_and_resume(photos, tmp_path / "stopped", StopsAt(4), **changes), whole)


class StopsBefore(Silent):
    """Presses Ctrl-C when a task begins."""

    def __init__(self, task: str) -> None:
        self.task = task

    def start(self, task: str, total: int, unit: str) -> None:
        if task == self.task:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({"head": "linear"}, "solving the head"),
        ({"head": "svm"}, "evaluating val"),
        ({"head": "conv", "head_sizes": (8,)}, "evaluating val"),
    ],
)
def test_train__resumed_where_a_head_on_kept_features_was_stopped(
    photos: Path, finished_run: Run, tmp_path: Path, changes: dict[str, Any], task: str
) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder), **changes}
    whole = train_here(photos, tmp_path / "whole", **changes).run
    assert_same_run(stop_and_resume(photos, tmp_path / "stopped", StopsBefore(task), **changes), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"views": 3, "augment": "light"},
        {"sampler": "balanced", "class_weights": "balanced", "label_smoothing": 0.1, "head": "mlp"},
        {"normalize": "dataset"},
    ],
    ids=["views", "balanced", "dataset"],
)
def test_train__kept_features_change_nothing(
    photos: Path, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder), **changes}
    runs = []
    for cache in ("one", "two", "two"):
        monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / cache))
        runs.append(train_here(photos, tmp_path / f"run{len(runs)}", **changes).run)
    assert_same_run(runs[0], runs[1])  # both computed
    assert_same_run(runs[1], runs[2])  # computed, and read from disk


def test_train__resume_of_a_finished_run_changes_nothing(photos: Path, tmp_path: Path) -> None:
    run = train_here(photos, tmp_path / "r").run
    shutil.copytree(run.folder, tmp_path / "before")
    train(run.load_config(), Silent(), resume=run)
    assert_same_run(run, Run(tmp_path / "before"))


def test_train__resume_where_images_have_changed_is_refused(tmp_path: Path) -> None:
    # The split is redrawn on resume: a different number of images would mix training and validation.
    data = make_class_folders(tmp_path / "d", 5)
    with pytest.raises(RunInterrupted):
        train(make_config(data, tmp_path / "r", epochs=3), StopsAt(2))
    make_png(data / "blue" / "new.png", make_noise(77))
    run = Run(tmp_path / "r")
    with pytest.raises(TlError):
        train(run.load_config(), Silent(), resume=run)


def test_train__config_repeats_the_run(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    config = dataclasses.replace(finished_run.load_config(), out=str(tmp_path / "again"))
    assert_same_run(train(config, Silent()).run, finished_run)


def test_train__kept_config_repeats_from_any_folder(
    photos: Path, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()  # a folder named like an option's value
    monkeypatch.chdir(tmp_path)
    weights = Path(os.path.relpath(finished_run.folder, tmp_path))
    data = Path(os.path.relpath(photos, tmp_path))
    run = train(
        make_config(data, tmp_path / "run", method="features", augment="none", weights=str(weights)), Silent()
    ).run
    kept = run.load_config()
    assert (kept.data, kept.weights, kept.augment) == (str(photos), str(finished_run.folder), "none")
