"""Classes written into MegaDetector's JSON: files of older versions, other classifiers, rejected and failed boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.composites import check_megadetector, detection, megadetector
from tests.models import make_contract, make_model, solid
from tl.errors import OutputError
from tl.runtime import SelectivePrediction, load, read_boxes
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.output.job import Tally, run_job


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "colors.onnx", contract=make_contract(boxes=BoxCrop(0.0, square=False)))


def predict(model: Path, folder: Path, file: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write classes into `file` for a.png and b.png, red on the left and blue on the right; return the new contents."""
    image = solid((250, 0, 0), 120, 160).copy()
    image[:, 80:] = (0, 0, 250)
    for name in ("a.png", "b.png"):
        Image.fromarray(image).save(folder / name)
    (folder / "md.json").write_text(json.dumps(file), encoding="utf-8")
    out = folder / "out.json"
    with load(model, boxes=read_boxes(folder / "md.json"), **changes) as predictor:
        run_job(
            *(predictor, [str(folder / "a.png"), str(folder / "b.png")], out, Tally()),
            point_format="megadetector",
            overwrite=True,
        )
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    check_megadetector(found)
    return found


def classes_of(file: dict[str, Any]) -> list[str]:
    names = file["classification_categories"]
    return [
        names[found["classifications"][0][0]] if found.get("classifications") else ""
        for image in file["images"]
        for found in image["detections"] or ()
    ]


def test_write_megadetector__most_probable_first(model: Path, tmp_path: Path) -> None:
    found = [detection((10, 10, 40, 40)), detection((100, 10, 40, 40))]
    file = predict(
        model, tmp_path, megadetector([{"file": "a.png", "detections": found}, {"file": "b.png", "detections": []}])
    )
    assert classes_of(file) == ["red", "blue"]
    assert sum(confidence for _, confidence in file["images"][0]["detections"][0]["classifications"]) == pytest.approx(
        1, abs=1e-3
    )
    assert file["info"]["format_version"] == "1.6"


def test_write_megadetector__older_version(model: Path, tmp_path: Path) -> None:
    images = [{"file": "a.png", "detections": [detection((10, 10, 40, 40))], "max_detection_conf": 0.9}]
    images += [{"file": "b.png", "failure": "Failure image access"}]
    file = predict(model, tmp_path, megadetector(images, "1.0"))
    assert file["info"]["format_version"] == "1.3"
    assert file["images"][1] == {"file": "b.png", "failure": "Failure image access", "detections": None}
    assert classes_of(file) == ["red"]


def test_write_megadetector__replaces_other_classes(model: Path, tmp_path: Path) -> None:
    found = [detection((10, 10, 40, 40)) | {"classifications": [["7", 0.9]]}, detection((1, 1, 9, 9), 0.1)]
    found[1]["classifications"] = [["7", 0.8]]
    before = megadetector([{"file": "a.png", "detections": found}])
    file = predict(model, tmp_path, before | {"classification_categories": {"7": "bear"}})
    assert classes_of(file) == ["red", ""]
    assert "bear" not in file["classification_categories"].values()


def test_write_megadetector__rejected_and_failed_boxes_have_no_class(model: Path, tmp_path: Path) -> None:
    found = [detection((60, 10, 40, 40)), detection((10, 10, 40, 40)), detection((170, 10, 40, 40))]
    file = predict(
        *(model, tmp_path, megadetector([{"file": "a.png", "detections": found}])),
        selective=SelectivePrediction(min_confidence=0.9),
    )
    assert classes_of(file) == ["", "red", ""]  # half red and half blue; red; outside
    assert file["images"][0]["detections"][0]["classifications"] == []
    assert "contains no pixel" in (tmp_path / "out.json.failed.csv").read_text(encoding="utf-8")


def test_run_job__megadetector_needs_its_file(model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.csv").write_text("path,box_x,box_y,box_w,box_h\na.png,0,0,9,9\n", encoding="utf-8")
    with (
        load(model, boxes=read_boxes(tmp_path / "b.csv")) as predictor,
        pytest.raises(OutputError, match="adds the classes to a file of MegaDetector") as error,
    ):
        run_job(predictor, [], tmp_path / "o.json", Tally(), point_format="megadetector")
    assert error.value.options == ("boxes=detections.json",)
    (tmp_path / "md.json").write_text(json.dumps(megadetector([])), encoding="utf-8")
    with load(model, boxes=read_boxes(tmp_path / "md.json")) as predictor:
        with pytest.raises(OutputError, match=r"expected the extension \.json"):
            run_job(predictor, [], tmp_path / "o.csv", Tally(), point_format="megadetector")
        with pytest.raises(OutputError, match="is the file of boxes itself"):
            run_job(predictor, [], tmp_path / "md.json", Tally(), point_format="megadetector", overwrite=True)
