"""Points in files of labeling tools become landmarks, in pixels from the center of the top-left pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
from tl.errors import DataError
from tl.runtime.labeling.label_studio_tasks import TaskLinks
from tl.runtime.landmarks.files import image_sizes, is_landmark_file, read_landmarks, write_landmarks
from tl.runtime.landmarks.sets import LandmarkSet, image_landmarks

# 20 x 10 pixels: the center of the image is at (9.5, 4.5).
CENTER = (9.5, 4.5)


def xy(path: Path, **options: Any) -> dict[str, dict[str, tuple[float, float]]]:
    """Image -> point -> place, without missing points."""
    found = read_landmarks(path, **options)
    return {
        image.name: {
            name: (round(float(x), 6), round(float(y), 6))
            for name, (x, y) in zip(found.keypoint_names, image.keypoints_xy, strict=True)
            if not np.isnan(x)
        }
        for image in found.images
    }


def test_label_studio__percent_of_the_image(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png", "c.png"])
    tasks = [
        task(1, "/data/local-files/?d=a.png", [key_point("tip", 50, 50), key_point("base", 0, 100)]),
        task(2, "/data/local-files/?d=b.png", [key_point("base", 100, 0)]),
        task(3, "/data/local-files/?d=c.png", [choice("cat")]),
    ]
    path = save_json(tmp_path / "x.json", tasks)
    assert is_landmark_file(path)
    assert xy(path) == {"a.png": {"tip": CENTER, "base": (-0.5, 9.5)}, "b.png": {"base": (19.5, -0.5)}}
    assert read_landmarks(path).remarks == (
        "1 images without points were skipped",
        "classes of 1 images are not used, only points: set task to classification for them",
    )


def test_label_studio__json_min_and_points_without_a_size(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    point = {"x": 50, "y": 50, "width": 0.5, "keypointlabels": ["tip"]}
    row = {"image": "/data/local-files/?d=a.png", "id": 1, "parts": [point], "annotator": 1, "annotation_id": 3}
    path = save_json(tmp_path / "x.json", [row])
    assert xy(path) == {"a.png": {"tip": CENTER}}
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"image a\.png was not found, and its points are in percent"):
        read_landmarks(path)


def test_label_studio__several_annotators(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    answers = [[key_point("tip", x, 50), *extra] for x, extra in ((40, []), (50, [key_point("base", 0, 0)]), (90, []))]
    path = save_json(tmp_path / "x.json", [task(1, "a.png", *answers)])
    assert xy(path) == {"a.png": {"tip": (17.5, 4.5)}}
    assert xy(path, annotators="majority") == {"a.png": {"tip": CENTER}}  # base: placed by one of three


def test_cvat__points_and_skeletons(tmp_path: Path) -> None:
    save_photos(tmp_path / "images", ["a.png", "b.png"])
    bones = (
        '<skeleton label="cat"><points label="tip" outside="0" occluded="1" points="10,5"/>'
        '<points label="base" outside="1" points="1,1"/></skeleton>'
    )
    text = cvat(
        cvat_image("a.png", '<points label="base" points="0.5,0.5"/>', '<points label="tip" points="10,5"/>'),
        cvat_image("b.png", bones, subset="Validation"),
    )
    path = tmp_path / "annotations.xml"
    path.write_text(text, encoding="utf-8")
    assert is_landmark_file(path)
    assert xy(path) == {"a.png": {"tip": CENTER, "base": (0.0, 0.0)}, "b.png": {"tip": CENTER}}
    found = read_landmarks(path)
    assert found.keypoint_names == ("tip", "base")  # in the order of the labels
    assert [image.visibility.tolist() for image in found.images] == [[2, 2], [1, 0]]
    assert [image.split for image in found.images] == ["", "val"]
    path.write_text(cvat(cvat_image("a.png", '<points label="tip" points="1,1;2,2"/>')), encoding="utf-8")
    assert xy(path) == {"a.png": {"tip1": (0.5, 0.5), "tip2": (1.5, 1.5)}}


def test_via__whole_pixels(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png"])
    image = via_image("a.png", {"caption": "x", "sex": "f"}, ("tip", 3, 4), ("base", 0, 0))
    image["regions"].append({"shape_attributes": {"name": "rect"}, "region_attributes": {}})
    path = save_json(tmp_path / "v.json", via_project(image))
    assert xy(path) == {"a.png": {"tip": (3, 4), "base": (0, 0)}}
    assert read_landmarks(path).remarks == (
        "1 regions of the kind rect are not used",
        "2 attributes of files are not used (caption, sex)",
    )
    text = (
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        'a.png,7,"{}",2,0,"{""name"":""point"",""cx"":3,""cy"":4}","{""part"":""tip""}"\n'
        'a.png,7,"{}",2,1,"{""name"":""point"",""cx"":0,""cy"":0}","{""part"":""base""}"\n'
    )
    (tmp_path / "v.csv").write_text(text, encoding="utf-8")
    assert is_landmark_file(tmp_path / "v.csv")
    assert xy(tmp_path / "v.csv") == xy(path)
    image["regions"][0]["region_attributes"]["side"] = "left"
    assert is_landmark_file(save_json(path, via_project(image)))
    with pytest.raises(DataError, match="has 2 point attributes, 'part', 'side'"):
        read_landmarks(path)
    with pytest.raises(DataError, match="'sex' is an attribute of files, not of points"):
        read_landmarks(path, label="sex")
    assert xy(path, label="part") == {"a.png": {"tip": (3, 4), "base": (0, 0)}}


def test_labelme__file_and_folder(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png"])
    path = save_json(tmp_path / "a.json", labelme("a.png", {}, ("tip", 10, 5)))
    assert xy(path) == {"a.png": {"tip": CENTER}}
    save_json(tmp_path / "b.json", labelme("b.png", {}, ("base", 0.5, 0.5)))
    assert is_landmark_file(tmp_path)
    assert xy(tmp_path) == {"a.png": {"tip": CENTER}, "b.png": {"base": (0.0, 0.0)}}
    (tmp_path / "0.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"0\.json: not a JSON file"):
        read_landmarks(tmp_path)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([key_point("tip", 120, 50)], "task 1: point 'tip' at 23.5, 4.5 is outside the image of 20x10 pixels: move it"),
        ([key_point("tip", 1, 1), key_point("tip", 2, 2)], "task 1: has 2 points 'tip': keep one"),
        ([key_point("tip", 1, 1, image_rotation=90)], "the image was rotated by 90 degrees in Label Studio"),
        ([key_point("tip", "x", 1)], "task 1: x of point 'tip' must be a number, found 'x'"),
        ([key_point("tip", 1, 1, original_width=30)], "states 30x10 pixels for a.png, but the photo has 20x10"),
        ([key_point("tip", 1, 1), key_point("base", 1, 1, original_width=30)], "its points state 2 sizes of the image"),
        ([], "none of its 1 images has points"),
    ],
)
def test_faults__say_where_and_what(tmp_path: Path, results: list[Any], message: str) -> None:
    save_photos(tmp_path, ["a.png"])
    with pytest.raises(DataError) as caught:
        read_landmarks(save_json(tmp_path / "x.json", [task(1, "a.png", results)]))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<points label="wing" points="1,1"/>', "image a.png: label 'wing' is not one of the 4"),
        ('<points label="tip" points="1,y"/>', "a coordinate of 'tip' must be a number, found 'y'"),
        ('<points label="tip" points="21,1"/>', "point 'tip' at 20.5, 0.5 is outside the image"),
        ('<skeleton label="cat"/><skeleton label="cat"/>', "has 2 skeletons: one specimen per image is expected"),
    ],
)
def test_cvat__faults(tmp_path: Path, shape: str, message: str) -> None:
    save_photos(tmp_path, ["a.png"])
    (tmp_path / "x.xml").write_text(cvat(cvat_image("a.png", shape)), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_landmarks(tmp_path / "x.xml")
    assert message in str(caught.value)


def test_cvat__written_points_are_found_again(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "ä b.png"])
    rows = [[(0.0, 0.0), (19.25, 9.125)], [(float("nan"), float("nan")), (3.0, 4.0)]]
    images = [
        image_landmarks(name, at, seen, split=split)
        for name, at, seen, split in zip(("a.png", "ä b.png"), rows, ([1, 2], [0, 2]), ("val", ""), strict=True)
    ]
    landmarks = LandmarkSet(("tip", "<base>"), tuple(images))
    path = tmp_path / "annotations.xml"
    write_landmarks(landmarks, path, "cvat", lambda name: (10, 20))
    found = read_landmarks(path)
    assert found.keypoint_names == ("tip", "<base>")
    for image, other in zip(found.images, images, strict=True):
        assert (image.name, image.split) == (other.name, other.split)
        assert image.visibility.tolist() == other.visibility.tolist()
        np.testing.assert_allclose(image.keypoints_xy, other.keypoints_xy, atol=1e-6)


def test_tasks__written_points_are_found_again(tmp_path: Path) -> None:
    save_photos(tmp_path, ["photos/ä b.png", "photos/c+d.png"])
    points = [[(0.0, 0.0), (19.25, 9.125)], [(float("nan"), float("nan")), (3.0, 4.0)]]
    names = ("photos/ä b.png", "photos/c+d.png")
    images = [image_landmarks(name, at) for name, at in zip(names, points, strict=True)]
    landmarks = LandmarkSet(("tip", "base"), tuple(images))
    find = lambda name: str(tmp_path / name)  # noqa: E731
    links = TaskLinks(str(tmp_path), model_version="m", find=find)
    path = tmp_path / "tasks.json"
    write_landmarks(landmarks, path, "labelstudio", image_sizes(find), links)
    tasks = json.loads(path.read_bytes())
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=photos/%C3%A4%20b.png"}
    for each in tasks:  # as if a person had accepted them
        each["annotations"] = each.pop("predictions")
    found = read_landmarks(save_json(path, tasks))
    assert found.keypoint_names == ("tip", "base")
    for image, other in zip(found.images, images, strict=True):
        assert image.name == other.name
        np.testing.assert_allclose(image.keypoints_xy, other.keypoints_xy, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("s3://photos/ä 1.png", "s3://photos/ä 1.png"),
        ("gcs://photos/a.png", "gs://photos/a.png"),
        ("az://photos/a.png", "azure-blob://photos/a.png"),
        ("https://me:hidden@host/a.png?X-Amz-Signature=hidden&v=2", "https://host/a.png?v=2"),
    ],
)
def test_task_links__an_address_is_its_own_link(name: str, link: str) -> None:
    assert TaskLinks("none", "/data/").link(name) == link
