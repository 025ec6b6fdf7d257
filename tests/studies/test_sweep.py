"""Real studies of small runs: results are kept, runs resume, and models are evaluated once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.studies.make import make_labels, make_study
from tl.errors import OutputError
from tl.studies.study import read_study
from tl.studies.study_files import check_study_folder, mark_study_folder
from tl.studies.sweep import cell_runs, hold, train_cell


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
    assert selected == rows[:1]  # the best on validation data
    assert 0 <= float(rows[0]["test_top1_accuracy"]) <= 1
    assert (rows[1]["test_top1_accuracy"], rows[2]["failed"]) == ("", "2")
    assert "no such file or folder" in done.err
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Leaderboard", "Selected", "Axes", "Failed", "Repeat"))
    assert len(list((tmp_path / "o" / "models").iterdir())) == 2

    # Second call: nothing is trained or evaluated again; failed runs stay failed unless a retry is requested.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*") if path.name == "metrics.json"}
    judged = (tmp_path / "o" / "selected.json").stat().st_mtime_ns
    again = run_tl("sweep", study, "--out", tmp_path / "o", "--json")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "o" / "selected.json").stat().st_mtime_ns == judged
    assert [row["variant"] for row in json.loads(again.out)] == ["slow", "slow", "broken"]


def test_sweep__a_folder_of_something_else_is_not_used_unasked(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study, out = make_study(tmp_path / "s.yaml", labels), tmp_path / "o"
    out.mkdir()
    (out / "leaderboard.csv").write_text("precious")
    refused = run_tl("sweep", study, "--out", out)
    assert (refused.code, f"{out}: exists and was not made by a study" in refused.err) == (1, True)
    assert "hint: --overwrite" in refused.err
    assert [path.name for path in out.iterdir()] == ["leaderboard.csv"]
    assert run_tl("sweep", study, "--out", out, "--overwrite", "--budget", "0s").code == 1  # nothing is trained
    assert json.loads((out / "study.json").read_text()) == {"study": "s"}
    other = make_study(tmp_path / "other.yaml", labels)
    refused = run_tl("sweep", other, "--out", out)
    assert (refused.code, f"{out}: is the folder of another study, 's'" in refused.err) == (1, True)


def test_check_study_folder__new_empty_own_and_older_ones(tmp_path: Path) -> None:
    out = tmp_path / "o"
    check_study_folder(out, "s")
    assert not out.exists()
    out.mkdir()
    check_study_folder(out, "s")
    mark_study_folder(out, "s")
    check_study_folder(out, "s")
    with pytest.raises(OutputError, match="of another study, 's'"):
        check_study_folder(out, "t")
    check_study_folder(out, "t", overwrite=True)
    (out / "study.json").unlink()
    (out / "sweep.lock").touch()  # made before folders were marked
    check_study_folder(out, "t")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file: give the name of a folder"):
        check_study_folder(tmp_path / "file", "s", overwrite=True)


def test_sweep__failed_evaluation_still_writes_the_leaderboard(
    labels: Path, tmp_path: Path, run_tl: RunTl, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "s.yaml", labels)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "models").touch()  # a file at the path of the model folder
    done = run_tl("sweep", study, "--out", tmp_path / "o", "--overwrite")
    assert done.code == 3
    assert "not evaluated: base seed 0:" in done.err
    assert [row["selected"] for row in rows_of(tmp_path / "o")] == ["False"]
    assert "Failed" in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")


def test_sweep__data_that_change_between_its_runs(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    data = tmp_path / "labels.csv"
    lines = [f"{labels.parent}/{line}" for line in labels.read_text(encoding="utf-8").splitlines()[1:]]
    data.write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    study = make_study(tmp_path / "s.yaml", data, grid={"lr": [0.001, 0.01]})
    run_tl("sweep", study, "--out", tmp_path / "o", "--budget", "1s")
    data.write_text("\n".join(["path,label,split", *lines[1:]]), encoding="utf-8")
    done = run_tl("sweep", study, "--out", tmp_path / "o")
    assert done.code == 1
    assert "has changed between runs of this study" in done.err


def test_sweep__retrained_run_is_evaluated_again(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels)
    run_tl("sweep", study, "--out", tmp_path / "o")
    kept = json.loads((tmp_path / "o" / "selected.json").read_text(encoding="utf-8"))
    (name,) = kept
    kept[name] |= {"score": 0.123}
    (tmp_path / "o" / "selected.json").write_text(json.dumps(kept), encoding="utf-8")
    run_tl("sweep", study, "--out", tmp_path / "o")
    assert rows_of(tmp_path / "o")[0]["test_top1_accuracy"] == "0.123"  # kept: not evaluated again
    kept[name] |= {"network": "another"}
    (tmp_path / "o" / "selected.json").write_text(json.dumps(kept), encoding="utf-8")
    run_tl("sweep", study, "--out", tmp_path / "o")
    assert rows_of(tmp_path / "o")[0]["test_top1_accuracy"] != "0.123"


def test_sweep__one_at_a_time(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels)
    with hold(tmp_path / "o"):
        done = run_tl("sweep", study, "--out", tmp_path / "o")
    assert (done.code, "another tl sweep is running here" in done.err) == (1, True)
    (tmp_path / "file").touch()
    assert run_tl("sweep", study, "--out", tmp_path / "file").code == 1


def test_train_cell__a_state_that_cannot_be_taken_up(labels: Path, tmp_path: Path) -> None:
    (run,) = cell_runs(read_study(make_study(tmp_path / "s.yaml", labels)).cells, tmp_path / "o")
    assert train_cell(run, None)
    (run.folder / "metrics.json").unlink()
    (run.folder / "last.pt").write_bytes(b"damaged")
    assert train_cell(run, None)
    assert run.state == "done"


def test_sweep__within_a_budget(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels, grid={"lr": [0.001, 0.01, 0.1]})
    done = run_tl("sweep", study, "--out", tmp_path / "o", "--budget", "1s")
    assert "the time budget is used up: 2 runs have not started" in done.err
    assert [row["selected"] for row in rows_of(tmp_path / "o")] == ["False"] * 3  # a partial study selects nothing
    assert not (tmp_path / "o" / "selected.json").exists()
    assert run_tl("sweep", study, "--out", tmp_path / "o").code == 0
    assert [row["seeds"] for row in rows_of(tmp_path / "o")] == ["1"] * 3
    refused = run_tl("sweep", study, "--budget", "soon")
    assert "expected a time such as 2h" in refused.err


def test_sweep__without_test_evaluation(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels)
    run_tl("sweep", study, "--out", tmp_path / "o", "--no-test")
    (row,) = rows_of(tmp_path / "o")
    assert (row["selected"], row["test_top1_accuracy"]) == ("True", "")
    assert float(row["model_mb"]) > 0.1
    run_tl("sweep", study, "--out", tmp_path / "o")
    assert rows_of(tmp_path / "o")[0]["test_top1_accuracy"] != ""


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
    study = make_study(tmp_path / "s.yaml", labels, grid={"lr": [0.001, 0.01, 0.1]}, test=False)
    command = [sys.executable, "-m", "tl", "sweep", str(study), "--out", str(tmp_path / "o"), "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--set", "epochs=60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "o").rglob("history.csv"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int(children_of(process)[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 3, errors
    assert sorted(row["failed"] for row in rows_of(tmp_path / "o")) == ["0", "0", "1"]
    assert "its process was killed" in errors


@pytest.mark.slow
def test_sweep__workers_do_not_outlive_it(labels: Path, tmp_path: Path) -> None:
    study = make_study(tmp_path / "s.yaml", labels, test=False)
    command = [sys.executable, "-m", "tl", "sweep", str(study), "--out", str(tmp_path / "o"), "--set", "epochs=100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "o").rglob("history.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children_of(process)
    assert workers
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_sweep__interrupted_saves_what_it_has(labels: Path, tmp_path: Path) -> None:
    study = make_study(tmp_path / "s.yaml", labels, test=False)
    command = [sys.executable, "-m", "tl", "sweep", str(study), "--out", str(tmp_path / "o"), "--set", "epochs=100000"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "o").rglob("last.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # to the process alone, as an editor's stop button does
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run the same command again to resume" in errors


def heed_interrupts() -> None:
    """Enable interrupts: a background shell makes tests ignore them, and children inherit that setting."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children_of(process: subprocess.Popen[Any]) -> list[str]:
    """The training processes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
