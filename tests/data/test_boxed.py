from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl.data.boxed import LabeledBoxes, check_boxed, locate, read_labeled_boxes
from tl.data.manifests import USUAL_COLUMNS, LabeledImage
from tl.data.splits import assign_splits
from tl.errors import DataError
from tl.runtime.imaging.regions import Box, BoxCrop
from tl.runtime.sources.boxed_images import BoxedImage, BoxList

CROP = BoxCrop(0.0, square=False)
ONE, TWO = Box((1, 2, 10, 10), label="fox"), Box((20, 5, 10, 10), label="hare", number=1)


def save(path: Path, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(path, exif=exif)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label in ("day", "night"):
        for i in range(3):
            save(tmp_path / "data" / label / f"{i}.jpg")
    return tmp_path / "data"


def boxes_of(data: Path, **changes: object) -> BoxList:
    """Two boxes for each image, none for night/1.jpg, and no entry for night/2.jpg."""
    found = {str(path): (ONE, TWO) for path in sorted(data.glob("*/*.jpg"))}
    found[str(data / "night/1.jpg")] = ()
    del found[str(data / "night/2.jpg")]
    return BoxList(found, file="boxes.json", **changes)  # type: ignore[arg-type]


def read(data: Path, boxes: BoxList | None, labels: str = "auto") -> LabeledBoxes:
    return read_labeled_boxes(data, USUAL_COLUMNS, boxes, labels)  # type: ignore[arg-type]


def test_read_labeled_boxes__labels_of_the_images(data: Path) -> None:
    found = read(data, boxes_of(data))
    assert [(image.name, image.label, image.box) for image in found.images[:2]] == [
        ("day/0.jpg", "day", ONE),
        ("day/0.jpg", "day", TWO),
    ]
    assert {image.group for image in found.images[:2]} == {"day/0.jpg"}
    assert [image.name for image in found.unboxed] == ["night/1.jpg"]
    ((missing, reason),) = found.failed
    assert (missing.name, "contains no entry" in reason) == ("night/2.jpg", True)
    assert found.images[0].source == BoxedImage(str(data / "day/0.jpg"), ONE)


def test_read_labeled_boxes__labels_of_the_boxes(data: Path) -> None:
    said: list[str] = []
    found = read_labeled_boxes(data, USUAL_COLUMNS, boxes_of(data, has_labels=True), "auto", said.append)
    assert [image.label for image in found.images[:2]] == ["fox", "hare"]
    assert said == ["labels are those of the boxes in boxes.json"]
    assert [image.label for image in read(data, boxes_of(data, has_labels=True), "image").images[:2]] == ["day"] * 2


def test_read_labeled_boxes__folders_of_splits_without_classes(tmp_path: Path) -> None:
    paths = [save(tmp_path / split / "0.jpg") for split in ("train", "valid")]
    boxes = BoxList({str(path): (ONE, TWO) for path in paths}, has_labels=True)
    assert [image.split for image in read(tmp_path, boxes).images] == ["train", "train", "val", "val"]


def test_read_labeled_boxes__box_without_a_label(data: Path) -> None:
    boxes = BoxList({str(data / "day/0.jpg"): (Box((0, 0, 9, 9)),)}, file="b.json")
    with pytest.raises(DataError, match=r"b\.json: a box of .* has no label"):
        read(data, boxes, "box")


def test_read_labeled_boxes__no_box_at_all(data: Path) -> None:
    with pytest.raises(DataError, match=r"has no box to use for the 6 images .*contains no entry"):
        read(data, BoxList({}, file="b.json"))


def test_read_labeled_boxes__columns_of_the_manifest(data: Path) -> None:
    header, rows = "path,label,box_x,box_y,box_w,box_h", ["day/0.jpg,a,1,2,3,4", "day/0.jpg,b,5,6,7,8"]
    (data / "m.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    found = read(data / "m.csv", None).images
    assert [(image.label, image.box and image.box.xywh) for image in found] == [
        ("a", (1, 2, 3, 4)),
        ("b", (5, 6, 7, 8)),
    ]
    with pytest.raises(DataError, match=r"has boxes of its own: leave out boxes\.json"):
        read(data / "m.csv", boxes_of(data))
    (data / "m.csv").write_text("\n".join([header, *rows, "day/1.jpg,a,,,,"]), encoding="utf-8")
    with pytest.raises(DataError, match=r"1 rows have no box, first day/1\.jpg"):
        read(data / "m.csv", None)
    (data / "m.csv").write_text("\n".join([header, rows[0], rows[0]]), encoding="utf-8")
    with pytest.raises(DataError, match="1 image appears in several rows"):
        read(data / "m.csv", None)


def test_assign_splits__boxes_of_an_image_stay_together(data: Path) -> None:
    boxes = BoxList({str(path): (ONE, TWO) for path in data.glob("*/*.jpg")})
    images = assign_splits(read(data, boxes).images, 0.34, 0)
    assert len({(image.name, image.split) for image in images}) == 6
    assert {image.split for image in images} == {"train", "val"}


def test_locate__pixels_of_the_upright_image(tmp_path: Path) -> None:
    turned = str(save(tmp_path / "turned.jpg", orientation=6))  # 30 wide and 40 high
    image = LabeledImage(turned, "turned.jpg", "a", box=Box((0.5, 0.5, 0.5, 0.25), is_relative=True))
    ((found,), bad) = locate([image], CROP)
    assert found.region == (15, 20, 15, 10)
    assert found.box is not None
    assert (found.box.xywh, found.box.is_relative, bad) == ((15, 20, 15, 10), False, [])


def test_locate__faulty_boxes(data: Path) -> None:
    path = str(data / "day/0.jpg")
    boxes = [Box((50, 0, 9, 9)), Box((0, 0, 0, 9)), Box((0, 0, 9, 9), stated_hw=(40, 30))]
    images = [LabeledImage(path, "0.jpg", "a", box=box) for box in boxes]
    gone = LabeledImage(str(data / "gone.jpg"), "gone.jpg", "a", box=ONE)
    good, bad = locate([*images, gone], CROP)
    assert good == []
    assert [reason.split(":")[0] for _, reason in bad] == [
        "the box (50, 0, 9, 9) contains no pixel of the 40x30 image",
        "the box (0, 0, 0, 9) has no area",
        "the list of boxes states 30x40 pixels for this image, which has 40x30",
        "No such file or directory",
    ]


def test_check_boxed__both_ways() -> None:
    whole, boxed = LabeledImage("a", "a", "x"), LabeledImage("a", "a", "x", box=ONE)
    check_boxed([whole], None, "m")
    check_boxed([boxed], CROP, "m")
    with pytest.raises(DataError, match="trained on boxes around objects"):
        check_boxed([whole], CROP, "m")
    with pytest.raises(DataError, match="trained on whole images, but a has a box"):
        check_boxed([boxed], None, "m")
