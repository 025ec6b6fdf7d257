"""The size that a COCO file states for a photo must be that of the photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.images import encode_turned
from tl.errors import DataError
from tl.runtime.landmarks.files import image_finder, image_sizes, read_landmarks, write_landmarks


def make_coco(folder: Path, stated_wh: tuple[object, object], *, orientation: int = 1, count: int = 2) -> Path:
    """A COCO file with photos that are 40 wide and 20 high when upright."""
    upright = np.zeros((20, 40, 3), np.uint8)
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(encode_turned(upright, orientation, "JPEG"))
    width, height = stated_wh
    file = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i in range(count)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "keypoints": [3.0, 4.0, 2]} for i in range(count)],
        "categories": [{"id": 1, "name": "x", "keypoints": ["tip"]}],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(file), encoding="utf-8")
    return path


@pytest.mark.parametrize("stated", [(40, 20), (40.0, 20.0), (0, 0), (None, None), ("40", "20")])
def test_read_landmarks__the_photos_size_or_none(stated: tuple[object, object], tmp_path: Path) -> None:
    found = read_landmarks(make_coco(tmp_path, stated))
    assert found.remarks == ()
    assert found.images[0].keypoints_xy.tolist() == [[3, 4]]


def test_read_landmarks__another_size(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_landmarks(make_coco(tmp_path, (20, 10)))
    assert str(caught.value) == (
        "coco.json: states 20x10 pixels for 0.jpg, but the photo has 40x20 (and 1 more): its points belong to another "
        "size: use the photos that were annotated, or scale the points; if the points fit, correct width and height"
    )
    assert caught.value.options == ("images=FOLDER",)


def test_read_landmarks__stored_size_of_a_turned_photo(tmp_path: Path) -> None:
    path = make_coco(tmp_path, (20, 40), orientation=6)
    with pytest.raises(DataError, match="annotated without its EXIF orientation: convert the file with") as caught:
        read_landmarks(path)
    assert caught.value.options == ("from_stored",)
    turned = read_landmarks(path, from_stored=True)
    # Turned right: the stored left column becomes the top row.
    assert turned.images[0].keypoints_xy.tolist() == [[40 - 1 - 4, 3]]


def test_read_landmarks__upright_size_is_not_stored(tmp_path: Path) -> None:
    path = make_coco(tmp_path, (40, 20), orientation=6)
    assert read_landmarks(path).remarks == ()
    with pytest.raises(DataError, match="points are in the upright photo: do not set from_stored"):
        read_landmarks(path, from_stored=True)


def test_read_landmarks__rotated_since(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"states 20x40 pixels .* it was rotated after it was annotated"):
        read_landmarks(make_coco(tmp_path, (20, 40)))


def test_read_landmarks__photos_that_are_elsewhere(tmp_path: Path) -> None:
    path = make_coco(tmp_path, (20, 10))
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "1.jpg").unlink()
    assert read_landmarks(path).remarks == ("2 images were not found, so the sizes in coco.json were not compared",)


def test_read_landmarks__an_unreadable_photo_is_left_to_others(tmp_path: Path) -> None:
    path = make_coco(tmp_path, (20, 10), count=1)
    (tmp_path / "0.jpg").write_bytes(b"no photo")
    assert len(read_landmarks(path).images) == 1


def test_write_landmarks__states_the_size_that_was_compared(tmp_path: Path) -> None:
    path = make_coco(tmp_path, (20, 40), orientation=6)
    find = image_finder(path)
    write_landmarks(read_landmarks(path, from_stored=True), tmp_path / "up.json", None, image_sizes(find))
    upright = read_landmarks(tmp_path / "up.json")
    assert upright.images[0].stated_hw == (20, 40)


@pytest.mark.parametrize("stated", [("999", "5"), (None, 20), (40, 0), ("wide", "20"), (-40, -20), ([40], 20)])
def test_read_landmarks__sizes_in_other_notations(stated: tuple[object, object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"states 999x5|width and height must be numbers|expected a width and a height"):
        read_landmarks(make_coco(tmp_path, stated))
