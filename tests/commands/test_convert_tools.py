"""`tl convert --to` for labeling tools: what is written is read back without loss."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import RunTl
from tests.runtime.labeling.exports import save_photos
from tl.runtime.landmarks.files import read_landmarks

OUTPUTS = {"via": "via.json", "labelme": "labelme", "roboflow": "_classes.csv", "cvat": "cvat.xml"}
NAMES = ("photos/a 1.png", "photos/ü.png", "photos/in/c.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_photos(tmp_path, NAMES)
    return tmp_path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def by_path(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Rows without the order of images and of the labels of an image."""
    return sorted((row["path"], *sorted((row.get("label") or row["labels"]).split("|"))) for row in rows)


@pytest.mark.parametrize("to", list(OUTPUTS))
def test_convert__classes_to_a_tool_and_back(run_tl: RunTl, data: Path, to: str) -> None:
    labels = data / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{n},{c}\n" for n, c in zip(NAMES, ("ant", "bee", "ant"), strict=True)))
    done = run_tl("convert", labels, "-o", data / OUTPUTS[to], "--to", to)
    assert done.code == 0, done.err
    assert "3 images with 2 classes" in done.err
    done = run_tl("convert", data / OUTPUTS[to], "-o", data / "back.csv", "--images", data)
    assert done.code == 0, done.err
    assert by_path(read_rows(data / "back.csv")) == by_path(read_rows(labels))


@pytest.mark.parametrize("to", list(OUTPUTS))
def test_convert__several_labels_to_a_tool_and_back(run_tl: RunTl, data: Path, to: str) -> None:
    labels = data / "labels.csv"
    labels.write_text(
        "path,labels\n" + "".join(f"{n},{c}\n" for n, c in zip(NAMES, ("ant|bee", "bee", "cat"), strict=True))
    )
    several = ("--task", "multilabel")
    done = run_tl("convert", labels, "-o", data / OUTPUTS[to], "--to", to, *several)
    assert done.code == 0, done.err
    done = run_tl("convert", data / OUTPUTS[to], "-o", data / "back.csv", "--images", data, *several)
    assert done.code == 0, done.err
    assert by_path(read_rows(data / "back.csv")) == by_path(read_rows(labels))


@pytest.mark.parametrize("to", ["via", "labelme", "cvat"])
def test_convert__points_to_a_tool_and_back(run_tl: RunTl, data: Path, to: str) -> None:
    points = data / "points.csv"
    points.write_text(
        f"path,x_tip,y_tip,x_base,y_base\n{NAMES[0]},1.25,2,3.123456,4\n{NAMES[1]},,,0,0\n{NAMES[2]},5,6,7,8.5\n"
    )
    done = run_tl("convert", points, "-o", data / OUTPUTS[to], "--to", to)
    assert done.code == 0, done.err
    found = read_landmarks(data / OUTPUTS[to], data)
    wanted = read_landmarks(points)
    assert set(found.keypoint_names) == set(wanted.keypoint_names)
    order = [found.keypoint_names.index(name) for name in wanted.keypoint_names]
    images = {image.name: image for image in found.images}
    assert len(images) == 3
    for image in wanted.images:
        np.testing.assert_allclose(images[image.name].keypoints_xy[order], image.keypoints_xy, atol=1e-6)


def test_convert__what_a_tool_cannot_hold(run_tl: RunTl, data: Path) -> None:
    labels = data / "labels.csv"
    splits = zip(NAMES, ("train", "train", "val"), strict=True)
    labels.write_text("path,label,split\n" + "".join(f"{name},x,{split}\n" for name, split in splits))
    done = run_tl("convert", labels, "-o", data / "via.json", "--to", "via")
    assert "splits: cannot be stored in format via" in done.err
    assert run_tl("convert", labels, "-o", data / "cvat.xml", "--to", "cvat").code == 0
    assert run_tl("convert", data / "cvat.xml", "-o", data / "back.csv", "--images", data).code == 0
    assert sorted(row["split"] for row in read_rows(data / "back.csv")) == ["train", "train", "val"]
    points = data / "points.csv"
    points.write_text(f"path,x0,y0\n{NAMES[0]},1,2\n")
    for words, message in (
        ((points, "-o", data / "p.csv", "--to", "roboflow"), "holds classes alone: write points in another format"),
        ((labels, "-o", data / "v.xml", "--to", "via"), "expected the extension .json for format via"),
        ((labels, "-o", data / "l.json", "--to", "labelme"), "expected the name of a folder"),
        ((labels, "-o", data / "photos", "--to", "labelme"), "is not empty"),
    ):
        done = run_tl("convert", *words)
        assert (done.code, message in done.err) == (1, True), done.err


def test_convert__labelme_files_of_images_with_one_name(run_tl: RunTl, data: Path) -> None:
    labels = data / "labels.csv"
    save_photos(data, ["bee/1.png", "ant/1.png"])
    labels.write_text("path,label\nant/1.png,ant\nbee/1.png,bee\n")
    assert run_tl("convert", labels, "-o", data / "out", "--to", "labelme").code == 0
    parsed = json.loads((data / "out" / "ant__1.png.json").read_text(encoding="utf-8"))
    assert parsed["imagePath"] == "../ant/1.png"
    assert parsed["flags"] == {"ant": True, "bee": False}
    assert (parsed["imageHeight"], parsed["imageWidth"]) == (10, 20)
