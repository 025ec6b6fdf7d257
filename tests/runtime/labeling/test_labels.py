"""Classes in files of labeling tools become the same rows as those of a CSV."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.labeling.exports import (
    choice,
    cvat,
    cvat_image,
    key_point,
    labelme,
    save_json,
    save_photos,
    task,
    via_image,
    via_project,
)
from tl.data.label_sets import read_label_sets
from tl.data.manifests import ManifestColumns, read_images
from tl.errors import DataError
from tl.runtime.labeling.tools import find_tool, has_several_labels
from tl.runtime.landmarks.files import image_finder, is_landmark_file, read_landmarks

LOCAL = "/data/local-files/?d="


def rows(data: Path, said: list[str] | None = None, **columns: Any) -> list[tuple[str, str, str]]:
    found = read_images(data, ManifestColumns(**columns), (said if said is not None else []).append)
    return [(image.name, image.label, image.split) for image in found]


def test_label_studio__local_uploaded_and_remote_images(tmp_path: Path) -> None:
    names = ["a b.png", "deep/b.png", "c.png", "my photo (1).png"]
    save_photos(tmp_path / "photos", names)
    tasks = [
        task(1, f"{LOCAL}photos/a%20b.png", [choice("cat")]),
        task(2, f"{LOCAL}root/deep/b.png", [choice("dog")]),
        task(3, "s3://bucket/some/c.png", [choice("cat")]),
        task(4, "/data/upload/7/0a1b2c3d-my_photo_1.png", [choice("dog")]),
    ]
    path = save_json(tmp_path / "export.json", tasks)
    assert find_tool(path) == "labelstudio"
    found = rows(path, images=str(tmp_path / "photos"))
    assert found == [(name, label, "") for name, label in zip(names, ("cat", "dog", "cat", "dog"), strict=True)]


def test_label_studio__what_is_not_used_is_counted(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png", "c.png", "d.png", "e.png"])
    skipped = task(3, f"{LOCAL}c.png", [])
    skipped["annotations"][0]["was_cancelled"] = True
    box = {"from_name": "box", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}}
    per_region = {**choice("small", control="size"), "value": {"choices": ["small"], "x": 1, "y": 1}}
    tasks = [
        task(1, f"{LOCAL}a.png", [choice("cat"), box, box, per_region]),
        task(2, f"{LOCAL}b.png", [choice("dog")], [choice("cat")]),
        skipped,
        task(4, f"{LOCAL}d.png", predictions=[{"result": [choice("cat")]}]),
        task(5, f"{LOCAL}e.png", []),
    ]
    said: list[str] = []
    assert rows(save_json(tmp_path / "x.json", tasks), said) == [("a.png", "cat", ""), ("b.png", "cat", "")]
    assert said == [
        "x.json: 2 results of the kind rectanglelabels are not used",
        "x.json: 1 results of the kind choices are not used",
        "x.json: 1 tasks were skipped by their annotators: not labeled",
        "x.json: 1 tasks with predictions only: not labeled",
        "x.json: 1 tasks have several annotations: the latest counts",
        "x.json: 3 images without a class were left out",
    ]


@pytest.mark.parametrize(
    ("answers", "rule", "expected"),
    [
        (("cat", "dog", "cat"), "latest", "cat"),
        (("cat", "cat", "dog"), "latest", "dog"),
        (("cat", "cat", "dog"), "majority", "cat"),
        (("cat", "dog"), "majority", "dog"),  # a tie: the latest of them
    ],
)
def test_label_studio__several_annotators(tmp_path: Path, answers: Any, rule: Any, expected: str) -> None:
    save_photos(tmp_path, ["a.png", "b.png"])
    tasks = [task(1, "a.png", *([choice(each)] for each in answers)), task(2, "b.png", [choice("dog")])]
    path = save_json(tmp_path / "export.json", tasks)
    assert rows(path, annotators=rule)[0][1] == expected
    tasks[0]["annotations"][0]["ground_truth"] = True  # decides alone
    assert rows(save_json(path, tasks), annotators=rule)[0][1] == "cat"


def test_label_studio__json_min_is_the_same(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png", "c.png"])
    common = {"annotator": 1, "lead_time": 2.5, "created_at": "2026-01-01T00:00:00Z"}

    def row(number: int, image: str, day: int, **answers: Any) -> dict[str, Any]:
        facts = {**common, "annotation_id": 100 * number + day, "updated_at": f"2026-01-0{day}T00:00:00Z"}
        return {"image": f"{LOCAL}{image}", "id": number, **answers, **facts}

    parsed = [row(1, "a.png", 2, species="cat"), row(1, "a.png", 1, species="dog"), row(2, "b.png", 1, species="dog")]
    path = save_json(tmp_path / "min.json", [*parsed, row(3, "c.png", 1)])
    said: list[str] = []
    assert rows(path, said) == [("a.png", "cat", ""), ("b.png", "dog", "")]
    assert "min.json: 1 images without a class were left out" in said
    several = save_json(path, [row(1, "a.png", 1, species={"choices": ["cat", "dog"]}), *parsed[2:]])
    with pytest.raises(DataError, match=r"min\.json: task 1: has 2 classes \(cat, dog\)"):
        rows(several)
    names, images = read_label_sets(str(several), ManifestColumns(), said.append)
    assert (names, [image.label for image in images]) == (("cat", "dog"), ["cat;dog", "dog"])
    both = save_json(path, [row(1, "a.png", 1, species="cat", quality="good"), *parsed[2:]])
    with pytest.raises(DataError, match="has 2 choices, 'species', 'quality'") as caught:
        rows(both)
    assert caught.value.options == ("label_column=species", "label_column=quality")
    assert rows(both, label="species") == [("a.png", "cat", ""), ("b.png", "dog", "")]


def test_label_studio__several_labels_and_none(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png", "c.png"])
    tasks = [task(1, "a.png", [choice("cat", "dog")]), task(2, "b.png", []), task(3, "c.png")]
    path = save_json(tmp_path / "x.json", tasks)
    said: list[str] = []
    names, images = read_label_sets(str(path), ManifestColumns(), said.append)
    assert names == ("cat", "dog")
    assert [(image.name, image.label) for image in images] == [("a.png", "cat;dog"), ("b.png", "")]
    assert said[-1] == "x.json: 1 images without a class were left out"


def test_cvat__tags_subsets_and_images_folder(tmp_path: Path) -> None:
    save_photos(tmp_path / "images", ["a.png", "b.png", "c.png"])
    box = '<box label="cat" xtl="1" ytl="1" xbr="2" ybr="2"/>'
    text = cvat(
        cvat_image("a.png", '<tag label="cat" source="manual"></tag>', box, subset="Train"),
        cvat_image("b.png", '<tag label="dog"/>', subset="Validation"),
        cvat_image("c.png"),
    )
    (tmp_path / "annotations.xml").write_text(text, encoding="utf-8")
    said: list[str] = []
    found = rows(tmp_path / "annotations.xml", said)
    assert found == [("images/a.png", "cat", "train"), ("images/b.png", "dog", "val")]
    assert said == [
        "annotations.xml: 1 shapes of the kind box are not used",
        "annotations.xml: 1 images without a class were left out",
    ]


def test_cvat__project_with_the_same_name_in_each_subset(tmp_path: Path) -> None:
    save_photos(tmp_path / "images", ["Train/a.png", "Test/a.png"])
    tags = [cvat_image("a.png", f'<tag label="{tag}"/>', subset=s) for tag, s in (("cat", "Train"), ("dog", "Test"))]
    (tmp_path / "annotations.xml").write_text(cvat(*tags), encoding="utf-8")
    found = rows(tmp_path / "annotations.xml")
    assert found == [("images/Train/a.png", "cat", "train"), ("images/Test/a.png", "dog", "test")]


def test_via__project_annotations_and_csv(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png"])
    images = [via_image("a.png", {"species": "cat"}), via_image("b.png", {"species": {"dog": True}})]
    expected = [("a.png", "cat", ""), ("b.png", "dog", "")]
    assert rows(save_json(tmp_path / "p.json", via_project(*images))) == expected
    assert rows(save_json(tmp_path / "q.json", {image["filename"]: image for image in images})) == expected
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    cells = ['{""species"":""cat""}', '{""species"":{""dog"":true}}']
    lines = [f'{name}.png,700,"{cell}",0,0,"{{}}","{{}}"' for name, cell in zip("ab", cells, strict=True)]
    for start in ("", "#"):
        (tmp_path / "via.csv").write_text("\n".join([start + header, *lines]) + "\n", encoding="utf-8")
        assert rows(tmp_path / "via.csv") == expected


def test_labelme__flags(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "sub/b.png", "c.png"])
    save_json(tmp_path / "a.json", labelme("a.png", {"cat": True, "dog": False}))
    (tmp_path / "labels").mkdir()
    save_json(tmp_path / "labels/b.json", labelme("..\\sub\\b.png", {"cat": False, "dog": True}))
    save_json(tmp_path / "settings.json", {"x": 1})
    said: list[str] = []
    assert rows(tmp_path, said) == [("a.png", "cat", ""), ("sub/b.png", "dog", "")]
    assert [line.split(": ")[1] for line in said] == [
        "1 JSON files that are not of labelme were left out",
        "1 images without a file of labelme were left out",
    ]


def test_roboflow__one_class_each_or_several(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        save_photos(tmp_path / split, [f"{name}.jpg"])
        text = f"filename, cat, dog\n{name}.jpg, {int(name != 'b')}, {int(name == 'b')}\n"
        (tmp_path / split / "_classes.csv").write_text(text, encoding="utf-8")
    assert sorted(rows(tmp_path)) == [
        ("test/c.jpg", "cat", "test"),
        ("train/a.jpg", "cat", "train"),
        ("valid/b.jpg", "dog", "val"),
    ]
    assert rows(tmp_path / "train/_classes.csv") == [("a.jpg", "cat", "")]
    assert not has_several_labels(tmp_path)
    (tmp_path / "train/_classes.csv").write_text("filename, cat, dog\na.jpg, 1, 1\n", encoding="utf-8")
    assert has_several_labels(tmp_path)
    names, images = read_label_sets(str(tmp_path), ManifestColumns(), lambda line: None)
    assert names == ("cat", "dog")
    assert {(image.label, image.split) for image in images} == {("cat;dog", "train"), ("dog", "val"), ("cat", "test")}
    (tmp_path / "valid/_classes.csv").write_text("filename, cat, fox\nb.jpg, 1, 0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"differ in class 'dog'"):
        rows(tmp_path)
    (tmp_path / "train/_classes.csv").write_text("filename, cat, dog\na.jpg, 1, x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"_classes\.csv row 2: column 'dog' must be 0 or 1, found 'x'"):
        rows(tmp_path / "train/_classes.csv")


def test_roboflow__class_folders(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        save_photos(tmp_path / split, ["cat/1.jpg", "dog/2.jpg"])
    assert {split for *_, split in rows(tmp_path)} == {"train", "val", "test"}


def _tasks(*found: Any) -> Callable[[Path], Path]:
    return lambda folder: save_json(folder / "x.json", list(found))


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return write


A = f"{LOCAL}a.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_tasks(task(1, A, [choice("cat", "dog")])), "x.json: task 1: has 2 classes (cat, dog): keep one, or"),
        (_tasks(task(1, A, [choice("cat")]), task(2, A, [choice("cat")])), "task 2: is of a.png, as is task 1: keep"),
        (_tasks(task(1, f"{LOCAL}gone.png", [choice("cat")])), "1 of 1 images do not exist, first gone.png"),
        (_tasks(task(1, A)), "none of its 1 images has a class (1 tasks without an annotation: not labeled)"),
        (
            _tasks(task(1, A, [choice("cat"), choice("good", control="quality")])),
            "has 2 choices, 'species', 'quality': name the one to use",
        ),
        (_tasks({"id": 1, "data": {"text": "a"}, "annotations": []}), "expected one field of the tasks that names an"),
        (_tasks(task(1, A, [{"type": "choices", "from_name": "s", "value": {}}])), "task 1: not as Label Studio"),
        (_text("x.json", '{"a": 1}'), "not recognized as a file of Label Studio"),
        (_text("x.xml", "<html></html>"), "not recognized as a file of Label Studio"),
        (_text("x.xml", cvat(cvat_image("a.png", '<tag label="fox"/>'))), "a.png: label 'fox' is not one of the 4"),
        (
            _text("x.xml", cvat(cvat_image("a.png", '<tag label="cat"/>', '<tag label="dog"/>'))),
            "image a.png: has 2 classes (cat, dog)",
        ),
        (_text("x.xml", cvat(cvat_image("a.png", '<tag label="cat"/>', subset="odd"))), "split 'odd' is not one of"),
        (_text("x.xml", cvat('<track id="0" label="cat"></track>')), "is of a video: export it as CVAT for images"),
        (_text("x.xml", cvat(before='<!DOCTYPE a [<!ENTITY b "c">]>\n')), "has a document type"),
        (_text("x.xml", cvat("<image")), "not a readable XML file"),
        (_text("_classes.csv", "path,cat\na.png,1\n"), "expected the columns filename and one for each class"),
        (
            lambda to: save_json(to / "v.json", via_project(via_image("a.png", {"species": "cat", "sex": "f"}))),
            "has 2 file attributes, 'species', 'sex'",
        ),
    ],
)  # fmt: skip
def test_faults__say_where_and_what(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    save_photos(tmp_path, ["a.png"])
    with pytest.raises(DataError) as caught:
        rows(make(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels__of_a_file_with_points(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    said: list[str] = []
    path = save_json(tmp_path / "x.json", [task(1, "a.png", [choice("cat"), key_point("tip", 10, 10)])])
    assert rows(path, said) == [("a.png", "cat", "")]
    assert said == ["x.json: its points are not used, only its classes"]


def test_label_name__for_a_tool_without_names(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    path = _text("x.xml", cvat(cvat_image("a.png", '<tag label="cat"/>')))(tmp_path)
    with pytest.raises(DataError, match="files of cvat have nothing called 'species'"):
        rows(path, label="species")


def test_via__classes_of_a_file_with_several_point_attributes(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    image = via_image("a.png", {"sex": "f"}, ("tip", 3, 4))
    image["regions"][0]["region_attributes"]["side"] = "left"
    path = save_json(tmp_path / "v.json", via_project(image))
    said: list[str] = []
    assert rows(path, said) == rows(path, label="sex") == [("a.png", "f", "")]
    assert said == ["v.json: 1 regions of the kind point are not used"]
    with pytest.raises(DataError, match=r"v\.json: 'side' is an attribute of points, not of files"):
        rows(path, label="side")
    with pytest.raises(DataError, match=r"v\.json: has no file attribute 'sax' \(found: 'sex'\)"):
        rows(path, label="sax")


def _min_row(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": number, "annotation_id": number, "updated_at": "2026", "image": f"{LOCAL}{number}.png", **fields}


def test_json_min__says_which_text_is_the_class(tmp_path: Path) -> None:
    save_photos(tmp_path, ["1.png", "2.png"])
    path = tmp_path / "min.json"
    said: list[str] = []
    save_json(path, [_min_row(1, camera="north"), _min_row(2, camera="south")])
    assert [label for _, label, _ in rows(path, said)] == ["north", "south"]
    assert said == ["min.json: 2 values of the field 'camera' are used as classes"]
    said.clear()
    rows(path, said, label="camera")
    assert said == ["min.json: reads column 'camera' as label"]
    said.clear()
    save_json(path, [_min_row(1, species="cat"), _min_row(2, species={"choices": ["dog"]})])
    rows(path, said)  # only a choice is an object
    assert said == []
    save_json(path, [_min_row(1, camera="north", species="cat"), _min_row(2, camera="south", species="dog")])
    with pytest.raises(DataError, match="has 2 choices, 'camera', 'species': name the one to use"):
        rows(path)
    points = [{"x": 5, "y": 5, "keypointlabels": ["tip"]}]
    save_json(path, [_min_row(1, camera="north", species="cat", parts=points)])
    with pytest.raises(DataError, match="has 2 choices, 'camera', 'species': name the one to use"):
        rows(path)


def test_images__are_looked_for_where_those_of_points_are(tmp_path: Path) -> None:
    save_photos(tmp_path, ["photos/a.png"])
    (tmp_path / "labels/tool").mkdir(parents=True)
    both = task(1, f"{LOCAL}photos/a.png", [choice("cat"), key_point("tip", 50, 50)])
    path = save_json(tmp_path / "labels/tool/x.json", [both])
    [image] = read_images(path)
    assert Path(image.path).samefile(tmp_path / "photos/a.png")
    [pointed] = read_landmarks(path).images
    assert Path(image_finder(path)(pointed.name)).samefile(image.path)


EXPORTS = {
    "x.json": json.dumps([task(1, "a.png", [choice("cat")])]),
    "v.json": json.dumps(via_project(via_image("a.png", {"species": "cat"}))),
    "v.csv": "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    'a.png,7,"{""species"":""cat""}",0,0,"{}","{}"\n',
    "x.xml": cvat(cvat_image("a.png", '<tag label="cat"/>')),
    "m.csv": "path,label,labels\na.png,cat,cat\n",
}


@pytest.mark.parametrize("name", EXPORTS)
def test_file__is_read_at_most_twice(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_photos(tmp_path, ["a.png"])
    path, opened = _text(name, EXPORTS[name])(tmp_path), 0
    read_bytes = Path.read_bytes

    def count(self: Path) -> bytes:
        nonlocal opened
        opened += self == path
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", count)
    assert not is_landmark_file(path)
    assert not is_landmark_file(path)  # as commands do that check their options first
    assert not has_several_labels(path)
    _, [image] = read_label_sets(str(path), ManifestColumns(), lambda line: None)
    assert image.label == "cat"
    assert 1 <= opened <= 2
