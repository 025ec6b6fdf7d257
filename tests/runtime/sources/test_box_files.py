from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.composites import detection, megadetector
from tl.errors import DataError
from tl.runtime.sources.box_files import read_boxes


def save(path: Path, contents: Any) -> Path:
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents), encoding="utf-8")
    return path


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 160, "height": 120}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40]},
            {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [{"id": 1, "name": "fox"}, {"id": 2, "name": "hare"}],
    } | changes


def test_read_boxes__megadetector(tmp_path: Path) -> None:
    found = [detection((16, 12, 32, 24), 0.9), detection((0, 0, 8, 8), 0.19), detection((0, 0, 8, 8), 0.8, "2")]
    images = [
        {"file": "site 1\\a.jpg", "detections": found},
        {"file": "b.jpg", "detections": []},
        {"file": "c.jpg", "failure": "Failure image access", "detections": None},
        {"file": "d.jpg"},
    ]
    (tmp_path / "site 1").mkdir()
    (tmp_path / "site 1/a.jpg").touch()
    boxes = read_boxes(save(tmp_path / "md.json", megadetector(images)))
    (box,) = boxes.of(str(tmp_path / "site 1/a.jpg"))
    assert (box.xywh, box.is_relative, box.confidence, box.category) == ((0.1, 0.1, 0.2, 0.2), True, 0.9, "animal")
    assert boxes.of(str(tmp_path / "b.jpg")) == ()
    assert boxes.failures == {
        str(tmp_path / "c.jpg"): "Failure image access",
        str(tmp_path / "d.jpg"): "it lists no detections",
    }
    assert boxes.remarks == (
        "1 boxes of 2 images; left out: 1 below confidence 0.2, 1 of category person",
        "the detector failed on 2 images, which therefore have no boxes",
    )
    assert boxes.least == 0.2
    assert not boxes.has_labels


def test_read_boxes__threshold_and_categories(tmp_path: Path) -> None:
    found = [detection((16, 12, 32, 24), c / 10, category) for c, category in ((9, "1"), (1, "1"), (5, "2"), (3, "3"))]
    found[1]["bbox"] = [0.5, 0.5, 0.1, 0.1]
    path = save(tmp_path / "md.json", megadetector([{"file": "a.jpg", "detections": found}]))
    name = str(tmp_path / "a.jpg")
    assert [box.number for box in read_boxes(path, min_confidence=0.05).of(name)] == [0, 1]
    assert [box.number for box in read_boxes(path, categories=["Person", "vehicle"]).of(name)] == [2, 3]
    with pytest.raises(DataError, match="no boxes of category bird \\(found: animal, person, vehicle\\)"):
        read_boxes(path, categories=["bird"])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        read_boxes(path, min_confidence=20)


def test_read_boxes__folders_besides_its_own(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    path = save(tmp_path / "md.json", megadetector([{"file": "a.jpg", "detections": []}]))
    assert read_boxes(path, folders=[tmp_path / "photos"]).of(str(tmp_path / "photos/a.jpg")) == ()


def test_read_boxes__coco_has_labels(tmp_path: Path) -> None:
    boxes = read_boxes(save(tmp_path / "coco.json", coco()))
    fox, hare = boxes.of(str(tmp_path / "a.jpg"))
    assert (fox.xywh, fox.label, fox.stated_hw, fox.is_relative) == ((10, 20, 30, 40), "fox", (120, 160), False)
    assert (hare.label, boxes.has_labels, boxes.of(str(tmp_path / "b.jpg"))) == ("hare", True, ())
    assert boxes.least is None


def test_read_boxes__coco_of_a_detector_has_no_labels(tmp_path: Path) -> None:
    file = coco(categories=[{"id": 1, "name": "animal"}, {"id": 2, "name": "person"}])
    boxes = read_boxes(save(tmp_path / "coco.json", file))
    (animal,) = boxes.of(str(tmp_path / "a.jpg"))
    assert (animal.category, animal.label, boxes.has_labels) == ("animal", "", False)


def test_read_boxes__csv(tmp_path: Path) -> None:
    rows = [
        "File;box_x;box_y;box_w;box_h;box_confidence;label",
        "a.jpg;1,5;2;3;4;0,9;fox",
        "a.jpg;5;6;7;8;0,1;hare",
        "b.jpg;;;;;;",
    ]
    boxes = read_boxes(save(tmp_path / "b.csv", "\n".join(rows)))
    (box,) = boxes.of(str(tmp_path / "a.jpg"))
    assert (box.xywh, box.confidence, box.label, boxes.has_labels) == ((1.5, 2, 3, 4), 0.9, "fox", True)
    assert boxes.of(str(tmp_path / "b.jpg")) == ()


def test_read_boxes__csv_in_fractions(tmp_path: Path) -> None:
    text = "path,box_rel_x,box_rel_y,box_rel_w,box_rel_h\na.jpg,0.1,0.2,0.3,0.4\n"
    boxes = read_boxes(save(tmp_path / "b.csv", text))
    assert boxes.is_relative
    assert boxes.of(str(tmp_path / "a.jpg"))[0].is_relative


def test_read_boxes__equal_boxes_are_one(tmp_path: Path) -> None:
    found = [detection((16, 12, 32, 24))] * 2
    boxes = read_boxes(save(tmp_path / "md.json", megadetector([{"file": "a.jpg", "detections": found}])))
    assert len(boxes.of(str(tmp_path / "a.jpg"))) == 1
    assert "1 listed twice" in boxes.remarks[0]


def test_single__several_boxes(tmp_path: Path) -> None:
    boxes = read_boxes(save(tmp_path / "b.csv", "path,box_x,box_y,box_w,box_h\na.png,0,0,9,9\na.png,1,1,9,9\n"))
    with pytest.raises(DataError, match=r"2 boxes for a\.png; landmark models expect one per image"):
        boxes.single()


BAD: list[tuple[str, Any, str]] = [
    ("no json", "{", "not a JSON file"),
    ("NaN", '{"images": [NaN]}', "not a JSON file"),
    ("other json", {"a": 1}, "neither MegaDetector's JSON .* found: a"),
    ("number", "3", "neither MegaDetector's JSON"),
    ("results", [{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "a list of COCO results has no file names"),
    ("version", megadetector([], "2.0"), r"format_version 2\.0 is not known; expected 1\.x"),
    ("version's form", megadetector([], "one"), r"format_version 'one' is not known; expected 1\.x"),
    ("no images", megadetector([]) | {"images": None}, "images as a list"),
    ("no file", megadetector([{"detections": []}]), r"images\[0\]: expected an object with the key file"),
    ("detections", megadetector([{"file": "a", "detections": 3}]), r"images\[0\]\.detections: expected a list"),
    ("no box", megadetector([{"file": "a", "detections": [{"category": "1", "conf": 1}]}]), "lacks bbox"),
    ("category", megadetector([{"file": "a", "detections": [detection((0, 0, 1, 1), 0.9, "4")]}]), "category '4' is"),
    ("conf", megadetector([{"file": "a", "detections": [detection((0, 0, 1, 1), 90)]}]), "from 0 to 1"),
    (
        "bbox",
        megadetector([{"file": "a", "detections": [detection((0, 0, 1, 1)) | {"bbox": [0, None, 1, 1]}]}]),
        "bbox must be four numbers",
    ),
    ("twice", megadetector([{"file": "a", "detections": []}] * 2), "lists a twice"),
    ("coco image", coco(annotations=[{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]), "KeyError: 9"),
    ("coco bbox", coco(annotations=[{"image_id": 7, "category_id": 1}]), "KeyError: 'bbox'"),
]


@pytest.mark.parametrize(("contents", "fault"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_read_boxes__bad_json(tmp_path: Path, contents: Any, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        read_boxes(save(tmp_path / "b.json", contents))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("path,box_x,box_y,box_w\na,1,2,3\n", "has no column box_h"),
        ("path,box_x,box_y,box_w,box_h\na,1,2,x,3\n", "row 2: expected four numbers"),
        ("path,box_x,box_y,box_w,box_h\na,1,2,0,3\n", "row 2: the width and height of a box must be above 0"),
        ("path,box_x,box_y,box_w,box_h\na,1,2,nan,3\n", "row 2: the width and height of a box must be above 0"),
        ("path,box_x,box_y,box_w,box_h\na,1,,3,3\n", "row 2: expected four numbers"),
        ("path,box_x,box_y,box_w,box_h,conf\na,1,2,3,3,high\n", "row 2: expected a number for the confidence"),
        ("path,box_x,box_y,box_w,box_h,conf\na,1,2,3,3,1.5\n", "row 2: a confidence must be a number from 0 to 1"),
    ],
)
def test_read_boxes__bad_csv(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        read_boxes(save(tmp_path / "b.csv", text))


def test_read_boxes__missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_boxes(tmp_path / "b.json")
