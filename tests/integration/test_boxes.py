"""Boxes from training to MegaDetector's JSON: train, export with parity, predict, evaluate, write the classes back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.commands.conftest import trunk_weights as trunk_weights
from tests.composites import (
    check_megadetector,
    detection,
    make_composite,
    make_composites,
    megadetector,
    save_megadetector,
)
from tl.runtime.session import Session

FLAGS = ("--method", "features", "--backbone", "smallcnn", "--image-size", "32", "--threads", "1", "--no-report")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def run(run_tl: RunTl, trunk_weights: Path, tmp_path: Path) -> Path:
    """A run trained on the boxes of 24 images; every third has two."""
    made = make_composites(tmp_path / "photos", 12)
    boxes = save_megadetector(tmp_path / "photos/detections.json", made)
    own = ("--weights", trunk_weights, "--boxes", boxes, "--out", tmp_path / "run")
    done = run_tl("train", tmp_path / "photos", *FLAGS, *own)
    assert done.code == 0, done.err
    assert "detections.json: 32 boxes of 24 images" in done.err
    return tmp_path / "run"


@pytest.fixture
def model(run_tl: RunTl, run: Path, tmp_path: Path) -> Path:
    exported = run_tl("export", run, "-o", tmp_path / "m.onnx")
    assert exported.code == 0, exported.err
    return tmp_path / "m.onnx"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """New images and md.json: one with two animals, one without, one that failed, one that is not listed."""
    folder = tmp_path / "new"
    placed = make_composite(folder / "a.jpg", ["fox", "hare"], 900)
    for n, name in enumerate(("empty", "failed", "unlisted")):
        make_composite(folder / f"{name}.jpg", ["fox"], 901 + n)
    animals = [detection(one.xywh, 0.9 - n / 10) for n, one in enumerate(placed)]
    others = [detection((5, 5, 20, 20), 0.95, "2"), detection((5, 5, 20, 20), 0.1)]
    images: list[dict[str, Any]] = [
        {"file": "a.jpg", "detections": [*animals, *others]},
        {"file": "empty.jpg", "detections": [detection((5, 5, 20, 20), 0.15)]},
        {"file": "failed.jpg", "detections": None, "failure": "Failure image access"},
        {"file": "gone.jpg", "detections": [detection((5, 5, 20, 20))]},
    ]
    (folder / "md.json").write_text(json.dumps(megadetector(images)), encoding="utf-8")
    return folder


def test_train__boxes_of_an_image_stay_on_one_side(run: Path) -> None:
    rows = read_rows(run / "manifest.csv")
    assert len(rows) == 32
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["path"], set()).add(row["split"])
        assert float(row["region_w"]) == pytest.approx(1.2 * max(float(row["box_w"]), float(row["box_h"])))
    assert all(len(found) == 1 for found in splits.values())


def test_evaluate__boxes(run_tl: RunTl, run: Path, model: Path, tmp_path: Path) -> None:
    contract = Session(model).contract
    assert contract is not None
    assert contract.boxes is not None
    assert (contract.boxes.margin, contract.boxes.square, contract.parity.top1_agreement) == (0.1, True, 1)
    assert "boxes around objects, 0.1 of their size added on every side" in run_tl("inspect", model).out
    page = tmp_path / "page.html"
    done = run_tl("evaluate", run / "manifest.csv", "--split", "val", "--model", model, "--report", page)
    assert page.is_file()
    (scores,) = done.rows()
    assert done.code == 0, done.err
    assert float(scores["top1_accuracy"]) > 0.9
    assert int(scores["n"]) == sum(row["split"] == "val" for row in read_rows(run / "manifest.csv"))

    made = make_composites(tmp_path / "held-out", 4, seed=500)
    boxes = save_megadetector(tmp_path / "boxes.json", made)
    given = ("evaluate", tmp_path / "held-out", "--model", model, "--boxes", boxes)
    held_out = run_tl(*given)
    assert held_out.code == 0, held_out.err
    augmented = run_tl(*given, "--tta", "hflip").rows()
    assert [row["tta"] for row in augmented] == ["", "hflip"]
    assert int(held_out.rows()[0]["n"]) == 12
    bare = run_tl("evaluate", tmp_path / "held-out", "--model", model)
    assert bare.code == 1
    assert "trained on boxes around objects: give those of these images" in bare.err
    assert "hint: --boxes boxes.json" in bare.err


def test_predict__boxes(run_tl: RunTl, model: Path, new: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "out.csv", ("predict", new, "--model", model, "--boxes", new / "md.json")
    done = run_tl(*given, "-o", out)
    assert done.code == 3, done.err
    assert "3 boxes of 3 images; left out: 1 of category person, 2 below confidence 0.2" in done.err
    assert "lists images that are not among those given: gone.jpg" in done.err
    assert "1 images have no box, and therefore no label" in done.err
    assert "2 boxes predicted, 2 could not be read" in done.err
    found = read_rows(out)
    assert [(Path(row["path"]).name, row["label"], row["box_confidence"], row["box_category"]) for row in found] == [
        ("a.jpg", "fox", "0.9", "animal"),
        ("a.jpg", "hare", "0.8", "animal"),
        ("empty.jpg", "", "", ""),
        ("failed.jpg", "", "", ""),
        ("unlisted.jpg", "", "", ""),
    ]
    assert (found[2]["reason"], found[2]["error"]) == ("no box of confidence 0.2 or more", "")
    assert found[3]["error"] == "the detector failed on this image: Failure image access"
    assert "contains no entry for this image" in found[4]["error"]
    listed = json.loads((new / "md.json").read_text(encoding="utf-8"))["images"]
    assert [float(found[0][f"box_rel_{side}"]) for side in "xywh"] == listed[0]["detections"][0]["bbox"]
    again = run_tl(*given, "-o", out, "--resume")
    assert "2 rows kept from the earlier run" in again.err
    bare = run_tl("predict", new, "--model", model)
    assert bare.code == 1
    assert "hint: --boxes boxes.json" in bare.err


def test_predict__to_megadetector(run_tl: RunTl, model: Path, new: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "out.json", ("predict", new, "--model", model, "--to", "megadetector")
    done = run_tl(*given, "--boxes", new / "md.json", "-o", out)
    assert done.code == 3, done.err
    file, before = (json.loads(path.read_text(encoding="utf-8")) for path in (out, new / "md.json"))
    check_megadetector(file)
    assert file["classification_categories"] == {"1": "fox", "2": "hare"}
    assert file["info"]["classifier"] == "m"
    fox, hare, person, faint = file["images"][0]["detections"]
    assert (fox["classifications"][0][0], hare["classifications"][0][0]) == ("1", "2")
    assert "classifications" not in person | faint
    for image in file["images"]:
        for each in image["detections"] or ():
            each.pop("classifications", None)
    assert file["images"] == before["images"]
    failed = read_rows(tmp_path / "out.json.failed.csv")
    assert [Path(row["path"]).name for row in failed] == ["failed.jpg", "unlisted.jpg"]
    (tmp_path / "boxes.csv").write_text("path,box_x,box_y,box_w,box_h\nnew/a.jpg,1,1,9,9\n", encoding="utf-8")
    other = run_tl(*given, "--boxes", tmp_path / "boxes.csv", "-o", tmp_path / "other.json")
    assert other.code == 1
    assert "adds the classes to a file of MegaDetector" in other.err


def test_predict__to_megadetector_as_its_own_validator_reads_it(
    run_tl: RunTl, model: Path, new: Path, tmp_path: Path
) -> None:
    validator = pytest.importorskip(
        "megadetector.postprocessing.validate_batch_results", reason="needs the package megadetector"
    )
    out = tmp_path / "out.json"
    run_tl("predict", new, "--model", model, "--boxes", new / "md.json", "--to", "megadetector", "-o", out)
    found = validator.validate_batch_results(str(out))["validation_results"]
    assert (found["errors"], found["warnings"]) == ([], [])


def test_probe__boxes(run_tl: RunTl, trunk_weights: Path, tmp_path: Path) -> None:
    boxes = save_megadetector(tmp_path / "boxes.json", make_composites(tmp_path / "photos", 6))
    given = ("--backbone", "smallcnn", "--image-size", "32", "--threads", "1", "--weights", trunk_weights)
    done = run_tl("probe", tmp_path / "photos", *given, "--boxes", boxes, "--folds", "2", "--try", "head=linear c=0.01")
    assert done.code == 0, done.err
    assert "boxes.json: 16 boxes of 12 images" in done.err
    assert "identical files" not in done.err  # boxes of an image are not copies of each other
    assert float(done.rows()[0]["top1_accuracy"]) > 0.9


def test_quantized__boxes(run_tl: RunTl, run: Path, model: Path, tmp_path: Path) -> None:
    """Merged and lower-precision files are proven on the same regions, and keep what they use around a box."""
    merged = run_tl("merge", model, model, "-o", tmp_path / "merged.onnx")
    assert merged.code == 0, merged.err
    int8 = run_tl("export", run, "-o", tmp_path / "int8.onnx", "--precision", "int8", "--keep-slower")
    assert int8.code == 0, int8.err
    for name in ("merged", "int8"):
        contract = Session(tmp_path / f"{name}.onnx").contract
        assert contract is not None
        assert contract.boxes is not None


def test_train__labels_of_the_boxes(run_tl: RunTl, trunk_weights: Path, tmp_path: Path) -> None:
    """A flat folder of photos with animals of both classes, whose labels are in the list of boxes."""
    made = {f"{i:02d}.jpg": make_composite(tmp_path / f"photos/{i:02d}.jpg", ["fox", "hare"], i) for i in range(14)}
    rows = [f"photos/{name},{','.join(map(str, p.xywh))},{p.label}" for name, placed in made.items() for p in placed]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,box_x,box_y,box_w,box_h,label", *rows]) + "\n")
    own = ("--weights", trunk_weights, "--boxes", tmp_path / "boxes.csv", "--test")
    done = run_tl("train", tmp_path / "photos", *FLAGS, *own[:-1], "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "labels are those of the boxes" in done.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["val"]["top1_accuracy"] > 0.9

    # The same file as the data itself, as a run's manifest is.
    again = run_tl("train", tmp_path / "boxes.csv", *FLAGS, *own[:2], "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again/metrics.json").read_text(encoding="utf-8"))["val"]["n"] == metrics["val"]["n"]
    report = run_tl("report", tmp_path / "again")
    assert report.code == 0, report.err


def test_sequences_of_boxes(run_tl: RunTl, trunk_weights: Path, tmp_path: Path) -> None:
    """Images in pairs: a pair stays in one split, and one decision for a pair is scored."""
    made = make_composites(tmp_path / "photos", 12)
    boxes = save_megadetector(tmp_path / "photos/detections.json", made)
    rows = [f"{name},{name[:4]},{name[:4]}{int(name[-6:-4]) // 2}" for name in made]
    data = tmp_path / "photos/labels.csv"
    data.write_text("\n".join(["path,label,visit", *rows]) + "\n", encoding="utf-8")
    given = ("--boxes", boxes, "--sequence", "visit")
    done = run_tl("train", data, *FLAGS, "--weights", trunk_weights, *given, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    homes: dict[str, set[str]] = {}
    for row in read_rows(tmp_path / "run/manifest.csv"):
        homes.setdefault(row["sequence"], set()).add(row["split"])
    assert len(homes) == 12
    assert all(len(home) == 1 for home in homes.values())
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["val"]["sequences"] == 12  # out of fold
    assert run_tl("export", tmp_path / "run", "-o", tmp_path / "m.onnx").code == 0
    scored = run_tl("evaluate", data, "--model", tmp_path / "m.onnx", *given)
    assert scored.code == 0, scored.err
    (row,) = scored.rows()
    assert (row["n"], row["sequences"]) == ("32", "12")
    again = run_tl("evaluate", tmp_path / "run/manifest.csv", "--model", tmp_path / "m.onnx", "--sequence", "sequence")
    assert again.code == 0, again.err
    assert int(again.rows()[0]["sequences"]) == sum(home == {"val"} for home in homes.values())
