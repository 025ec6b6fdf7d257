from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.studies.make import make_labels, make_study
from tests.studies.test_leaderboard import make_run
from tl.errors import ConfigError
from tl.studies.leaderboard import build_settings, next_rung
from tl.studies.plan import Search, draw_points, rung_epochs
from tl.studies.study import Cell, read_study
from tl.studies.sweep import CellRun
from tl.trainer.config import TrainConfig

RANGES = {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "batch_size": {"low": 8, "high": 32, "step": 8}}
RANGES |= {"optimizer": ["sgd", "adam"], "dropout": {"low": 0.0, "high": 0.5}}


def test_draw_points__in_their_ranges_and_the_same_again() -> None:
    search = Search(40, RANGES, None, 0)
    points = draw_points(search)
    assert points == draw_points(search) != draw_points(Search(40, RANGES, None, 1))
    assert {point["optimizer"] for point in points} == {"sgd", "adam"}
    assert {point["batch_size"] for point in points} == {8, 16, 24, 32}
    rates = sorted(point["lr"] for point in points)
    assert 1e-4 <= rates[0] < 1e-3 < rates[20] < 1e-2 < rates[-1] <= 0.1  # uniform on a log scale
    assert all(point["lr"] == float(f"{point['lr']:.3g}") for point in points)


@pytest.mark.parametrize(
    ("trials", "factor", "epochs", "rungs"),
    [(27, 3, 27, [1, 3, 9, 27]), (9, 3, 10, [1, 3, 10]), (4, 2, 100, [25, 50, 100]), (1, 3, 5, [5]), (9, None, 7, [7])],
)
def test_rung_epochs(trials: int, factor: int | None, epochs: int, rungs: list[int]) -> None:
    assert rung_epochs(Search(trials, RANGES, factor, 0), epochs) == rungs


def make_round(folder: Path, epochs: int, accuracies: dict[float, float | None]) -> list[CellRun]:
    runs = []
    for lr, accuracy in accuracies.items():
        made = make_run(folder, "a", lr, 0, accuracy)
        cell = Cell("a", (("lr", lr), ("epochs", epochs)), 0, TrainConfig("photos", lr=lr, epochs=epochs))
        run = CellRun(cell, folder / cell.name)
        made.folder.rename(run.folder) if accuracy is not None else made.failure_path.rename(run.failure_path)
        runs.append(run)
    return runs


def test_next_rung__the_best_go_on(tmp_path: Path) -> None:
    search = Search(6, {"lr": RANGES["lr"]}, 3, 0)
    accuracies = {0.1: 0.5, 0.2: 0.9, 0.3: None, 0.4: 0.7, 0.5: 0.8, 0.6: 0.6}
    runs = make_round(tmp_path, 3, accuracies)
    cells = next_rung(build_settings(runs, "classification"), search, {"a": 9})
    assert [(cell.config.lr, cell.config.epochs, dict(cell.point)["epochs"]) for cell in cells] == [
        *((0.2, 9, 9), (0.5, 9, 9)),
    ]
    runs += make_round(tmp_path, 9, {0.2: 0.95, 0.5: 0.9})
    assert next_rung(build_settings(runs, "classification"), search, {"a": 9}) == []


@pytest.mark.parametrize(
    ("search", "fault"),
    [
        ({"trials": 0, "ranges": {"lr": [0.1]}}, "trials must be a whole number of at least 1"),
        ({"trials": 3}, "ranges must be"),
        ({"trials": 3, "ranges": {"lr": {"low": 1}}}, "range of lr must be a list of values or have low and high"),
        ({"trials": 3, "ranges": {"lr": {"low": 1, "high": 0.1}}}, "low must be a number below high"),
        ({"trials": 3, "ranges": {"lr": {"low": 0, "high": 1, "log": True}}}, "low must be above 0"),
        ({"trials": 3, "ranges": {"lr": {"low": 1, "high": 2, "lag": True}}}, r"unknown key 'lag' \(nearest: 'log'\)"),
        ({"trials": 3, "method": "grid", "ranges": {"lr": [0.1]}}, "method must be random or halving"),
        ({"trials": 3, "trails": 3, "ranges": {"lr": [0.1]}}, r"unknown key 'trails' \(nearest: 'trials'\)"),
        ({"trials": 3, "ranges": {"rate": [0.1]}}, "unknown option 'rate'"),
        (3, "search must have trials and ranges"),
    ],
)
def test_read_study__faulty_search(tmp_path: Path, search: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_study(make_study(tmp_path / "s.yaml", tmp_path, search=search))


def test_read_study__halving_needs_epochs(tmp_path: Path) -> None:
    search = {"trials": 3, "method": "halving", "ranges": {"c_values": [[0.1], [1.0]]}}
    variants = {"a": {"method": "features", "head": "svm", "epochs": None, "weights": str(tmp_path)}}
    with pytest.raises(ConfigError, match="halving requires epochs"):
        read_study(make_study(tmp_path / "s.yaml", tmp_path, search=search, variants=variants))


@pytest.mark.slow
def test_sweep__by_halving(tmp_path: Path, run_tl: RunTl) -> None:
    search = {"trials": 3, "method": "halving", "ranges": {"lr": {"low": 0.0001, "high": 0.01, "log": True}}}
    study = make_study(tmp_path / "s.yaml", make_labels(tmp_path), search=search, test=False)
    words = ("sweep", study, "--out", tmp_path / "o", "--set", "epochs=3")
    done = run_tl(*words)
    assert done.code == 0, done.err
    assert "1 runs of 3 continue for more epochs" in done.err
    with (tmp_path / "o" / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["epochs"] for row in rows) == ["1", "1", "1", "3"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("metrics.json")}
    run_tl(*words)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("metrics.json")} == kept
