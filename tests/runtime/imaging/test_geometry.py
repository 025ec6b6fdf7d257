from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.images import noise
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_scaled
from tl.runtime.imaging.geometry import (
    Placement,
    crop_to_input,
    eighths,
    place,
    turn_keypoints,
    unturn_keypoints,
    working_image,
)
from tl.runtime.imaging.orientation import upright
from tl.runtime.imaging.pipeline import load_input, load_views
from tl.runtime.imaging.preprocessing import Interpolation, JpegScale, Preprocessing, ResizeMode, build_preprocessing
from tl.runtime.imaging.regions import clip_region, widen

SIDES = st.integers(1, 4000)
SMALL = st.integers(1, 20)
COORDINATES = st.floats(-10, 5000, allow_nan=False)
RECIPES = st.one_of(
    st.builds(build_preprocessing, st.tuples(st.integers(1, 600), st.integers(1, 600)), st.just("squash")),
    st.builds(build_preprocessing, st.tuples(st.integers(1, 600), st.integers(1, 600)), st.just("letterbox")),
    st.builds(build_preprocessing, st.tuples(st.integers(8, 600), st.integers(8, 600)), st.just("short_side")),
)


# --- placement, by hand


def test_place__squash() -> None:
    placement = place((300, 400), build_preprocessing((224, 112)))
    assert placement == Placement((0, 0, 400, 300), (224, 112), (0, 0), (224, 112))
    assert placement.scale_xy == (112 / 400, 224 / 300)


@pytest.mark.parametrize(
    ("image_hw", "resized_hw", "offset_xy"),
    [
        ((300, 400), (256, 341), (-58, -16)),  # 256 * 400 / 300 = 341.3; (341 - 224) / 2 = 58.5, rounded to even
        ((400, 300), (341, 256), (-16, -58)),
        ((512, 512), (256, 256), (-16, -16)),
        ((100, 120), (256, 307), (-42, -16)),  # upscaled; (307 - 224) / 2 = 41.5, rounded to even
    ],
)
def test_place__short_side(image_hw: tuple[int, int], resized_hw: tuple[int, int], offset_xy: tuple[int, int]) -> None:
    preprocessing = build_preprocessing((224, 224), "short_side", short_side=256)
    assert place(image_hw, preprocessing) == Placement((0, 0, *image_hw[::-1]), resized_hw, offset_xy, (224, 224))


@pytest.mark.parametrize(
    ("image_hw", "resized_hw", "offset_xy"),
    [
        ((300, 400), (168, 224), (0, 28)),
        ((400, 300), (224, 168), (28, 0)),
        ((100, 90), (224, 202), (11, 0)),  # 90 * 2.24 = 201.6
        ((1, 1000), (1, 224), (0, 111)),  # never thinner than one pixel
        ((224, 224), (224, 224), (0, 0)),
    ],
)
def test_place__letterbox(image_hw: tuple[int, int], resized_hw: tuple[int, int], offset_xy: tuple[int, int]) -> None:
    preprocessing = build_preprocessing((224, 224), "letterbox")
    assert place(image_hw, preprocessing) == Placement((0, 0, *image_hw[::-1]), resized_hw, offset_xy, (224, 224))


def test_placement__corners_of_a_halved_image() -> None:
    # Downscaling 400 x 400 by half: the center of the first input pixel lies between image pixels 0 and 1.
    placement = place((400, 400), build_preprocessing((200, 200)))
    np.testing.assert_array_equal(placement.to_image(np.array([[0.0, 0.0], [199, 199]])), [[0.5, 0.5], [398.5, 398.5]])
    np.testing.assert_array_equal(placement.to_input(np.array([-0.5, 399.5])), [-0.5, 199.5])


def test_placement__letterbox_and_crop_by_hand() -> None:
    boxed = place((200, 400), build_preprocessing((200, 200), "letterbox"))
    np.testing.assert_array_equal(boxed.to_input(np.array([-0.5, -0.5])), [-0.5, 49.5])
    cropped = place((100, 200), build_preprocessing((80, 80), "short_side", short_side=100))
    np.testing.assert_array_equal(cropped.to_input(np.array([100.0, 50.0])), [40, 40])


# --- regions


@pytest.mark.parametrize(
    ("mode", "resized_hw", "offset_xy", "image_xy", "input_xy"),
    [
        # The region from (100, 50) to (300, 150); the corner of its top-left pixel becomes that of the input.
        ("squash", (40, 40), (0, 0), (99.5, 49.5), (-0.5, -0.5)),
        ("squash", (40, 40), (0, 0), (199.5, 99.5), (19.5, 19.5)),
        ("letterbox", (20, 40), (0, 10), (99.5, 49.5), (-0.5, 9.5)),
        ("short_side", (46, 92), (-26, -3), (199.5, 99.5), (19.5, 19.5)),
    ],
)
def test_place__region_by_hand(
    mode: ResizeMode,
    resized_hw: tuple[int, int],
    offset_xy: tuple[int, int],
    image_xy: tuple[float, float],
    input_xy: tuple[float, float],
) -> None:
    region = (100.0, 50.0, 200.0, 100.0)
    placement = place((400, 600), build_preprocessing((40, 40), mode), region)
    assert placement == Placement(region, resized_hw, offset_xy, (40, 40))
    np.testing.assert_allclose(placement.to_input(np.array(image_xy)), input_xy, atol=1e-12)  # float64


def test_widen_and_clip_region__by_hand() -> None:
    assert widen((10, 20, 40, 80), 0.25) == (0, 0, 60, 120)
    assert clip_region((-5, 10, 20, 500), (100, 60)) == (0, 10, 15, 90)
    assert clip_region((0, 0, 60, 100), (100, 60)) == (0, 0, 60, 100)


@pytest.mark.parametrize("region", [(60, 0, 10, 10), (0, -20, 10, 20), (5, 5, 0.5, 10), (5, 5, -3, 10)])
def test_clip_region__nothing_of_the_image_is_an_error(region: tuple[float, float, float, float]) -> None:
    with pytest.raises(ImageReadError, match="contains no pixel of the 60x100 image"):
        clip_region(region, (100, 60))


@pytest.mark.parametrize("jpeg_scale", ["full", "2x"])
def test_load_views__region_equals_the_cut_image_but_for_its_rim(jpeg_scale: JpegScale) -> None:
    image = noise(60, 90)
    preprocessing = build_preprocessing((20, 30), jpeg_scale=jpeg_scale)
    (placed,) = load_views(image, [(preprocessing, (30, 10, 60, 40))])
    found, placement = placed.image, placed.placement
    cut = load_input(image[10:50, 30:].copy(), preprocessing)
    inner = slice(1, -1)  # at the edge, the filter reaches one input pixel beyond the region
    np.testing.assert_array_equal(found[inner, inner], cut[inner, inner])
    assert placement.region_xywh == (30, 10, 60, 40)


def test_load_views__region_of_a_scaled_jpeg_shows_the_same_place(tmp_path: Path) -> None:
    # A bright disc at (610, 390) of a large image, seen through a region and a scaled decode.
    y, x = np.mgrid[:800, :1200]
    disc = np.where((x - 610) ** 2 + (y - 390) ** 2 < 30**2, 255, 0).astype(np.uint8)
    path = tmp_path / "disc.jpg"
    Image.fromarray(np.repeat(disc[..., None], 3, axis=2)).save(path, quality=95)
    preprocessing = build_preprocessing((64, 64), "letterbox")
    (placed,) = load_views(path, [(preprocessing, (400, 200, 501, 403))])
    found, placement = placed.image, placed.placement
    assert placed.image_hw == (800, 1200)
    assert decode_scaled(path, preprocessing, lambda hw: eighths(hw, preprocessing, (400, 200, 501, 403))).eighths < 8
    weights = found[..., 0].astype(float)
    center = np.array([(weights.sum(0) * np.arange(64)).sum(), (weights.sum(1) * np.arange(64)).sum()]) / weights.sum()
    # The center of mass of a disc of 8 input pixels; JPEG noise moves it by hundredths of a pixel.
    np.testing.assert_allclose(placement.to_image(center), (610, 390), atol=0.5)


@given(
    SIDES, SIDES, RECIPES, st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.05, 1.2)] * 2), COORDINATES, COORDINATES
)
def test_placement__regions_round_trip(
    height: int, width: int, preprocessing: Preprocessing, share: tuple[float, float, float, float], x: float, y: float
) -> None:
    region = (share[0] * width, share[1] * height, 1 + share[2] * width, 1 + share[3] * height)
    try:
        placement = place((height, width), preprocessing, region)
    except ImageReadError:
        assume(False)
    point = np.array([x, y])
    np.testing.assert_allclose(placement.to_image(placement.to_input(point)), point, rtol=0, atol=1e-3)


# --- pixels


@pytest.mark.parametrize("image_hw", [(90, 60), (60, 90), (64, 64)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_load_input__short_side_equals_pillow_resize_then_crop(
    image_hw: tuple[int, int], interpolation: Interpolation
) -> None:
    image = noise(*image_hw)
    preprocessing = build_preprocessing((28, 28), "short_side", short_side=32, interpolation=interpolation)
    height, width = (48, 32) if image_hw == (90, 60) else (32, 48) if image_hw == (60, 90) else (32, 32)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = (width - 28) // 2, (height - 28) // 2
    expected = np.asarray(resized.crop((left, top, left + 28, top + 28)))
    np.testing.assert_array_equal(load_input(image, preprocessing), expected)


@pytest.mark.parametrize("image_hw", [(600, 80), (40, 60), (97, 64), (70, 500), (45, 60), (200, 220)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_working_image__horizontally_first_with_every_version_of_pillow(
    image_hw: tuple[int, int], interpolation: Interpolation
) -> None:
    # Pillow 13 would begin vertically with these sizes, which differs by up to 36 of 255.
    image = noise(*image_hw)
    narrowed = working_image(image, build_preprocessing((image_hw[0], 64), interpolation=interpolation))
    expected = working_image(narrowed, build_preprocessing((48, 64), interpolation=interpolation))
    found = working_image(image, build_preprocessing((48, 64), interpolation=interpolation))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("region", [(20.5, 200.25, 60.5, 50.0), (10.0, 3.5, 180.0, 290.0)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_working_image__region_equals_pillow(
    region: tuple[float, float, float, float], interpolation: Interpolation
) -> None:
    image = noise(300, 200)
    left, top, width, height = region
    box = (left, top, left + width, top + height)
    expected = Image.fromarray(image).resize((80, 64), Image.Resampling[interpolation.upper()], box=box)
    found = working_image(image, build_preprocessing((64, 80), interpolation=interpolation), region)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_load_input__squash_equals_pillow() -> None:
    expected = np.asarray(Image.fromarray(noise(50, 70)).resize((24, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_input(noise(50, 70), build_preprocessing((16, 24))), expected)


@pytest.mark.parametrize("mode", ["squash", "letterbox"])
def test_load_input__same_size_is_untouched(mode: ResizeMode) -> None:
    np.testing.assert_array_equal(load_input(noise(16, 16), build_preprocessing((16, 16), mode)), noise(16, 16))


def test_load_input__letterbox_pads_around_the_image() -> None:
    preprocessing = build_preprocessing((8, 8), "letterbox", pad_rgb=(1, 2, 3))
    wide = load_input(np.full((4, 8, 3), 200, np.uint8), preprocessing)
    np.testing.assert_array_equal(wide[2:6], np.full((4, 8, 3), 200))
    np.testing.assert_array_equal(wide[[0, 1, 6, 7]], np.broadcast_to([1, 2, 3], (4, 8, 3)))
    tall = load_input(np.full((8, 5, 3), 200, np.uint8), preprocessing)  # 3 columns of padding: 1 left, 2 right
    np.testing.assert_array_equal(tall[:, :, 0], np.broadcast_to([1, 200, 200, 200, 200, 200, 1, 1], (8, 8)))


@pytest.mark.parametrize("image_hw", [(100, 90), (90, 100), (8, 7), (7, 8)])
def test_load_input__letterbox_with_a_single_row_or_column_of_padding(image_hw: tuple[int, int]) -> None:
    image = np.full((*image_hw, 3), 200, np.uint8)
    placed = load_input(image, build_preprocessing((8, 8), "letterbox"))
    assert placed.shape == (8, 8, 3)
    assert (placed == 0).all(axis=2).sum() == 8


@pytest.mark.parametrize("mode", ["squash", "letterbox", "short_side"])
@given(height=SMALL, width=SMALL, input_hw=st.tuples(SMALL, SMALL))
def test_load_input__always_of_the_input_size(
    mode: ResizeMode, height: int, width: int, input_hw: tuple[int, int]
) -> None:
    placed = load_input(np.zeros((height, width, 3), np.uint8), build_preprocessing(input_hw, mode))
    assert placed.shape == (*input_hw, 3)
    assert placed.flags.c_contiguous


def test_crop_to_input__center_of_the_working_image() -> None:
    preprocessing = build_preprocessing((8, 8), "short_side", short_side=10)
    working = working_image(noise(20, 31), preprocessing)
    assert working.shape == (10, 15, 3)
    np.testing.assert_array_equal(crop_to_input(working, preprocessing), working[1:9, 4:12])  # 3.5 is rounded to even
    np.testing.assert_array_equal(crop_to_input(working, preprocessing), load_input(noise(20, 31), preprocessing))


@pytest.mark.parametrize("mode", ["squash", "letterbox", "short_side"])
def test_to_input__follows_the_pixels(mode: ResizeMode) -> None:
    image = np.zeros((90, 120, 3), np.uint8)
    image[40:49, 50:59] = 255  # its center is (54, 44)
    preprocessing = build_preprocessing((64, 48), mode)
    found = _center_of_mass(load_input(image, preprocessing))
    # Pillow rounds to whole gray levels, which moves a spot's center by a few hundredths of a pixel.
    np.testing.assert_allclose(found, place((90, 120), preprocessing).to_input(np.array([54.0, 44.0])), atol=0.05)


def _center_of_mass(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    mass = image[:, :, 0].astype(float)
    ys, xs = np.mgrid[: mass.shape[0], : mass.shape[1]]
    return np.array([(xs * mass).sum(), (ys * mass).sum()]) / mass.sum()


# --- keypoints


@given(SIDES, SIDES, RECIPES, COORDINATES, COORDINATES)
def test_placement__keypoints_round_trip(
    height: int, width: int, preprocessing: Preprocessing, x: float, y: float
) -> None:
    placement = place((height, width), preprocessing)
    point = np.array([[x, y]], np.float64)
    there_and_back = placement.to_image(placement.to_input(point))
    np.testing.assert_allclose(there_and_back, point, atol=1e-3)  # the guaranteed tolerance; float64 meets it easily
    back_and_there = placement.to_input(placement.to_image(point))
    np.testing.assert_allclose(back_and_there, point, atol=1e-3)  # as above


@given(st.integers(1, 8), SIDES, SIDES, COORDINATES, COORDINATES)
def test_turn_keypoints__round_trip(orientation: int, height: int, width: int, x: float, y: float) -> None:
    points = np.array([[[x, y], [y, x]]], np.float64)
    turned = turn_keypoints(points, orientation, (height, width))
    returned = unturn_keypoints(turned, orientation, (height, width))
    np.testing.assert_allclose(returned, points, atol=1e-3)  # the guaranteed tolerance; float64 meets it easily


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_keypoints__follows_the_pixels(orientation: int) -> None:
    stored = np.zeros((5, 7, 3), np.uint8)
    stored[1, 2] = 255  # (x, y) = (2, 1)
    ys, xs = np.nonzero(upright(stored, orientation)[:, :, 0])
    np.testing.assert_array_equal(turn_keypoints(np.array([2.0, 1.0]), orientation, (5, 7)), [xs[0], ys[0]])


def test_turn_keypoints__by_hand_and_leaves_its_input_alone() -> None:
    points = np.array([[0.0, 0.0]])
    # Orientation 6: turn right; the stored top-left corner becomes the top-right corner of a 5 px wide image.
    np.testing.assert_array_equal(turn_keypoints(points, 6, (5, 7)), [[4, 0]])
    np.testing.assert_array_equal(points, [[0, 0]])
