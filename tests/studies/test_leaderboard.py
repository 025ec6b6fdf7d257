from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.studies.make import make_study
from tl.studies.leaderboard import best_of_variants, build_settings, effects, estimate
from tl.studies.report.page import Chart
from tl.studies.report.sweep_page import Outcome, build_sweep_page
from tl.studies.study import Cell, read_study
from tl.studies.study_files import leaderboard_rows
from tl.studies.sweep import CellRun
from tl.trainer.config import TrainConfig


def make_run(folder: Path, variant: str, lr: float, seed: int, accuracy: float | None) -> CellRun:
    """A finished run that has only metrics; a failed one for None."""
    cell = Cell(variant, (("lr", lr),), seed, TrainConfig("photos", lr=lr, seed=seed))
    run = CellRun(cell, folder / cell.name)
    if accuracy is None:
        run.failure_path.write_text("why\nbecause\n", encoding="utf-8")
        return run
    run.folder.mkdir()
    val = {"top1_accuracy": accuracy, "ci_low": accuracy - 0.1, "ci_high": accuracy + 0.1}
    metrics = {"best_epoch": 3 + seed, "train_seconds": 10.0 + seed, "trained_parameters": 7, "val": val}
    (run.folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[CellRun]:
    rows = [("a", 0.1, 0.5, 0.7), ("a", 0.2, 0.9, None), ("b", 0.1, 0.8, 0.8), ("c", 0.1, None, None)]
    return [make_run(tmp_path, v, lr, seed, accuracies[seed]) for v, lr, *accuracies in rows for seed in (0, 1)]


def test_build_settings__ranked_by_validation(runs: list[CellRun]) -> None:
    settings = build_settings(runs, "classification")
    assert [setting.name for setting in settings] == ["a lr=0.2", "b lr=0.1", "a lr=0.1", "c lr=0.1"]
    a = settings[2]
    assert (a.best_epoch, a.train_seconds, a.trained_parameters, a.failed) == (3.5, 10.5, 7, 0)
    assert a.val.mean == pytest.approx(0.6)
    # Two values 0.1 from their mean: s = 0.1414, t(1) = 12.706, half-width 1.27.
    assert (a.val.low, a.val.high) == (0.0, 1.0)
    assert settings[3].val is None
    assert settings[0].failed == 1


def test_best_of_variants__whole_settings_first(runs: list[CellRun]) -> None:
    chosen = best_of_variants(build_settings(runs, "classification"))
    # a lr=0.2 is better, but only by one lucky seed of two.
    assert [setting.name for setting in chosen] == ["b lr=0.1", "a lr=0.1"]


def test_best_of_variants__values_of_an_axis_apart(runs: list[CellRun]) -> None:
    chosen = best_of_variants(build_settings(runs, "classification"), apart=["lr"])
    assert sorted(setting.name for setting in chosen) == ["a lr=0.1", "a lr=0.2", "b lr=0.1"]


def test_build_settings__less_error_is_better(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", lr, 0, error) for lr, error in ((0.1, 9.0), (0.2, 4.0))]
    for run in runs:
        path = run.folder / "metrics.json"
        path.write_text(path.read_text(encoding="utf-8").replace("top1_accuracy", "error_px"), encoding="utf-8")
    assert [setting.name for setting in build_settings(runs, "landmarks")] == ["a lr=0.2", "a lr=0.1"]


def test_effects__by_value(runs: list[CellRun]) -> None:
    found = effects(build_settings(runs, "classification"), "lr")
    assert [(value, count) for value, _, count in found] == [("0.1", 2), ("0.2", 1)]
    assert found[0][1] == pytest.approx((0.6 + 0.8) / 2)


def test_estimate__of_one_and_of_three() -> None:
    assert estimate([0.5], (0.4, 0.6)).low == 0.4
    assert estimate([0.5, 0.5], (0.4, 0.6)).low == 0.4  # equal seeds do not show a spread
    three = estimate([0.90, 0.92, 0.94])
    # scipy.stats.t.interval(0.95, 2, 0.92, scipy.stats.sem([...])) by hand: 4.3027 * 0.02 / sqrt(3)
    assert (three.low, three.high) == (pytest.approx(0.92 - 0.049683, abs=1e-5), pytest.approx(0.969683, abs=1e-5))


def test_cell_run__says_why_it_failed(runs: list[CellRun]) -> None:
    assert [run.error for run in runs if run.state == "failed"] == ["because"] * 3
    assert replace(runs[0]).state == "done"


@pytest.mark.parametrize(("known", "names"), [(3, ["a lr=0.2", "b lr=0.1", "a lr=0.1"]), (2, ["b lr=0.1", "a lr=0.1"])])
def test_sweep_page__cost_of_known_training_times(
    runs: list[CellRun], tmp_path: Path, known: int, names: list[str]
) -> None:
    """A setting of unknown training time is not drawn as if it took none."""
    study = read_study(make_study(tmp_path / "s.yaml", tmp_path))
    settings = build_settings(runs, "classification")
    settings = [*(replace(each, train_seconds=None) for each in settings[: 3 - known]), *settings[3 - known :]]
    rows = leaderboard_rows(study, settings, [])
    page = build_sweep_page(study, Outcome(settings, [], rows, tested=False), "tl sweep s.yaml")
    (chart,) = [block for section in page.sections if section.title == "Cost" for block in section.blocks]
    assert isinstance(chart, Chart)
    assert [name for name in ("a lr=0.2", "b lr=0.1", "a lr=0.1") if f"{name} 0." in chart.svg] == names


def test_sweep_page__no_cost_of_one_known_training_time(runs: list[CellRun], tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path / "s.yaml", tmp_path))
    settings = build_settings(runs, "classification")
    settings = [settings[0], *(replace(each, train_seconds=None) for each in settings[1:])]
    rows = leaderboard_rows(study, settings, [])
    page = build_sweep_page(study, Outcome(settings, [], rows, tested=False), "tl sweep s.yaml")
    assert "Cost" not in [section.title for section in page.sections]
