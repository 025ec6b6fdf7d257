from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.errors import ImageReadError
from tl.runtime.imaging.regions import Box, BoxCrop, CroppedBox, Part

HW = (100, 200)
sides = st.floats(0.02, 3)


def test_region__of_a_relative_box() -> None:
    assert Box((0.1, 0.2, 0.5, 0.5), is_relative=True).region(HW) == (20, 20, 100, 50)


def test_region__partly_outside_is_cut() -> None:
    assert Box((-10, 90, 30, 30)).region(HW) == (0, 90, 20, 10)


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        (Box((200, 0, 10, 10)), r"the box \(200, 0, 10, 10\) contains no pixel of the 200x100 image"),
        (Box((1.1, 0, 0.1, 0.1), is_relative=True), r"the box \(220, 0, 20, 10\) contains no pixel"),
        (Box((0, 0, 0, 10)), r"the box \(0, 0, 0, 10\) has no area"),
        (Box((0, 0, 10, -1)), "has no area"),
        (Box((0, 0, float("nan"), 1)), "has no area"),
        (Box((0, 0, 10, 10), stated_hw=(200, 100)), "states 100x200 pixels .* without its EXIF orientation"),
        (Box((0, 0, 10, 10), stated_hw=(50, 100)), "states 100x50 pixels .* belong to another size"),
    ],
)
def test_region__faulty_box(box: Box, fault: str) -> None:
    with pytest.raises(ImageReadError, match=fault):
        box.region(HW)


def test_crop__by_hand() -> None:
    assert BoxCrop(0.5, square=False).region((50, 40, 20, 10), HW) == (40, 35, 40, 20)
    assert BoxCrop(0.0, square=True).region((50, 40, 20, 10), HW) == (50, 35, 20, 20)
    assert BoxCrop(0.0, square=True).region((0, 90, 20, 10), HW) == (0, 80, 20, 20)  # moved into the image
    assert BoxCrop(0.0, square=True).region((0, 0, 180, 10), HW) == (0, 0, 180, 100)  # larger than the image


@given(sides, sides, sides, sides, st.floats(0, 2), st.booleans())
def test_crop__contains_the_box_and_lies_inside(
    x: float, y: float, width: float, height: float, margin: float, square: bool
) -> None:
    box = Box((x / 3 * 150, y / 3 * 80, max(1.0, width * 40), max(1.0, height * 20)))
    left, top, w, h = box.region(HW)
    found = BoxCrop(margin, square).region((left, top, w, h), HW)
    assert found[0] <= left + 1e-9
    assert found[1] <= top + 1e-9
    assert found[0] + found[2] >= left + w - 1e-9
    assert found[1] + found[3] >= top + h - 1e-9
    assert found[0] >= 0
    assert found[1] >= 0
    assert found[0] + found[2] <= HW[1] + 1e-9
    assert found[1] + found[3] <= HW[0] + 1e-9


def test_crop__margin() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        BoxCrop(-0.1, square=True)


def test_cropped_box__part() -> None:
    crop = CroppedBox(Box((50, 40, 20, 10)), BoxCrop(0.0, square=True), Part(0.5, 0.0, 0.5, 0.5))
    assert crop.region(HW) == (60, 35, 10, 10)
    tiny = CroppedBox(Box((50, 40, 1, 1)), BoxCrop(0.0, square=True), Part(0.5, 0.0, 0.5, 0.5))
    assert tiny.region(HW) == (50, 40, 1, 1)
