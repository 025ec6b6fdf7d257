"""`tl predict --to labelstudio`, `tl convert` and `tl train` with files of labeling tools."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.conftest import RunTl
from tests.models import make_model, solid
from tests.runtime.labeling.exports import choice, key_point, save_json, save_photos, task, via_image, via_project
from tests.spots import SPOTS, USUAL_XY, make_spot_model, save_spots


def accept(path: Path) -> None:
    """Make the predictions annotations, as a person does who finds nothing to correct."""
    tasks = json.loads(path.read_bytes())
    for each in tasks:
        each["annotations"] = each.pop("predictions")
    path.write_text(json.dumps(tasks), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predict__classes_for_label_studio_and_back(
    run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, color in (("ä 1.png", (250, 10, 10)), ("2.png", (10, 250, 10))):
        Image.fromarray(solid(color, 20, 30)).save(tmp_path / "photos" / name)
    (tmp_path / "photos/broken.png").write_bytes(b"x")
    make_model(tmp_path / "color.onnx")
    words = ("predict", "photos", "--model", "color.onnx", "--to", "labelstudio", "-o", "tasks.json")
    done = run_tl(*words)
    assert done.code == 3
    tasks = json.loads((tmp_path / "tasks.json").read_bytes())
    assert [each["data"]["image"] for each in tasks] == [
        "/data/local-files/?d=photos/2.png",
        "/data/local-files/?d=photos/%C3%A4%201.png",
    ]
    [prediction] = tasks[0]["predictions"]
    assert prediction["model_version"] == "color"
    assert prediction["result"][0]["value"] == {"choices": ["green"]}
    assert prediction["score"] == prediction["result"][0]["score"] > 0.9
    assert '<Choice value="green"/>' in (tmp_path / "tasks.xml").read_text(encoding="utf-8")
    assert "broken.png" in (tmp_path / "tasks.json.failed.csv").read_text(encoding="utf-8")
    again = run_tl(*words)  # the same job replaces its own outputs
    assert again.code == 3
    accept(tmp_path / "tasks.json")
    done = run_tl("convert", "tasks.json", "-o", "labels.csv")
    assert done.code == 0, done.err
    assert read_rows(tmp_path / "labels.csv") == [
        {"path": "photos/2.png", "label": "green"},
        {"path": "photos/ä 1.png", "label": "red"},
    ]


def test_predict__points_for_label_studio_and_back(
    run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_spots(tmp_path / "wings/0.png", USUAL_XY)
    make_spot_model(tmp_path / "wing.onnx")
    assert run_tl("predict", "wings", "--model", "wing.onnx", "-o", "points.csv").code == 0
    words = ("--to", "labelstudio", "--image-root", "wings", "--image-prefix", "s3://bucket/")
    done = run_tl("predict", "wings", "--model", "wing.onnx", "-o", "tasks.json", *words)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "tasks.json").read_bytes())[0]["data"]["image"] == "s3://bucket/0.png"
    assert '<Label value="green"/>' in (tmp_path / "tasks.xml").read_text(encoding="utf-8")
    accept(tmp_path / "tasks.json")
    assert run_tl("convert", "tasks.json", "back.csv", "--images", "wings").code == 0
    [one], [other] = read_rows(tmp_path / "points.csv"), read_rows(tmp_path / "back.csv")
    for name in ("x_red", "y_red", "x_green", "y_blue"):
        assert abs(float(one[name]) - float(other[name])) < 1e-3
    done = run_tl("convert", "points.csv", "again.json", *words)
    assert done.code == 0, done.err
    assert (tmp_path / "again.xml").is_file()


def test_predict__faults(run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path / "photos", ["a.png"])
    (tmp_path / "other").mkdir()
    make_model(tmp_path / "color.onnx")
    start = ("predict", "photos", "--model", "color.onnx")
    for words, message in (
        (("--to", "labelstudio"), "--to labelstudio requires an output file"),
        (("--to", "labelstudio", "-o", "x.csv"), "expected the extension .json for format labelstudio"),
        (("-o", "x.csv", "--image-root", "photos"), "--image-root and --image-prefix require --to labelstudio"),
        (("--to", "labelstudio", "-o", "x.json", "--image-root", "other"), "photos/a.png: is not in other"),
        (("--to", "labelstudio", "-o", "x.json", "--image-root", "none"), "--image-root: no such folder: none"),
        (("--to", "labelstudio", "-o", "x.json", "--exif"), "--to labelstudio writes one task per image"),
    ):
        done = run_tl(*start, *words)
        assert done.code == 1
        assert message in done.err
        assert not (tmp_path / "x.json").exists()
    (tmp_path / "x.xml").write_text("mine", encoding="utf-8")
    assert "x.xml" in run_tl(*start, "--to", "labelstudio", "-o", "x.json").err
    assert (tmp_path / "x.xml").read_text(encoding="utf-8") == "mine"


def test_convert__task_annotators_and_faults(run_tl: RunTl, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", ["a.png", "b.png"])
    tasks = [
        task(1, "a.png", [choice("cat"), key_point("tip", 50, 50)], [choice("cat")], [choice("dog")]),
        task(2, "b.png", [choice("dog")]),
    ]
    path = save_json(tmp_path / "x.json", tasks)
    (tmp_path / "out").mkdir()
    out, images = tmp_path / "out/labels.csv", ("--images", tmp_path / "photos")
    done = run_tl("convert", path, "-o", out, *images, "--annotators", "majority", "--task", "classification")
    assert done.code == 0, done.err
    assert [row["label"] for row in read_rows(out)] == ["cat", "dog"]
    assert [row["path"] for row in read_rows(out)] == ["../photos/a.png", "../photos/b.png"]
    for words, message in (
        ((path,), "name one output file"),
        ((path, tmp_path / "a.csv", "-o", tmp_path / "b.csv"), "name one output file"),
        ((path, tmp_path / "a.json", *images, "--task", "classification"), "expected the extension .csv for classes"),
        ((out, tmp_path / "a.csv", "--task", "classification"), "is of no labeling tool"),
        ((path, tmp_path / "a.csv", *images, "--task", "classification", "--names", "a"), "does not apply to classes"),
    ):
        done = run_tl("convert", *words)
        assert done.code == 1
        assert message in done.err


def test_evaluate__a_file_with_classes_and_points_by_the_model_s_task(run_tl: RunTl, tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(3)]
    for name, color in zip(names, ((250, 10, 10), (10, 250, 10), (10, 10, 250)), strict=True):
        Image.fromarray(solid(color, 10, 20)).save(tmp_path / name)
    tasks = [
        task(i, name, [choice(label), *(key_point(spot, 50, 50) for spot in SPOTS)])
        for i, (name, label) in enumerate(zip(names, ("red", "green", "red"), strict=True))
    ]
    path = save_json(tmp_path / "x.json", tasks)
    done = run_tl("evaluate", path, "--model", make_model(tmp_path / "c.onnx"), "--device", "cpu")
    assert done.code == 0, done.err
    assert (done.rows()[0]["n"], done.rows()[0]["top1_accuracy"]) == ("3", "0.6667")
    done = run_tl("evaluate", path, "--model", make_spot_model(tmp_path / "p.onnx"), "--device", "cpu")
    assert done.code == 0, done.err
    assert done.rows()[0]["points"] == str(3 * len(SPOTS))
    done = run_tl("evaluate", path, "--model", tmp_path / "c.onnx", "--merge", "median", "--device", "cpu")
    assert (done.code, "applies only to landmarks" in done.err) == (1, True)


def test_convert__via_with_several_attributes(run_tl: RunTl, tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    image = via_image("a.png", {"sex": "f"}, ("tip", 3, 4))
    image["regions"][0]["region_attributes"]["side"] = "left"
    path, out = save_json(tmp_path / "via.json", via_project(image)), tmp_path / "out.csv"
    done = run_tl("convert", path, "-o", out)
    assert done.code == 1
    assert "has 2 point attributes, 'part', 'side': name the one to use" in done.err
    assert "--label-column part" in done.err
    done = run_tl("convert", path, "-o", out, "--label-column", "part")
    assert done.code == 0, done.err
    [row] = read_rows(out)
    assert (row["x_tip"], row["y_tip"]) == ("3", "4")
    done = run_tl("convert", path, "-o", out, "--overwrite", "--label-column", "sex")
    assert done.code == 1
    assert "--task classification" in done.err
    done = run_tl("convert", path, "-o", out, "--overwrite", "--label-column", "sex", "--task", "classification")
    assert done.code == 0, done.err
    assert read_rows(out) == [{"path": "a.png", "label": "f"}]


def test_train__export_of_a_labeling_tool(run_tl: RunTl, tmp_path: Path) -> None:
    tasks = []
    for i in range(12):
        name, color = ("red", (200, 20, 20)) if i % 2 else ("blue", (20, 20, 200))
        Image.fromarray(solid(color, 20 + i, 30)).save(tmp_path / f"{i}.png")
        tasks.append(task(i, f"/data/local-files/?d={i}.png", [choice(name)]))
    path = save_json(tmp_path / "export.json", tasks)
    words = ("--out", tmp_path / "run", "--backbone", "smallcnn", "--weights", "none", "--method", "scratch")
    done = run_tl("train", path, *words, "--epochs", 1, "--image-size", 32, "--threads", 1)
    assert done.code == 0, done.err
    assert {row["label"] for row in read_rows(tmp_path / "run/manifest.csv")} == {"red", "blue"}
