from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.studies.make import make_labels, make_study
from tl.studies.estimate import estimate_seconds
from tl.studies.study import read_study
from tl.studies.sweep import CellRun, cell_runs


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labels(tmp_path_factory.mktemp("data"))


def make_runs(folder: Path, labels: Path, **changes: Any) -> list[CellRun]:
    study = read_study(make_study(folder / "s.yaml", labels, seeds=[0], **changes))
    return cell_runs(study.cells, folder / "out")


def test_estimate_seconds__by_epochs(labels: Path, tmp_path: Path) -> None:
    (short, long) = make_runs(tmp_path, labels, variants={"a": {"grid": {"epochs": [2, 6]}, "method": "scratch"}})
    assert estimate_seconds([short]) > 0
    assert estimate_seconds([long]) == pytest.approx(3 * estimate_seconds([short]))
    assert estimate_seconds([short, long]) == pytest.approx(4 * estimate_seconds([short]))


def test_estimate_seconds__features_are_computed_once(labels: Path, tmp_path: Path) -> None:
    heads = make_runs(
        tmp_path, labels, variants={"a": {"method": "features", "weights": "imagenet", "grid": {"lr": [0.1, 0.2, 0.3]}}}
    )
    assert len(heads) == 3
    assert estimate_seconds(heads) == estimate_seconds(heads[:1]) > 0


def test_estimate_seconds__uses_the_measured_time_of_finished_runs(labels: Path, tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path / "s.yaml", labels, variants={"a": {"method": "scratch"}}, seeds=[0, 1, 2]))
    runs = cell_runs(study.cells, tmp_path / "out")
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "metrics.json").write_text(json.dumps({"train_seconds": 1000.0}), encoding="utf-8")
    assert estimate_seconds(runs) == 2000
