"""Real studies of small runs: what is kept, what goes on, what is judged once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.studies.make import make_labels, make_study


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labels(tmp_path_factory.mktemp("data"))


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_sweep__from_file_to_page(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    variants = {"slow": {"grid": {"lr": [0.0001, 0.01]}}, "broken": {"weights": "/nowhere.pth", "method": "finetune"}}
    study = make_study(tmp_path / "s.yaml", labels, variants=variants, seeds=[0, 1])
    plan = run_tl("sweep", study, "--out", tmp_path / "o", "--dry-run")
    assert plan.code == 0
    assert plan.out.splitlines()[0] == "open\tslow lr=0.0001\tseed 0"
    assert not (tmp_path / "o").exists()
    done = run_tl("sweep", study, "--out", tmp_path / "o")
    assert done.code == 3  # some runs failed
    rows = rows_of(tmp_path / "o")
    assert done.out == (tmp_path / "o" / "leaderboard.csv").read_text(encoding="utf-8")
    assert [row["seeds"] for row in rows] == ["2", "2", "0"]
    selected = [row for row in rows if row["selected"] == "True"]
    assert [row["variant"] for row in selected] == ["slow"]
    assert selected == rows[:1]  # the best by validation
    assert 0 <= float(rows[0]["test_top1_accuracy"]) <= 1
    assert (rows[1]["test_top1_accuracy"], rows[2]["failed"]) == ("", "2")
    assert "no such file or folder" in done.err
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Leaderboard", "Selected", "Axes", "Failed", "Repeat"))
    assert len(list((tmp_path / "o" / "models").iterdir())) == 2

    # Again: nothing is trained, nothing judged anew, failed runs stay unless they are asked for.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*") if path.name == "metrics.json"}
    judged = (tmp_path / "o" / "selected.json").stat().st_mtime_ns
    again = run_tl("sweep", study, "--out", tmp_path / "o", "--json")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "o" / "selected.json").stat().st_mtime_ns == judged
    assert [row["variant"] for row in json.loads(again.out)] == ["slow", "slow", "broken"]


def test_sweep__within_a_budget(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels, grid={"lr": [0.001, 0.01, 0.1]})
    done = run_tl("sweep", study, "--out", tmp_path / "o", "--budget", "0.01s")
    assert "the time is up: 2 runs are not begun" in done.err
    assert [row["selected"] for row in rows_of(tmp_path / "o")] == ["False"] * 3  # a part has selected nothing
    assert not (tmp_path / "o" / "selected.json").exists()
    assert run_tl("sweep", study, "--out", tmp_path / "o").code == 0
    assert [row["seeds"] for row in rows_of(tmp_path / "o")] == ["1"] * 3
    refused = run_tl("sweep", study, "--budget", "soon")
    assert "expected a time such as 2h" in refused.err


def test_sweep__without_a_look_at_test(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels)
    run_tl("sweep", study, "--out", tmp_path / "o", "--no-test")
    (row,) = rows_of(tmp_path / "o")
    assert (row["selected"], row["test_top1_accuracy"]) == ("True", "")
    assert float(row["model_mb"]) > 0.1
    run_tl("sweep", study, "--out", tmp_path / "o")
    assert rows_of(tmp_path / "o")[0]["test_top1_accuracy"] != ""


@pytest.mark.slow
def test_sweep__killed_goes_on(labels: Path, tmp_path: Path) -> None:
    study = make_study(tmp_path / "s.yaml", labels, grid={"lr": [0.001, 0.01, 0.03, 0.1]}, test=False)
    command = [sys.executable, "-m", "tl", "sweep", str(study), "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "o").rglob("metrics.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("metrics.json")}
    assert 1 <= len(first) < 4
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert [row["seeds"] for row in rows_of(tmp_path / "o")] == ["1"] * 4
    assert "failed" not in done.stderr


@pytest.mark.slow
def test_sweep__several_at_once_and_one_of_them_killed(labels: Path, tmp_path: Path) -> None:
    # A run of many epochs is killed once; it gets another chance alone, and the others are not marked as failed.
    study = make_study(tmp_path / "s.yaml", labels, grid={"lr": [0.001, 0.01, 0.1]}, test=False)
    command = [sys.executable, "-m", "tl", "sweep", str(study), "--out", str(tmp_path / "o"), "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--set", "epochs=100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "o").rglob("history.csv"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert [row["failed"] for row in rows_of(tmp_path / "o")] == ["0"] * 3
