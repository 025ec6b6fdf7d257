from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.trainer.make import make_config
from tl.errors import ConfigError
from tl.progress import Silent
from tl.studies.compare import compare_runs
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


def test_compare_runs__shows_what_differs(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    other = train(make_config(photos, tmp_path / "other", epochs=1, lr=0.002, seed=1), Silent()).run
    rows = compare_runs([finished_run, other])
    metrics = json.loads((other.folder / "metrics.json").read_text(encoding="utf-8"))
    assert rows[1]["val_top1_accuracy"] == metrics["val"]["top1_accuracy"]
    assert rows[1]["val_top1_accuracy_low"] == metrics["val"]["ci_low"]
    assert rows[1]["test_top1_accuracy"] is None
    assert (rows[1]["epochs"], rows[1]["lr"], rows[1]["seed"]) == (1, 0.002, 1)
    assert not {"data", "backbone", "out"} & rows[0].keys()
    assert [row["same_data"] for row in rows] == [True, False]  # the seed changes the split


def test_compare__by_the_command_line(finished_run: Run, run_tl: RunTl, tmp_path: Path) -> None:
    done = run_tl("compare", finished_run.folder, finished_run.folder)
    assert [row["same_data"] for row in done.rows()] == ["True", "True"]
    assert done.code == 0
    assert run_tl("compare", tmp_path).code == 1
    partly = run_tl("compare", finished_run.folder, tmp_path)
    assert (partly.code, len(partly.rows())) == (0, 1)
    assert f"left out: {tmp_path}" in partly.err


def test_compare_runs__of_different_tasks(finished_run: Run, spot_run: Run) -> None:
    with pytest.raises(ConfigError, match="different tasks"):
        compare_runs([finished_run, spot_run])
