from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tl.runtime
from tests.spots import SPOTS, spot_image
from tests.trainer.landmarks.make import make_landmark_config, make_spots, moved_spots
from tl.errors import ConfigError, ParityError
from tl.exporter.export import Exported, export_run
from tl.exporter.precision import Lowering, export_lowered
from tl.progress import Silent
from tl.runtime.landmarks.files import read_landmarks
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


def make_run(root: Path, **changes: Any) -> Run:
    data = make_spots(root / "data", 10, whole="crop" in changes)
    return train(make_landmark_config(data, root / "run", **changes), Silent()).run


@pytest.fixture(scope="module", params=["heatmap", "linear"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp(request.param), head=request.param)


@pytest.fixture(scope="module")
def done(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run as a model file; read only."""
    return export_run(run, tmp_path_factory.mktemp("models") / "m.onnx", Silent())


def test_export_run__finds_what_training_found(run: Run, done: Exported) -> None:
    contract = done.contract
    assert (contract.task, contract.keypoint_names, contract.class_names) == ("landmarks", SPOTS, ())
    assert contract.parity.pipeline_max_abs_diff < 0.05
    assert contract.parity.top1_agreement is None
    facts = contract.landmarks
    assert facts is not None
    assert (facts.region, facts.shape_limit > 0) == ("whole", True)
    claimed = run.val_points()
    with tl.runtime.load_landmarks(done.path, device="cpu") as model:
        for path, points in claimed.items():
            np.testing.assert_allclose(model.predict(path).keypoints_xy, points, atol=0.05)
    assert tl.runtime.run_selftest(done.path, device="cpu").samples == 2  # a fifth of ten images


def test_export_run__of_crops(tmp_path: Path) -> None:
    run = make_run(tmp_path, crop="points", crop_margin=0.2)
    done = export_run(run, tmp_path / "m.onnx", Silent())
    assert done.contract.landmarks is not None
    assert (done.contract.landmarks.region, done.contract.landmarks.region_margin) == ("points", 0.2)
    with pytest.raises(ConfigError, match="this model uses a region of each image"):
        export_run(run, tmp_path / "n.onnx", Silent(), parity_images=[tmp_path / "data" / "images"])


def test_export_run__a_changed_run_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run.folder / "predictions_val.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    rows[1][1] = str(float(rows[1][1]) + 5)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(ParityError, match=r"predictions_val\.csv and its network differ by 2 input pixels"):
        export_run(run, tmp_path / "m.onnx", Silent())
    assert not (tmp_path / "m.onnx").exists()


def test_ensemble__of_three_loses_nothing(done: Exported, tmp_path: Path) -> None:
    files = [shutil.copy(done.path, tmp_path / f"{name}.onnx") for name in "abc"]
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(spot_image(moved_spots(100 + i))).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "empty.jpg").touch()
    names = sorted(map(str, folder.iterdir()))
    with tl.runtime.load_landmarks(files, device="cpu", merge="median") as model:
        results = model.predict_batch(names)
    assert [result.path for result in results] == names
    failed = [Path(result.path).name for result in results if isinstance(result, tl.runtime.Failure)]
    assert failed == ["broken.png", "empty.jpg"]
    spreads = [r.spread_px for r in results if isinstance(r, tl.runtime.Landmarks) and r.spread_px is not None]
    np.testing.assert_allclose(np.stack(spreads), 0, atol=1e-6)  # the same model three times
    assert len(spreads) == 6


def test_export_lowered__is_for_classifiers(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision int8 applies only to classifiers"):
        export_lowered(run, tmp_path / "m.onnx", Silent(), Lowering("int8", device="cpu"))


def test_annotations__are_read_back(run: Run) -> None:
    assert read_landmarks(run.folder / "annotations.json").keypoint_names == SPOTS
