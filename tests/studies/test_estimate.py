from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.runtime.labeling.exports import choice, key_point, save_json, save_photos, task
from tests.studies.make import make_labels, make_study
from tests.trainer.make import make_config
from tl.progress import Silent
from tl.studies.estimate import EXPORT_SECONDS, _counts, estimate_after, estimate_seconds
from tl.studies.selection import LATENCY_SECONDS
from tl.studies.study import read_study
from tl.studies.sweep import CellRun, cell_runs
from tl.trainer.options import resolve
from tl.trainer.train import train


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


def test_estimate_seconds__classes_of_a_file_that_has_points_too(tmp_path: Path) -> None:
    save_photos(tmp_path, [f"{i}.png" for i in range(10)])
    answers = [[choice("cat" if i % 2 else "dog"), *([] if i else [key_point("tip", 5, 5)])] for i in range(10)]
    path = save_json(tmp_path / "x.json", [task(i, f"{i}.png", each) for i, each in enumerate(answers)])
    [run] = make_runs(tmp_path, path, variants={"a": {"task": "classification", "method": "scratch"}})
    assert estimate_seconds([run]) > 0  # by its points, there is one image and nothing to hold out


def test_count_images__with_several_labels_as_a_run_splits_them(tmp_path: Path) -> None:
    """Read as classes, each of the sets of labels would be a class, most of them of one image."""
    save_photos(tmp_path, [f"{i}.png" for i in range(20)])
    rows = "".join(f"{i}.png, {', '.join(str((i + 1) >> k & 1) for k in range(4))}\n" for i in range(20))
    path = tmp_path / "_classes.csv"
    path.write_text(f"filename, ant, bee, cat, dog\n{rows}", encoding="utf-8")
    config = make_config(path, tmp_path / "run", image_size=32, epochs=1, augment="none")
    splits = Counter(row["split"] for row in train(config, Silent()).run.rows("manifest.csv"))
    assert resolve(config).task == "multilabel"
    assert _counts(resolve(config)) == splits


def test_count_images__of_columns_of_labels_and_numbers(tmp_path: Path) -> None:
    save_photos(tmp_path, [f"{i}.png" for i in range(20)])
    rows = "".join(f"{i}.png,{i % 2},{int(i < 10)},{i / 3:.2f}\n" for i in range(20))
    path = tmp_path / "t.csv"
    path.write_text(f"path,cat,dog,age\n{rows}", encoding="utf-8")
    for kind, target in (("multilabel", ("cat", "dog")), ("regression", ("age",))):
        config = make_config(path, tmp_path / "run", task=kind, target=target)
        assert _counts(resolve(config)).total() == 20


def test_estimate_after__models_that_will_be_selected(labels: Path, tmp_path: Path) -> None:
    variants = {name: {"method": "scratch", "grid": {"lr": rates}} for name, rates in (("a", [1, 2]), ("b", [3, 4]))}
    study = read_study(make_study(tmp_path / "s.yaml", labels, variants=variants, seeds=[0, 1, 2], ensemble=True))
    out = tmp_path / "out"
    runs = cell_runs(study.cells, out)
    after = estimate_after(study, runs, out, test=True)
    assert after.models == 6  # one setting of each variant, three seeds
    assert after.seconds > 6 * (EXPORT_SECONDS + LATENCY_SECONDS)  # and predicting the test images
    plain = estimate_after(study, runs, out, test=False)
    assert plain.seconds > 6 * (EXPORT_SECONDS + LATENCY_SECONDS)
    apart = replace(study, plan=replace(study.plan, apart=("lr",), ensemble=False))
    assert estimate_after(apart, runs, out, test=False).seconds == 12 * (EXPORT_SECONDS + LATENCY_SECONDS)
    assert estimate_after(study, [], out, test=True).models == 0

    out.mkdir()
    done = runs[0].cell.name
    (out / "selected.json").write_text(json.dumps({done: {"seconds": 100.0}, "other": {"seconds": 50.0}}))
    assert estimate_after(apart, runs, out, test=False).seconds == 12 * 75  # as measured before


def test_sweep__the_estimate_counts_what_follows_the_runs(labels: Path, tmp_path: Path, run_tl: RunTl) -> None:
    study = make_study(tmp_path / "s.yaml", labels, variants={"a": {"method": "scratch"}}, seeds=[0, 1])
    done = run_tl("sweep", study, "--out", tmp_path / "o", "--dry-run")
    assert (done.code, "for exporting and testing 2 selected models" in done.err) == (0, True), done.err
    assert "for exporting 2 selected models" in run_tl("sweep", study, "--dry-run", "--no-test").err


def test_estimate_seconds__uses_the_measured_time_of_finished_runs(labels: Path, tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path / "s.yaml", labels, variants={"a": {"method": "scratch"}}, seeds=[0, 1, 2]))
    runs = cell_runs(study.cells, tmp_path / "out")
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "metrics.json").write_text(json.dumps({"train_seconds": 1000.0}), encoding="utf-8")
    assert estimate_seconds(runs) == 2000
