"""The flags for boxes: combinations that are refused, with the way out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.composites import detection, make_composite, megadetector
from tests.models import make_contract, make_model
from tests.spots import make_spot_model
from tl.runtime.imaging.regions import BoxCrop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.jpg, its boxes as md.json and boxes.csv, and models of whole images, of boxes, and of landmarks."""
    placed = make_composite(tmp_path / "a.jpg", ["fox", "hare"], 0)
    images = [{"file": "a.jpg", "detections": [detection(one.xywh) for one in placed]}]
    (tmp_path / "md.json").write_text(json.dumps(megadetector(images)), encoding="utf-8")
    rows = [f"a.jpg,{','.join(map(str, one.xywh))}" for one in placed]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,box_x,box_y,box_w,box_h", *rows]), encoding="utf-8")
    make_model(tmp_path / "whole.onnx")
    make_model(tmp_path / "boxed.onnx", contract=make_contract(boxes=BoxCrop(0.0, square=True)))
    make_spot_model(tmp_path / "points.onnx", region="box")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "flags", "fault"),
    [
        ("boxed", "", "was trained on boxes around objects: give those of these images"),
        ("whole", "--boxes md.json", "was trained on whole images: leave out boxes"),
        ("boxed", "--min-box-confidence 0.5", "--min-box-confidence: requires --boxes"),
        ("boxed", "--boxes md.json --explain why", "--explain explains whole images"),
        ("boxed", "--boxes md.json --box-categories bird", "has no boxes of category bird"),
        ("boxed", "--boxes md.json --to tps -o out.tps", "--to tps applies only to landmark models"),
        ("boxed", "--boxes md.json -o out.json", "expected a name that ends in .csv"),
        ("boxed", "--boxes boxes.csv --to megadetector -o out.json", "give that file as boxes"),
        ("boxed", "--boxes md.json --to megadetector -o md.json --overwrite", "md.json: is read by this command"),
        ("boxed", "--boxes boxes.csv -o boxes.csv --overwrite", "boxes.csv: is read by this command"),
        ("points", "--boxes boxes.csv", "2 boxes for a.jpg; landmark models expect one per image"),
        ("points", "--boxes md.json --to megadetector -o out.json", "--to megadetector applies only to classifiers"),
    ],
)
def test_predict__refused(
    run_tl: RunTl, folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, flags: str, fault: str
) -> None:
    monkeypatch.chdir(folder)
    done = run_tl("predict", "a.jpg", "--model", f"{model}.onnx", *flags.split())
    assert done.code == 1, done.err
    assert fault in done.err


def test_predict__to_stdout(run_tl: RunTl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = run_tl("predict", "a.jpg", "--model", "boxed.onnx", "--boxes", "boxes.csv")
    assert done.code == 0, done.err
    assert [row["path"] for row in done.rows()] == ["a.jpg", "a.jpg"]
    assert all(row["label"] for row in done.rows())


def test_predict__boxes_of_an_archive(run_tl: RunTl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes name the members of an archive as they are inside, or as predictions do."""
    monkeypatch.chdir(folder)
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("a.jpg")
    Path("a.jpg").unlink()
    text = Path("boxes.csv").read_text(encoding="utf-8").replace("a.jpg", "photos.zip/a.jpg")
    Path("zipped.csv").write_text(text, encoding="utf-8")
    given = ("predict", "photos.zip", "--model", "boxed.onnx", "--boxes")
    for boxes in ("zipped.csv", "boxes.csv", "md.json"):
        done = run_tl(*given, boxes)
        assert done.code == 0, done.err
        assert [row["path"] for row in done.rows()] == ["photos.zip/a.jpg"] * 2
    done = run_tl(*given, "md.json", "--to", "megadetector", "-o", "out.json")
    assert done.code == 0, done.err
    found = json.loads(Path("out.json").read_text(encoding="utf-8"))["images"][0]["detections"]
    assert all(len(each["classifications"]) == 3 for each in found)
