from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.spots import SPOTS, save_spots
from tests.trainer.landmarks.make import make_landmark_config, make_spots, moved_spots
from tests.trainer.make import StopsAt, assert_same_run, read_rows
from tl.errors import ConfigError, DataError, RunError, RunInterrupted
from tl.progress import Silent
from tl.runtime.landmarks.files import read_landmarks
from tl.trainer.landmarks.task import prepare_landmark_task
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


def train_points(data: Path, out: Path, **changes: Any) -> Run:
    return train(make_landmark_config(data, out, **changes), Silent()).run


def test_train__files_of_a_run(spots: Path, spot_run: Run) -> None:
    metrics = json.loads((spot_run.folder / "metrics.json").read_text(encoding="utf-8"))
    history = read_rows(spot_run.folder / "history.csv")
    assert list(history[0]) == [
        *("epoch", "lr", "train_loss", "train_error_input_px", "val_loss", "val_error_px", "seconds", "images_per_s"),
        "val_error_input_px",
    ]
    best = float(history[metrics["best_epoch"] - 1]["val_error_px"])
    assert metrics["val"]["error_px"] == pytest.approx(best, rel=1e-4)  # six digits in the file
    found = read_landmarks(spot_run.folder / "predictions_val.csv")
    assert found.keypoint_names == SPOTS
    assert all(image.confidence is not None for image in found.images)
    true = read_landmarks(spot_run.folder / "annotations.json")
    by_name = {Path(image.name).name: image for image in true.images}
    assert {image.split for image in true.images} == {"train", "val"}
    errors = [
        np.linalg.norm(image.keypoints_xy - by_name[Path(image.name).name].keypoints_xy, axis=1)
        for image in found.images
    ]
    assert float(np.nanmean(np.concatenate(errors))) == pytest.approx(metrics["val"]["error_px"], rel=1e-4)


def test_train__learns_where_the_spots_are(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "d", 30)
    run = train_points(data, tmp_path / "run", epochs=30, image_size=48, head_sizes=(16,))
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    # The mean shape, which does not depend on the image, is about 6 px away.
    assert metrics["val"]["error_px"] < 2


@pytest.mark.parametrize("changes", [{"head": "linear", "head_sizes": ()}, {"head": "mlp", "dropout": 0.0}])
def test_train__regression_beats_the_mean_place(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = make_spots(tmp_path / "d", 30)
    run = train_points(data, tmp_path / "run", epochs=30, pooling="flatten", **changes)
    history = [float(row["val_error_px"]) for row in read_rows(run.folder / "history.csv")]
    assert min(history) < 0.8 * history[0]
    found = read_landmarks(run.folder / "predictions_val.csv")
    assert found.images[0].confidence is None  # a regression has no confidence


@pytest.mark.parametrize("changes", [{}, {"augment": "standard", "flip_pairs": ("red:green",)}])
def test_train__same_seed_same_run_and_resumed_too(spots: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = train_points(spots, tmp_path / "a", epochs=3, **changes)
    config = make_landmark_config(spots, tmp_path / "b", epochs=3, **changes)
    with pytest.raises(RunInterrupted):
        train(config, StopsAt(2))
    stopped = Run(tmp_path / "b")
    train(stopped.load_config(), Silent(), resume=stopped)
    assert_same_run(whole, stopped)


def test_train__crops_around_points(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "d", 10, whole=True)
    run = train_points(data, tmp_path / "run", crop="points", crop_margin=0.3)
    manifest = read_rows(run.folder / "manifest.csv")
    assert {"region_x", "region_y", "region_w", "region_h"} <= set(manifest[0])
    images = {image.name: image for image in (*run.images("train"), *run.images("val"))}
    assert all(image.region is not None for image in images.values())


def test_train__a_image_without_points_is_left_out_and_named(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "d", 8)
    rows = data.read_text(encoding="utf-8").splitlines()
    save_spots(tmp_path / "d" / "images" / "none.png", moved_spots(50))
    data.write_text("\n".join([*rows, "images/none.png" + "," * 6]), encoding="utf-8")
    result = train(make_landmark_config(data, tmp_path / "run"), Silent())
    assert [(f.kind, f.path) for f in result.findings] == [("no points", "images/none.png")]
    assert len(read_rows(result.run.folder / "manifest.csv")) == 8


def test_train__points_outside_the_crop_are_named(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "d", 6, whole=True, box_xywh=(0.0, 0.0, 30.0, 60.0))  # green is near x = 60
    result = train(make_landmark_config(data, tmp_path / "run", crop="box", crop_margin=0.1), Silent())
    cut_off = [finding for finding in result.findings if "increase crop_margin" in finding.detail]
    assert len(cut_off) == 6
    assert cut_off[0].detail.startswith("green: outside the cropped region")
    assert train_points(data, tmp_path / "wide", crop="points", crop_margin=0.0).folder.is_dir()  # on the very edge


def test_train__changed_points_are_another_run(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "d", 8)
    config = make_landmark_config(data, tmp_path / "run", epochs=3)
    with pytest.raises(RunInterrupted):
        train(config, StopsAt(2))
    text = data.read_text(encoding="utf-8").splitlines()
    cells = text[1].split(",")
    cells[1] = str(float(cells[1]) + 1)
    data.write_text("\n".join([text[0], ",".join(cells), *text[2:]]), encoding="utf-8")
    run = Run(tmp_path / "run")
    with pytest.raises(RunError, match="images, labels or splits have changed"):
        train(run.load_config(), Silent(), resume=run)


@pytest.mark.parametrize(
    ("asked", "settled"),
    [({"epochs": None, "batch_size": 1}, 120), ({"epochs": None, "batch_size": 6}, 200), ({"epochs": 5}, 5)],
)
def test_prepare_landmark_task__more_epochs_of_few_images(tmp_path: Path, asked: dict[str, Any], settled: int) -> None:
    config = make_landmark_config(make_spots(tmp_path / "d", 8), tmp_path / "run", **asked)
    task = prepare_landmark_task(config, Silent())
    assert len(task.store.indices("train")) == 6  # so 720 steps, or 200 epochs
    assert (task.config.epochs, task.config.drop_epochs) == (settled, settled // 3)


def test_prepare_landmark_task__says_that_a_crop_cuts_nothing(tmp_path: Path) -> None:
    said: list[str] = []

    class Listens(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    data = make_spots(tmp_path / "d", 8, whole=True)
    for margin in (0.1, 5.0):
        prepare_landmark_task(make_landmark_config(data, tmp_path / "r", crop="points", crop_margin=margin), Listens())
    assert [line for line in said if "does not crop" in line] == [
        "crop points with margin 5 does not crop 8 of 8 photos at all: use crop whole, or a smaller crop_margin"
    ]


def test_train__point_without_annotations(tmp_path: Path) -> None:
    data = make_spots(tmp_path / "d", 8, whole=True)
    rows = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([rows[0] + ",x_tip,y_tip", *(row + ",," for row in rows[1:])]), encoding="utf-8")
    with pytest.raises(DataError, match="no training image has point 'tip': annotate it, or remove it"):
        train_points(data, tmp_path / "run")


def test_train__mirror_images_only_where_they_are_right(spots: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="augment flip mirrors images, which requires flip_pairs or mirror"):
        train_points(spots, tmp_path / "a", augment="flip")
    import albumentations

    albumentations.save(albumentations.HorizontalFlip(p=1), str(tmp_path / "flip.json"))
    with pytest.raises(ConfigError, match=r"mirrors images: give the pairs of points that swap"):
        train_points(spots, tmp_path / "b", augment=str(tmp_path / "flip.json"))
    run = train_points(spots, tmp_path / "c", augment=str(tmp_path / "flip.json"), mirror=True, epochs=1)
    assert run.best_path.is_file()


def test_train__faults_name_the_cure(spots: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images with points in its test split"):
        train_points(spots, tmp_path / "a", test=True)
    with pytest.raises(ConfigError, match="for landmarks use heatmap, linear or mlp"):
        train_points(spots, tmp_path / "b", head="svm")
