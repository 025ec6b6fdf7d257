"""Training that is killed at any moment, or runs out of disk space, leaves intact files and resumes exactly."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from tests.full_disk import largest_file
from tests.trainer.make import assert_same_run, make_class_folders, timeless_file, train_here
from tl.cli import main
from tl.progress import Silent
from tl.trainer.run_folder.run import UNFINISHED, Run
from tl.trainer.train import train

# Everything stateful: averaged weights, momentum, a history-dependent schedule, augmentation, dropout, mixing.
OPTIONS: dict[str, Any] = {
    "image_size": 64,
    "augment": "strong",
    "workers": 1,
    "batch_size": 5,
    "optimizer": "adamw",
    "lr": 0.003,
    "ema_decay": 0.9,
    "schedule": "plateau",
    "drop_epochs": 2,
    "drop_factor": 0.5,
    "head": "mlp",
    "head_sizes": (16, 8),
    "mixup": 0.2,
    "monitor": "val_loss",
}
# Takes several seconds on two slow cores, and so writes several checkpoints, which are at least two seconds apart.
EPOCHS = 40
SECONDS = 120  # a process that takes longer hangs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("data") / "photos", 6, hw=(60, 70))


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run; read only."""
    return train_here(photos, tmp_path_factory.mktemp("whole") / "run", epochs=EPOCHS, **OPTIONS).run


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tl", "train", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def flags(**options: Any) -> Iterator[str]:
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            yield from (f"--{name.replace('_', '-')}", str(one))


def kill_when(process: subprocess.Popen[bytes], has_come: Callable[[], bool], delay: float = 0.0) -> None:
    """Send SIGKILL once a condition holds: nothing is closed, flushed or cleaned up."""
    end = time.monotonic() + SECONDS
    while not has_come():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(delay)
    assert process.poll() is None, "the training ended before it could be killed"
    process.kill()
    process.wait()


def changes_of(path: Path) -> Callable[[], bool]:
    before = path.stat().st_mtime_ns if path.exists() else 0
    return lambda: path.exists() and path.stat().st_mtime_ns != before


def assert_whole(run: Run) -> None:
    """Check that every file under its final name can be read completely."""
    if run.last_path.exists():
        state = torch.load(run.last_path, weights_only=True)
        assert len(state["history"]) >= 1
    if (run.folder / "history.csv").exists():
        assert [int(row[0]) for row in timeless_file(run.folder / "history.csv")]
    assert run.load_config().epochs == EPOCHS
    assert not run.best_path.exists()
    assert not (run.folder / "metrics.json").exists()  # this file marks a finished run


# Each training process is killed once: before anything is saved, soon after the first epochs, while a checkpoint is
# being written, and between a checkpoint and the files that follow it.
MOMENTS: list[tuple[Callable[[Run], Callable[[], bool]], float]] = [
    (lambda run: run.config_path.exists, 0.0),
    (lambda run: run.last_path.exists, 0.5),
    (lambda run: lambda: any(run.folder.glob(".last.pt.*.partial")), 0.0),
    (lambda run: changes_of(run.folder / "history.csv"), 0.0),
]


def test_train__killed_again_and_again_is_as_never_killed(photos: Path, undisturbed: Run, tmp_path: Path) -> None:
    run, chance = Run(tmp_path / "run"), random.Random(4)
    plain = {"method": "scratch", "backbone": "smallcnn", "device": "cpu", "threads": 1, "epochs": EPOCHS}
    process = start(photos, *flags(**{**plain, **OPTIONS}), "--out", run.folder)
    for moment, delay in MOMENTS:
        kill_when(process, moment(run), chance.uniform(0, delay))
        assert_whole(run)
        process = start("--resume", run.folder)
    assert process.wait(SECONDS) == 0
    assert timeless_file(run.folder / "history.csv") == timeless_file(undisturbed.folder / "history.csv")
    assert run.best_path.read_bytes() == undisturbed.best_path.read_bytes()


def copied(run: Run, out: Path) -> Run:
    shutil.copytree(run.folder, out)
    return Run(out)


def forget_results(run: Run) -> None:
    for name in ("best.safetensors", "metrics.json", "predictions_val.csv"):
        (run.folder / name).unlink()


def resume(run: Run) -> None:
    train(run.load_config(), Silent(), resume=run)


@pytest.fixture(scope="module")
def short(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three epochs; read only."""
    return train_here(photos, tmp_path_factory.mktemp("short") / "run", epochs=3, **OPTIONS).run


def test_resume__killed_after_the_last_epoch(short: Run, tmp_path: Path) -> None:
    run = copied(short, tmp_path / "run")
    forget_results(run)
    resume(run)
    assert_same_run(run, short)


@pytest.mark.parametrize("kept", [0, 2])
def test_resume__killed_between_the_last_state_and_its_history(short: Run, tmp_path: Path, kept: int) -> None:
    # last.pt of the last epoch was written, but history.csv was not: it has fewer epochs, or is missing.
    run = copied(short, tmp_path / "run")
    forget_results(run)
    history = run.folder / "history.csv"
    lines = history.read_text(encoding="utf-8").splitlines(keepends=True)
    history.write_text("".join(lines[: kept + 1]), encoding="utf-8") if kept else history.unlink()
    resume(run)
    assert_same_run(run, short)


def test_resume__half_written_files_count_for_nothing(short: Run, tmp_path: Path) -> None:
    run = copied(short, tmp_path / "run")
    forget_results(run)
    for name in ("last.pt", "best.safetensors", "metrics.json", "config.yaml", "history.csv", "manifest.csv"):
        (run.folder / f".{name}.12345.partial").write_bytes(b"half a fi")
    resume(run)
    for path in run.folder.glob(".*.partial"):
        path.unlink()
    assert_same_run(run, short)


def test_export_and_weights__ignore_a_partially_written_checkpoint(short: Run, tmp_path: Path) -> None:
    run = copied(short, tmp_path / "run")
    run.best_path.rename(run.folder / ".best.safetensors.12345.partial")
    err = tl("export", run.folder, "-o", tmp_path / "m.onnx")
    assert err == f"tl: {run.folder}: contains no best.safetensors: {UNFINISHED}\n"
    err = tl("train", "photos", "--weights", run.folder, "--backbone", "smallcnn", "--out", tmp_path / "new")
    assert err.startswith("tl: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "m.onnx").exists()


def tl(*words: object) -> str:
    """The stderr of `tl` when it fails in this process."""
    err = StringIO()
    argv = patch.object(sys, "argv", ["tl", *map(str, words)])
    with argv, redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    return err.getvalue()


@pytest.mark.parametrize(("size", "name"), [(100, "config.yaml"), (100_000, "last.pt")])
def test_train__full_disk(photos: Path, short: Run, tmp_path: Path, size: int, name: str) -> None:
    run = Run(tmp_path / "run")
    plain = {"method": "scratch", "backbone": "smallcnn", "device": "cpu", "threads": 1, "epochs": 3}
    with largest_file(size):
        err = tl("train", photos, *flags(**{**plain, **OPTIONS}), "--out", run.folder)
    lines = err.splitlines()
    assert lines[-1] == f"tl: {run.folder}/{name}: cannot be written (File too large)"
    assert sum(line.startswith("tl: ") for line in lines) == 1
    assert "Traceback" not in err
    assert not list(run.folder.glob("*.partial")) + list(run.folder.glob(".*.partial"))
    assert not (run.folder / name).exists()
    if run.config_path.exists():  # resumes once there is space again
        resume(run)
        assert_same_run(run, short)


def test_resume__full_disk_keeps_the_last_good_state(photos: Path, short: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(short.folder, run.folder)
    forget_results(run)
    before = run.last_path.read_bytes()
    with largest_file(100_000):
        err = tl("train", "--resume", run.folder)
    assert err.splitlines()[-1] == f"tl: {run.folder}/best.safetensors: cannot be written (File too large)"
    assert run.last_path.read_bytes() == before
    assert not run.best_path.exists()
    resume(run)
    assert_same_run(run, short)
    assert load_file(run.best_path).keys() == load_file(short.best_path).keys()
