"""Landmarks on the command line: predict to every format, evaluate, draw."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.conftest import RunTl
from tests.spots import USUAL_XY, make_spot_model, save_spots
from tl.runtime.landmarks import wide_csv
from tl.runtime.landmarks.files import read_landmarks
from tl.runtime.landmarks.sets import LandmarkSet, image_landmarks


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two valid images and a damaged one."""
    for i in range(2):
        save_spots(tmp_path / "photos" / f"{i}.png", USUAL_XY + i)
    (tmp_path / "photos" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "photos"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predict__csv(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    model = make_spot_model(tmp_path / "m.onnx")
    done = run_tl("predict", photos, "--model", model, "-o", tmp_path / "out.csv")
    assert done.code == 3
    rows = read(tmp_path / "out.csv")
    points = [f"{sign}_{name}" for name in ("red", "green", "blue") for sign in "xyp"]
    assert list(rows[0]) == ["path", *points, "centroid_size", "shape_distance", "is_odd", "error"]
    true_size = float(np.sqrt(((USUAL_XY - USUAL_XY.mean(axis=0)) ** 2).sum()))
    assert float(rows[0]["centroid_size"]) == pytest.approx(true_size, abs=0.3)
    assert float(rows[1]["x_red"]) == pytest.approx(21, abs=0.15)  # hundredths of a model pixel, at 60% of the size
    assert [row["is_odd"] for row in rows] == ["no", "no", ""]
    assert rows[2]["error"]
    back = read_landmarks(tmp_path / "out.csv")
    assert back.remarks == ("1 rows with an error instead of points were skipped",)


@pytest.mark.parametrize(
    ("form", "suffix"), [("long", ".csv"), ("deeplabcut", ".csv"), ("tps", ".tps"), ("coco", ".json")]
)
def test_predict__named_format(run_tl: RunTl, photos: Path, tmp_path: Path, form: str, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    model = make_spot_model(tmp_path / "m.onnx")
    done = run_tl("predict", photos, "--model", model, "-o", out, "--to", form)
    assert done.code == 3
    found = read_landmarks(out).images
    np.testing.assert_allclose([p.keypoints_xy[1] for p in found], [[60, 20], [61, 21]], atol=0.15)
    if form != "tps":  # TPS has no names
        assert read_landmarks(out).keypoint_names == ("red", "green", "blue")
    assert [Path(row["path"]).name for row in read(Path(f"{out}.failed.csv"))] == ["x.png"]
    wrong = run_tl("predict", photos, "--model", model, "-o", tmp_path / "out.parquet", "--to", form)
    assert (wrong.code, suffix in wrong.err) == (1, True)


def test_predict__scale_of_the_photos(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    model = make_spot_model(tmp_path / "m.onnx")
    for name in ("all.csv", "all.tps"):
        assert run_tl("predict", photos, "--model", model, "-o", tmp_path / name, "--mm-per-px", "0.02").code == 3
        assert [p.mm_per_px for p in read_landmarks(tmp_path / name).images] == [0.02, 0.02]
    (tmp_path / "scales.csv").write_text("path,mm_per_px,note\nphotos/1.png,0.5,x\n", encoding="utf-8")
    out = tmp_path / "each.csv"
    unmatched = run_tl("predict", photos, "--model", model, "-o", out, "--mm-per-px", tmp_path / "scales.csv")
    assert unmatched.code == 3
    assert [p.mm_per_px for p in read_landmarks(out).images] == [None, 0.5]
    assert "1 images have no scale, first" in unmatched.err
    # Scales written by one call can be read by another.
    again = run_tl("predict", photos, "--model", model, "-o", tmp_path / "l.csv", "--to", "long", "--mm-per-px", out)
    assert again.code == 3
    assert [p.mm_per_px for p in read_landmarks(tmp_path / "l.csv").images] == [None, 0.5]
    for wrong in ("0", "nan", tmp_path / "nowhere.csv"):
        assert run_tl("predict", photos, "--model", model, "--mm-per-px", wrong).code == 1


@pytest.mark.parametrize("suffix", [".tps", ".json", ".jsonl"])
def test_predict__other_formats(run_tl: RunTl, photos: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    done = run_tl("predict", photos, "--model", make_spot_model(tmp_path / "m.onnx"), "-o", out)
    assert done.code == 3
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        found = np.array([[row["keypoints"]["green"][axis] for axis in "xy"] for row in rows[:2]])
        assert set(rows[2]) == {"path", "error"}
    else:
        found = np.stack([image.keypoints_xy[1] for image in read_landmarks(out).images])
        assert [Path(row["path"]).name for row in read(Path(f"{out}.failed.csv"))] == ["x.png"]
    np.testing.assert_allclose(found, [[60, 20], [61, 21]], atol=0.15)


@pytest.mark.parametrize("suffix", [".tps", ".json"])
def test_predict__the_list_of_failed_images_is_an_output_too(
    run_tl: RunTl, photos: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    listed = Path(f"{out}.failed.csv")
    words = ("predict", photos, "--model", make_spot_model(tmp_path / "m.onnx"), "-o", out)
    listed.write_text("precious")
    refused = run_tl(*words)
    assert (refused.code, f"{listed}: exists" in refused.err, "--overwrite" in refused.err) == (1, True, True)
    assert (listed.read_text(), out.exists()) == ("precious", False)
    assert run_tl(*words, "--overwrite").code == 3
    assert run_tl(*words).code == 3  # its own, unchanged
    listed.write_text(listed.read_text() + "note\n")
    assert (run_tl(*words).code, listed.read_text().endswith("note\n")) == (1, True)
    listed.unlink()
    assert run_tl(*words).code == 3
    (photos / "x.png").unlink()
    assert (run_tl(*words).code, listed.exists()) == (0, False)  # nothing failed, so nothing is listed


def test_predict__ensemble_with_locator_boxes_and_drawings(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    fine = [make_spot_model(tmp_path / f"{name}.onnx", region="points", region_margin=0.5) for name in "ab"]
    coarse = make_spot_model(tmp_path / "coarse.onnx")
    located = run_tl("predict", photos, "--ensemble", *fine, "--locator", coarse, "--draw", tmp_path / "drawn")
    assert located.code == 3
    rows = list(csv.DictReader(located.out.splitlines()))
    assert float(rows[0]["x_red"]) == pytest.approx(20, abs=0.15)
    assert float(rows[0]["s_red"]) == pytest.approx(0, abs=1e-4)  # the same model twice, in float32
    drawn = sorted((tmp_path / "drawn").rglob("*.jpg"))
    assert [path.name for path in drawn] == ["0.png.points.jpg", "1.png.points.jpg"]
    with Image.open(drawn[0]) as image:
        assert image.size == (80, 60)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,box_x,box_y,box_w,box_h\nphotos/0.png,18,12,45,36\n", encoding="utf-8")
    run_tl("predict", photos, "--model", fine[0], "--boxes", boxes, "-o", tmp_path / "boxed.csv")
    rows = read(tmp_path / "boxed.csv")
    assert float(rows[0]["x_green"]) == pytest.approx(60, abs=0.15)
    assert "contains no box for this image" in rows[1]["error"]


def test_predict__drawings_of_archives_and_of_folders_above(
    run_tl: RunTl, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_spot_model(tmp_path / "m.onnx")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photos / "0.png", "0.png")
    packed = run_tl("predict", tmp_path / "a.zip", "--model", model, "--draw", tmp_path / "drawn")
    assert packed.code == 0
    assert "1 images in archives or films were not drawn, first" in packed.err
    (photos / "photos").mkdir()
    save_spots(photos / "photos" / "0.png", USUAL_XY)
    monkeypatch.chdir(photos)
    run_tl("predict", "../photos/0.png", "photos/0.png", "--model", model, "--draw", "d")
    assert sorted(path.as_posix() for path in Path("d").rglob("*.jpg")) == [
        "d/__/photos/0.png.points.jpg",
        "d/photos/0.png.points.jpg",
    ]


def test_predict__box_model_requires_boxes_or_locator(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    done = run_tl("predict", photos, "--model", make_spot_model(tmp_path / "m.onnx", region="box"))
    assert done.code == 1
    assert "--boxes boxes.csv" in done.err


def test_predict__flags_for_landmarks_mean_nothing_to_classes(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    done = run_tl("predict", photos, "--model", color_model, "--draw", "d", "--crop-margin", "0.1")
    assert done.code == 1
    assert "--crop-margin, --draw: applies only to landmark models" in done.err
    merged = run_tl("predict", photos, "--model", color_model, "--merge", "median")
    assert "--merge: applies only to landmark models" in merged.err


def test_predict__flags_for_classes_mean_nothing_to_landmarks(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    done = run_tl("predict", photos, "--model", make_spot_model(tmp_path / "m.onnx"), "--vote", "hard")
    assert done.code == 1
    assert "--vote: applies only to classifiers" in done.err


def test_evaluate__members_and_merged(run_tl: RunTl, tmp_path: Path) -> None:
    images = []
    for i in range(4):
        save_spots(tmp_path / f"{i}.png", USUAL_XY)
        images.append(image_landmarks(f"{i}.png", USUAL_XY, split="test" if i else "train"))
    data = tmp_path / "true.csv"
    data.write_text(wide_csv.write(LandmarkSet(("red", "green", "blue"), tuple(images))), encoding="utf-8")
    files = [make_spot_model(tmp_path / f"{s}.onnx", shift=float(s)) for s in (0, 3)]
    done = run_tl("evaluate", data, "--ensemble", *files, "--json")
    assert done.code == 0
    rows = {(row["model"], row["merging"]): row for row in json.loads(done.out)["rows"]}
    assert list(rows) == [("0", ""), ("3", ""), ("ensemble", "mean"), ("ensemble", "median")]
    # A shift of 3 input pixels is 5 photo pixels, at a scale of 48 to 80.
    errors = [row["error_px"] for row in rows.values()]
    assert errors == pytest.approx([0, 5, 2.5, 2.5], abs=0.15)
    assert rows["0", ""]["n"] == 3
    table = run_tl("evaluate", data, "--model", files[1])
    assert table.out.splitlines()[0] == (
        "model,merging,n,points,error_px,ci_low,ci_high,rmse_px,normalized_error,extent_error"
    )
    assert "evaluating on split 'test': 3 images" in table.err


def test_evaluate__whole_and_part_together(run_tl: RunTl, tmp_path: Path) -> None:
    for i in range(3):
        save_spots(tmp_path / f"{i}.png", USUAL_XY + i)
    images = tuple(image_landmarks(f"{i}.png", USUAL_XY + i) for i in range(3))
    data = tmp_path / "true.csv"
    data.write_text(wide_csv.write(LandmarkSet(("red", "green", "blue"), images)), encoding="utf-8")
    whole = make_spot_model(tmp_path / "whole.onnx")
    part = make_spot_model(tmp_path / "part.onnx", region="points", region_margin=0.5)
    done = run_tl("evaluate", data, "--ensemble", whole, part, "--split", "all", "--json")
    assert done.code == 0, done.err
    assert [row["error_px"] < 0.2 for row in json.loads(done.out)["rows"]] == [True] * 4
    blamed = run_tl("predict", tmp_path / "0.png", "--ensemble", whole, part)
    assert "part.onnx: this model uses the region around the points" in blamed.err


def test_inspect_and_verify(run_tl: RunTl, tmp_path: Path) -> None:
    model = make_spot_model(tmp_path / "m.onnx")
    shown = run_tl("inspect", model)
    assert "landmarks, fp32" in shown.out
    assert "red, green, blue" in shown.out
    assert run_tl("verify", model, "--device", "cpu").code == 0
