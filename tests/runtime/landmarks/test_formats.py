from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.models import solid
from tests.runtime.images import encode_turned
from tl.errors import DataError, ImageReadError
from tl.runtime.landmarks import coco, deeplabcut, long_csv, tps, wide_csv
from tl.runtime.landmarks.files import image_finder, image_sizes, lost_in, read_landmarks, write_landmarks
from tl.runtime.landmarks.scales import read_scales
from tl.runtime.landmarks.sets import LandmarkSet, image_landmarks

NAN = math.nan


def assert_same(found: LandmarkSet, wanted: LandmarkSet, atol: float = 0.0) -> None:
    assert found.keypoint_names == wanted.keypoint_names
    assert [p.name for p in found.images] == [p.name for p in wanted.images]
    for one, other in zip(found.images, wanted.images, strict=True):
        np.testing.assert_allclose(one.keypoints_xy, other.keypoints_xy, rtol=0, atol=atol)


WINGS = LandmarkSet(
    ("tip", "hinge"),
    (
        image_landmarks(
            "a, b.jpg",
            [(1.5, 2.25), (30.125, 4)],
            [2, 1],
            box_xywh=(0.5, 1.0, 40.0, 20.0),
            mm_per_px=0.0125,
            split="train",
            group="w1",
        ),
        image_landmarks("b.jpg", [(NAN, NAN), (7.0, 8.0)], confidence=np.array([NAN, 0.75]), split="test"),
    ),
    (("tip", "hinge"),),
    (("hinge", "tip"),),
)


def test_wide_csv__by_hand() -> None:
    text = (
        "path,split,group,mm_per_px,box_x,box_y,box_w,box_h,"
        "x_tip,y_tip,v_tip,p_tip,x_hinge,y_hinge,v_hinge,p_hinge\n"
        '"a, b.jpg",train,w1,0.0125,0.5,1,40,20,1.5,2.25,2,,30.125,4,1,\n'
        "b.jpg,test,,,,,,,,,0,,7,8,2,0.75\n"
    )
    assert wide_csv.write(WINGS) == text
    found = wide_csv.read(text, "w.csv")
    assert_same(found, WINGS)
    first, second = found.images
    assert first.box_xywh == (0.5, 1.0, 40.0, 20.0)
    assert (first.mm_per_px, first.split, first.group) == (0.0125, "train", "w1")
    assert second.box_xywh is second.mm_per_px is None
    assert [p.visibility.tolist() for p in found.images] == [[2, 1], [0, 2]]
    assert second.confidence is not None
    np.testing.assert_equal(second.confidence, [NAN, 0.75])


def test_wide_csv__numbered_points_and_spaces() -> None:
    found = wide_csv.read("path,x0,y0,x1,y1\na.jpg, 1. ,2,,\n", "w.csv")
    assert found.keypoint_names == ("0", "1")
    np.testing.assert_equal(found.images[0].keypoints_xy, [[1, 2], [NAN, NAN]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x0,y0\n", "has no column path"),
        ("path,a\n", "column 'a' is neither a point"),
        ("path,split\n", "contains no points"),
        ("path,x0,y0,x0\n", "column x0 appears twice"),
        ("path,box_x,x0,y0\n", "a box requires box_x, box_y, box_w, box_h"),
        ("path,x0,y0\n,1,2\n", "row 2: path must not be empty"),
        ("path,x0,y0\na,1,\n", "row 2: x0 and y0 must both be filled"),
        ("path,x0,y0\na,1,two\n", "row 2: y0 is 'two', expected a number"),
        ("path,x0,y0\na,1,inf\n", "row 2: y0 is 'inf', expected a finite"),
        ("path,x0,y0,v0\na,1,2,3\n", "row 2: v0 is '3', expected 0 missing"),
    ],
)
def test_wide_csv__faults_name_the_place(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        wide_csv.read(text, "w.csv")


TPS = """LM=3
290. 108.
NA NA
-1 -1
IMAGE=C:\\photos\\a.jpg
ID=0
SCALE=0.025

lm=3
1 2
3.5 4.5
5e0 6
CURVES=1
POINTS=2
1 1
2 2
image=b.jpg
COMMENT=anything
"""


def test_tps__by_hand() -> None:
    found = tps.read(TPS, "w.tps", {"C:/photos/a.jpg": 480, "b.jpg": 100}.__getitem__)
    first, second = found.images
    np.testing.assert_equal(first.keypoints_xy, [[290, 372], [NAN, NAN], [NAN, NAN]])
    np.testing.assert_equal(second.keypoints_xy, [[1, 98], [3.5, 95.5], [5, 94]])
    assert (first.mm_per_px, second.mm_per_px) == (0.025, None)
    assert found.remarks == ("curves of 1 records were discarded",)


def test_tps__writes_what_it_reads() -> None:
    text = tps.write(WINGS, {"a, b.jpg": 100, "b.jpg": 50}.__getitem__)
    assert text.splitlines() == [
        *("LM=2", "1.50000 97.75000", "30.12500 96.00000", "IMAGE=a, b.jpg", "ID=0", "SCALE=0.0125"),
        *("LM=2", "-1.00000 -1.00000", "7.00000 42.00000", "IMAGE=b.jpg", "ID=1"),
    ]
    found = tps.read(text, "w.tps", {"a, b.jpg": 100, "b.jpg": 50}.__getitem__)
    assert found.keypoint_names == ("0", "1")
    for one, other in zip(found.images, WINGS.images, strict=True):
        np.testing.assert_allclose(one.keypoints_xy, other.keypoints_xy, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no record begins with LM="),
        ("1 2\n", "line 1: expected KEY=VALUE, found '1 2'"),
        ("ID=0\n", "line 1: ID= before the first LM="),
        ("LM3=1\n", "line 1: LM3"),
        ("LM=two\n", "line 1: expected a number of points, found 'two'"),
        ("LM=2\n1 2\nIMAGE=a\n", "line 3: expected a point"),
        ("LM=1\n1 2 3\n", "line 2: expected a point"),
        ("LM=1\n1 inf\n", "line 2: a point must be finite"),
        ("LM=1\n1 2\nID=4\n", "line 1: this record has no IMAGE="),
        ("LM=1\n1 2\nIMAGE=a\nSCALE=x\n", "SCALE=x is not a number"),
        ("LM=1\n1 2\nIMAGE=a\nSCALE=0\n", "SCALE=0 is not a positive number"),
        ("LM=1\n1 2\nIMAGE=a\nLM=2\n1 2\n3 4\nIMAGE=b\n", "line 4: LM=2, but the first record has LM=1"),
        ("LM=9\n1 2\n", "expected a point"),
    ],
)
def test_tps__faults_name_the_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tps.read(text, "w.tps", lambda name: 100)


def test_deeplabcut__by_hand() -> None:
    text = (
        "scorer,me,me,me,me\nbodyparts,Hand,Hand,Tongue,Tongue\ncoords,x,y,x,y\n"
        "labeled-data/v/1.png,1.5,2.5,,\nlabeled-data/v/2.png,,,3.25,4\n"
    )
    found = deeplabcut.read(text, "c.csv")
    wanted = LandmarkSet(
        ("Hand", "Tongue"),
        (
            image_landmarks("labeled-data/v/1.png", [(1.5, 2.5), (NAN, NAN)]),
            image_landmarks("labeled-data/v/2.png", [(NAN, NAN), (3.25, 4)]),
        ),
    )
    assert_same(found, wanted)
    assert deeplabcut.write(found) == text.replace("me", deeplabcut.SCORER).replace(",4\n", ",4.0\n")


def test_deeplabcut__path_in_three_cells_and_likelihood() -> None:
    text = "scorer,,,m,m,m\nbodyparts,,,Hand,Hand,Hand\ncoords,,,x,y,likelihood\nlabeled-data,v,1.png,1,2,0.5\n"
    (image,) = deeplabcut.read(text, "c.csv").images
    assert image.name == "labeled-data/v/1.png"
    assert image.confidence is not None
    assert image.confidence.tolist() == [0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scorer,a\nindividuals,b\n", "a multi-animal project"),
        ("scorer,a\nbodyparts,b\n", "expected header rows"),
        ("scorer,a,a\nbodyparts,b,b\ncoords,x,z\n", "expected columns x, y"),
        ("scorer,a,a\nbodyparts,b,b\ncoords,y,z\n", "the path in one cell or three"),
        ("scorer,a,a\nbodyparts,b,b\ncoords,x,y\np,1,two\n", "row 4: not a row of numbers"),
        ("scorer,a,a\nbodyparts,b,b\ncoords,x,y\np,1,\n", "row 4: expected finite x and y"),
    ],
)
def test_deeplabcut__faults(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        deeplabcut.read(text, "c.csv")


def test_coco__round_trip_keeps_everything() -> None:
    text = coco.write(WINGS, lambda name: (100, 200))
    found = coco.read(text, "c.json")
    assert_same(found, WINGS)
    assert found.flip_pairs == WINGS.flip_pairs
    assert found.skeleton == WINGS.skeleton
    for one, other in zip(found.images, WINGS.images, strict=True):
        assert (one.box_xywh, one.mm_per_px, one.split, one.group) == (
            *(other.box_xywh, other.mm_per_px),
            *(other.split, other.group),
        )
        assert one.visibility.tolist() == other.visibility.tolist()


def test_coco__fields_as_others_read_them() -> None:
    file = json.loads(coco.write(WINGS, lambda name: (100, 200)))
    assert file["images"][0] | {"mm_per_px": 0, "split": "", "group": ""} == {
        **{"id": 1, "file_name": "a, b.jpg", "width": 200, "height": 100},
        **{"mm_per_px": 0, "split": "", "group": ""},
    }
    assert file["annotations"][0]["keypoints"] == [1.5, 2.25, 2, 30.125, 4.0, 1]
    assert file["annotations"][1]["keypoints"] == [0.0, 0.0, 0, 7.0, 8.0, 2]
    assert file["annotations"][1]["bbox"] == [7.0, 8.0, 0.0, 0.0]  # no box annotated: marked as such, not read back
    assert file["annotations"][1]["bbox_of"] == "keypoints"
    assert file["categories"][0]["skeleton"] == [[2, 1]]


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(coco.write(WINGS, lambda name: (1, 1))) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a COCO keypoint file"),
        ("{", "not a COCO keypoint file"),
        (changed(categories=[]), "0 categories with keypoints"),
        (changed(annotations=[{"image_id": 7, "keypoints": []}]), "KeyError: 7"),
        (changed(annotations=[{"image_id": 1, "keypoints": [1, 2, 2]}]), "has 1 points, expected 2"),
        (changed(annotations=[{"image_id": 1, "keypoints": [1, 2, 2] * 2}] * 2), "several specimens"),
    ],
)
def test_coco__faults(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coco.read(text, "c.json")


def test_coco__images_without_points_are_counted() -> None:
    found = coco.read(changed(annotations=json.loads(changed())["annotations"][:1]), "c.json")
    assert len(found.images) == 1
    assert found.remarks == ("1 images without points were skipped",)


def test_long_csv__round_trip_and_faults() -> None:
    found = long_csv.read(long_csv.write(WINGS), "l.csv")
    assert_same(found, WINGS)
    assert [p.visibility.tolist() for p in found.images] == [[2, 1], [0, 2]]
    assert found.images[0].confidence is None
    for row, message in (
        ("a,tip,1,\n", "row 2: expected finite x and y"),
        ("a,,1,2\n", "row 2: path and point"),
        ("a,tip,1,2\na,tip,1,2\n", "row 3: a has point 'tip' twice"),
        ("a,tip,one,2\n", "row 2: could not convert"),
    ):
        with pytest.raises(DataError, match=message):
            long_csv.read(f"path,point,x,y\n{row}", "l.csv")


coordinates = st.floats(-1e5, 1e5, allow_nan=False).map(lambda value: round(value, 3))
points = st.one_of(st.tuples(coordinates, coordinates), st.just((NAN, NAN)))


@given(st.lists(st.lists(points, min_size=3, max_size=3), min_size=1, max_size=4))
def test_formats__round_trip_of_any_points(rows: list[list[tuple[float, float]]]) -> None:
    wanted = LandmarkSet(("0", "1", "2"), tuple(image_landmarks(f"{i}.jpg", row) for i, row in enumerate(rows)))
    assert_same(wide_csv.read(wide_csv.write(wanted), ""), wanted, 1e-4)  # nine digits
    assert_same(long_csv.read(long_csv.write(wanted), ""), wanted, 1e-4)
    assert_same(deeplabcut.read(deeplabcut.write(wanted), ""), wanted)
    assert_same(coco.read(coco.write(wanted, lambda name: (480, 640)), ""), wanted)
    found = tps.read(tps.write(wanted, lambda name: 480), "", lambda name: 480)
    for one, other in zip(found.images, wanted.images, strict=True):
        kept = ~((other.keypoints_xy[:, 0] == -1) & (other.keypoints_xy[:, 1] == 481))  # how TPS marks missing points
        np.testing.assert_allclose(one.keypoints_xy[kept], other.keypoints_xy[kept], rtol=0, atol=1e-5)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two photos; the first is stored rotated, and EXIF turns it upright."""
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(solid((9, 9, 9), 20, 30)).save(tmp_path / "images" / "a, b.jpg", exif=exif)
    Image.fromarray(solid((9, 9, 9), 20, 30)).save(tmp_path / "images" / "b.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"), [("o.tps", None), ("o.json", None), ("o.csv", "deeplabcut"), ("o.csv", "long")]
)
def test_write_landmarks__what_is_written_is_found_again(project: Path, name: str, kind: Any) -> None:
    find = image_finder(project / name)
    write_landmarks(WINGS, project / name, kind, image_sizes(find))
    found = read_landmarks(project / name)
    for one, other in zip(found.images, WINGS.images, strict=True):
        np.testing.assert_allclose(one.keypoints_xy, other.keypoints_xy, atol=1e-5)
    if name == "o.tps":  # the upright height of the rotated photo is its stored width
        assert "1.50000 27.75000" in (project / name).read_text()


def test_lost_in__names_what_has_no_place() -> None:
    assert lost_in(WINGS, "o.json", None) == []
    assert lost_in(WINGS, "o.csv", None) == [
        "flip pairs: cannot be stored in format csv",
        "skeleton: cannot be stored in format csv",
    ]
    assert [line.split(":")[0] for line in lost_in(WINGS, "o.tps", None)] == [
        *("names", "visibility", "confidence", "boxes", "splits and groups", "flip pairs", "skeleton"),
    ]


def test_image_finder__looks_where_tools_put_images(tmp_path: Path) -> None:
    wanted = tmp_path / "labeled-data" / "v" / "1.png"
    wanted.parent.mkdir(parents=True)
    wanted.touch()
    find = image_finder(wanted.parent / "CollectedData_me.csv")
    assert find("labeled-data/v/1.png") == str(wanted)
    assert image_finder("x.tps", tmp_path / "labeled-data")("v/1.png") == str(wanted)
    with pytest.raises(DataError, match=r"x\.tps: image 2\.png was not found in "):
        image_finder(tmp_path / "x.tps")("2.png")


def test_read_landmarks__faults(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    (tmp_path / "w.tps").write_text("LM=1\n1 2\nIMAGE=torn.jpg\n")
    (tmp_path / "torn.jpg").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"expected a name that ends in \.csv, \.tps, \.json"):
        read_landmarks(tmp_path / "x.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_landmarks(tmp_path / "gone.csv")
    with pytest.raises(ImageReadError, match=r"torn\.jpg: not an image"):
        read_landmarks(tmp_path / "w.tps")


def test_read_landmarks__published_files_agree(shared: Path) -> None:
    """The published TPS files agree with the CSV files that others converted from them."""
    for name, tps_file in (("flywing-landmarks", "tps-example.tps"), ("mollusk-landmarks", "landmarks.tps")):
        folder = shared / "data" / name
        by_name = {Path(p.name).name: p for p in read_landmarks(folder / "landmarks.csv").images}
        found = read_landmarks(folder / tps_file)
        assert len(found.images) == len(by_name)
        for image in found.images:
            np.testing.assert_array_equal(image.keypoints_xy, by_name[image.name].keypoints_xy)
    reaching = read_landmarks(next((shared / "data" / "dlc-reaching").rglob("CollectedData*.csv")))
    assert reaching.keypoint_names == ("Hand", "Finger1", "Tongue", "Joystick1", "Joystick2")
    assert sum(int((image.visibility == 0).sum()) for image in reaching.images) == 20


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("path\na.png\n", "no column mm_per_px"),
        ("path,mm_per_px\na.png,0\n", "row 2: mm_per_px is '0'"),
        ("path,mm_per_px\na.png,wide\n", "row 2: mm_per_px is 'wide'"),
    ],
)
def test_read_scales__refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=fault):
        read_scales(tmp_path / "s.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_scales(tmp_path / "nowhere.csv")


def test_read_scales__from_tps(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "s.tps").write_text("LM=1\n1. 2.\nIMAGE=a.png\nSCALE=0.25\n", encoding="utf-8")
    assert read_scales(tmp_path / "s.tps") == {str(tmp_path / "a.png"): 0.25}
    (tmp_path / "s.tps").write_text("LM=1\n1. 2.\nIMAGE=a.png\n", encoding="utf-8")
    with pytest.raises(DataError, match="no image has a scale"):
        read_scales(tmp_path / "s.tps")


def test_long_csv__refuses_a_scale_of_nothing() -> None:
    with pytest.raises(DataError, match="row 2: mm_per_px must be a number above 0"):
        long_csv.read("path,point,x,y,mm_per_px\na.png,tip,1,2,-3\n", "long.csv")


@pytest.mark.parametrize("kind", [".csv", ".tps"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_landmarks__from_stored(tmp_path: Path, orientation: int, kind: str) -> None:
    # One white pixel: the annotator sees its position in the stored file, training uses its upright position.
    image = np.zeros((6, 9, 3), np.uint8)
    image[4, 7] = 255
    (tmp_path / "a.png").write_bytes(encode_turned(image, orientation, "PNG"))
    with Image.open(tmp_path / "a.png") as stored:
        pixels = np.asarray(stored)
    (y,), (x,) = np.nonzero(pixels[..., 0])
    seen = LandmarkSet(("0",), (image_landmarks("a.png", [(x, y)], box_xywh=(x, y, 1, 1)),))
    text = wide_csv.write(seen) if kind == ".csv" else tps.write(seen, lambda name: len(pixels))
    (tmp_path / f"seen{kind}").write_text(text, encoding="utf-8")
    found = read_landmarks(tmp_path / f"seen{kind}", from_stored=True)
    assert found.images[0].keypoints_xy.tolist() == [[7, 4]]
    assert found.images[0].box_xywh == ((7, 4, 1, 1) if kind == ".csv" else None)
    assert f"{int(orientation > 1)} of 1 images" in found.remarks[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("where;x0;y0\na.png;1;2\n", "has no column path"),
        ("path,x0,x1,y1\na.png,1,2,3\n", "column x0 has no matching column y0"),
    ],
)
def test_wide_csv__says_what_is_wrong_with_its_columns(text: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        wide_csv.read(text, "a.csv")
