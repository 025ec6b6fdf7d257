"""Training on boxes: options, bad boxes, cached features, networks trained on images, and what a run records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.conftest import trunk_weights as trunk_weights
from tests.composites import detection, make_composites, megadetector, save_megadetector
from tl.errors import ConfigError, DataError
from tl.exporter.export import export_run
from tl.exporter.export_source import ExtraOutputs
from tl.progress import Silent
from tl.trainer.classification import compute_features
from tl.trainer.config import TrainConfig
from tl.trainer.features.run_embeddings import find_neighbors
from tl.trainer.options import resolve
from tl.trainer.task import prepare_task
from tl.trainer.train import train

SMALL: dict[str, Any] = {"backbone": "smallcnn", "image_size": 32, "threads": 1, "device": "cpu"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """8 images of each class, every third with two shapes, and boxes.json."""
    save_megadetector(tmp_path / "data/boxes.json", make_composites(tmp_path / "data", 8))
    return tmp_path / "data"


def config(data: Path, **changes: Any) -> TrainConfig:
    own = {"data": str(data), "out": str(data.parent / "run"), "boxes": str(data / "boxes.json")}
    return TrainConfig(**{**own, **SMALL, **changes})


class Listens(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"min_box_confidence": 0.5}, "min_box_confidence: only with a file of boxes, but boxes is not set"),
        ({"box_labels": "box"}, "box_labels: only with a file of boxes"),
        ({"boxes": "b.json", "min_box_confidence": 20.0}, "min_box_confidence must be 0..1, found 20"),
        ({"boxes": "b.json", "task": "landmarks"}, "boxes: only for classification, but the task is landmarks"),
    ],
)
def test_resolve__faulty_options(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        resolve(TrainConfig(data="d", method="finetune", **changes))


def test_prepare_task__margin_without_boxes(data: Path) -> None:
    (data / "boxes.json").rename(data.parent / "boxes.json")
    with pytest.raises(ConfigError, match="crop_margin and crop_square require boxes"):
        prepare_task(config(data, boxes=None, method="scratch", crop_margin=0.3), Silent())
    old = config(data, boxes=None, method="scratch", crop_margin=0.25)  # as in the config files of earlier versions
    assert prepare_task(old, Silent()).store.images[0].region is None


def test_prepare_task__bad_boxes(data: Path) -> None:
    file = json.loads((data / "boxes.json").read_text(encoding="utf-8"))
    file["images"][1]["detections"].append(detection((170, 0, 20, 20)))
    file["images"][2]["detections"] = []
    file["images"][3] = {"file": file["images"][3]["file"], "failure": "corrupt", "detections": None}
    del file["images"][4]
    file["images"].append({"file": "gone.jpg", "detections": [detection((1, 1, 9, 9))]})
    (data / "boxes.json").write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(DataError, match="3 images or boxes cannot be used") as error:
        prepare_task(config(data, method="scratch"), Silent())
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "fox/03.jpg",
        "fox/04.jpg",
        "fox/01.jpg",
    ]
    assert "the detector failed on this image: corrupt" in str(error.value)
    assert "contains no pixel of the 160x120 image" in str(error.value)
    assert error.value.options == ("skip_bad",)

    listens = Listens()
    task = prepare_task(config(data, method="scratch", skip_bad=True), listens)
    skipped = {image.name: reason for image, reason in task.bad}
    assert skipped["fox/02.jpg"] == "no box to use"
    assert sorted(skipped) == [f"fox/{i:02d}.jpg" for i in range(1, 5)]
    assert any("lists 1 images that are not in" in line for line in listens.said)
    assert any("1 images have no box to use and are left out, first fox/02.jpg" in line for line in listens.said)


def test_features__of_each_box(data: Path, trunk_weights: Path) -> None:
    task = prepare_task(config(data, method="features", weights=str(trunk_weights)), Silent())
    compute_features(task, Silent())
    features = task.features_at(range(len(task.store.images)))
    for i, j in zip(range(len(features) - 1), range(1, len(features)), strict=True):
        same = task.store.images[i].path == task.store.images[j].path
        assert not (same and np.array_equal(features[i], features[j]))
    wide = prepare_task(config(data, method="features", weights=str(trunk_weights), crop_margin=1.0), Silent())
    compute_features(wide, Silent())
    assert not np.array_equal(wide.features_at([0]), features[:1])


def test_train__on_images_of_boxes(data: Path) -> None:
    run = train(config(data, method="scratch", epochs=2, batch_size=8, crop_square=False), Silent()).run
    with (run.folder / "predictions_val.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:6] == ["path", "box_x", "box_y", "box_w", "box_h", "true_label"]
    exported = export_run(run, data.parent / "m.onnx", Silent())
    assert exported.contract.boxes is not None
    assert (exported.contract.boxes.margin, exported.contract.boxes.square) == (0.1, False)
    assert exported.contract.parity.top1_agreement == 1
    assert "boxes" not in str(exported.contract.provenance.config["boxes"]).split("/")[:-1]  # no private path
    with pytest.raises(DataError, match="was trained on boxes, but neighbors are found for whole images"):
        find_neighbors(run, [str(data / "fox/00.jpg")], 2, Silent())


def test_export__images_that_are_gone(data: Path) -> None:
    """A model of boxes must not become one of whole images because its own images cannot prove it."""
    run = train(config(data, method="scratch", epochs=1, batch_size=8, audit=False), Silent()).run
    (data / "fox").rename(data.parent / "fox")
    (data / "hare").rename(data.parent / "hare")
    with pytest.raises(ConfigError, match="this model uses a region of each image"):
        export_run(
            *(run, data.parent / "m.onnx", Silent()),
            parity_images=[data.parent / "fox"],
            further=ExtraOutputs(unknown=False),
        )


def test_data_hash__depends_on_the_boxes(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "scratch", "epochs": 1, "batch_size": 8, "audit": False}
    first = train(config(data, **options), Silent()).run.data_hash()
    file = json.loads((data / "boxes.json").read_text(encoding="utf-8"))
    file["images"][0]["detections"][0]["bbox"][2] += 0.02
    (data / "boxes.json").write_text(json.dumps(file), encoding="utf-8")
    assert train(config(data, **options, out=str(tmp_path / "other")), Silent()).run.data_hash() != first


def test_read_run_data__only_chosen_categories(data: Path) -> None:
    images = [{"file": "fox/00.jpg", "detections": [detection((9, 9, 30, 30), 0.9, c) for c in "123"]}]
    (data / "boxes.json").write_text(json.dumps(megadetector(images)), encoding="utf-8")
    with pytest.raises(DataError, match="no boxes of category bird"):
        prepare_task(config(data, method="scratch", box_categories=("bird",)), Silent())
