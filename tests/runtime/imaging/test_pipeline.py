from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.images import blocks, encode, encode_turned, noise, zero_middle
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_image, decode_scaled
from tl.runtime.imaging.geometry import eighths, place
from tl.runtime.imaging.pipeline import load_input, load_inputs, load_working
from tl.runtime.imaging.preprocessing import ResizeMode, build_preprocessing


class CountingFile(BytesIO):
    """A file that counts how often it is decoded."""

    decoded = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.decoded += whence == 2
        return super().seek(offset, whence)


def spot(height: int, width: int, x: float, y: float, radius: float) -> NDArray[np.uint8]:
    """A soft white spot on black, without sharp edges, which JPEG cannot represent."""
    ys, xs = np.mgrid[:height, :width]
    gray = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2))
    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def center_of_mass(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    mass = np.where(image[:, :, 0] > 8, image[:, :, 0].astype(float), 0)  # JPEG leaves faint artifacts around it
    ys, xs = np.mgrid[: mass.shape[0], : mass.shape[1]]
    return np.array([(xs * mass).sum(), (ys * mass).sum()]) / mass.sum()


# --- scaled JPEG decoding


@pytest.mark.parametrize(
    ("image_hw", "mode", "expected"),
    [
        ((3000, 4000), "squash", 2),  # 2 * 224 of 3000 are 1.19 eighths
        ((448, 3000), "squash", 8),
        ((449, 3000), "squash", 8),
        ((512, 3000), "squash", 7),  # exactly
        ((3000, 4000), "letterbox", 1),  # 4000 becomes 224: 0.9 eighths
        ((3000, 4000), "short_side", 2),  # 3000 becomes 256: 1.37 eighths
        ((100, 90), "squash", 8),  # upscaled
    ],
)
def test_eighths__leave_twice_the_resized_size(image_hw: tuple[int, int], mode: ResizeMode, expected: int) -> None:
    assert eighths(image_hw, build_preprocessing((224, 224), mode)) == expected
    assert eighths(image_hw, build_preprocessing((224, 224), mode, jpeg_scale="full")) == 8


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 8), st.integers(1, 8))
@settings(deadline=None)
def test_decode_scaled__is_of_the_size_it_says(height: int, width: int, scale: int, orientation: int) -> None:
    data = encode_turned(noise(height, width), orientation, "JPEG")
    decoded = decode_scaled(data, build_preprocessing((8, 8)), lambda full_hw: scale)
    assert decoded.full_hw == (height, width)
    assert decoded.image.shape[:2] == (-(-height * scale // 8), -(-width * scale // 8))
    left, top, right, bottom = decoded.box
    assert (right - left, bottom - top) == (width * scale / 8, height * scale / 8)
    assert 0 <= left <= right <= decoded.image.shape[1]
    assert 0 <= top <= bottom <= decoded.image.shape[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("corner", [(0.1, 0.1), (0.9, 0.9)])
def test_load_input__scaled_decoding_moves_nothing(orientation: int, corner: tuple[float, float]) -> None:
    # An eighth of 1001 and 1203 is not an integer: 126 and 151 columns cover 125.1 and 150.4. Treating them as the
    # whole image would move the spot by 0.4 input pixels.
    height, width = 1001, 1203
    x, y = corner[0] * width, corner[1] * height
    preprocessing = build_preprocessing((60, 60))
    assert eighths((height, width), preprocessing) == 1
    data = encode_turned(spot(height, width, x, y, 30), orientation, "JPEG", quality=95)
    found = center_of_mass(load_input(data, preprocessing))
    np.testing.assert_allclose(found, place((height, width), preprocessing).to_input(np.array([x, y])), atol=0.06)


def test_load_input__scaled_decoding_hardly_changes_a_image() -> None:
    smooth = Image.fromarray(noise(40, 50)).resize((2000, 1600), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=90)
    scaled, full = (load_input(data, build_preprocessing((224, 224), jpeg_scale=s)) for s in ("2x", "full"))  # type: ignore[arg-type]
    difference = np.abs(scaled.astype(int) - full.astype(int))
    assert 0 < difference.max() <= 12
    assert difference.mean() < 1


def test_load_input__full_is_what_decode_image_gives() -> None:
    preprocessing = build_preprocessing((16, 16), jpeg_scale="full")
    data = encode(noise(200, 300), "JPEG")
    resized = Image.fromarray(decode_image(data, preprocessing)).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(load_input(data, preprocessing), np.asarray(resized))
    assert not np.array_equal(load_input(data, build_preprocessing((16, 16))), np.asarray(resized))


@pytest.mark.parametrize("scale", ["2x", "full"])
def test_load_working__a_damaged_photo_is_refused_at_any_scale(scale: str) -> None:
    data = encode(noise(900, 900), "JPEG")
    preprocessing = build_preprocessing((32, 32), jpeg_scale=scale)  # type: ignore[arg-type]
    for damaged in (data[: len(data) // 2], zero_middle(data)):
        with pytest.raises(ImageReadError, match="damaged"):
            load_working(damaged, preprocessing)


def test_load_input__decodes_and_places() -> None:
    preprocessing = build_preprocessing((16, 24))
    data = encode_turned(blocks(), 6, "PNG")
    np.testing.assert_array_equal(
        load_input(data, preprocessing), load_input(decode_image(data, preprocessing), preprocessing)
    )
    np.testing.assert_array_equal(load_input(data, preprocessing)[4::8, 4::8], blocks()[8::16, 8::16])


# --- several preprocessings


def test_load_inputs__decodes_once_for_equal_rules() -> None:
    preprocessings = [
        build_preprocessing((8, 8)),
        build_preprocessing((12, 20), "letterbox"),
        build_preprocessing((8, 8), "short_side"),
    ]
    file = CountingFile(encode(blocks(), "PNG"))
    inputs = load_inputs(file, preprocessings)
    assert file.decoded == 1
    for preprocessing in preprocessings:
        np.testing.assert_array_equal(inputs[preprocessing], load_input(blocks(), preprocessing)[None])


def test_load_inputs__decodes_again_for_another_depth() -> None:
    preprocessings = [build_preprocessing((8, 8)), build_preprocessing((8, 8), bit_depth_max=4095)]
    file = CountingFile(encode(np.full((8, 8), 2048, np.uint16), "PNG"))
    inputs = load_inputs(file, preprocessings)
    assert file.decoded == 2
    assert [int(inputs[preprocessing][0, 0, 0, 0]) for preprocessing in preprocessings] == [8, 128]


@pytest.mark.parametrize(("side", "times"), [(70, 1), (130, 2)])
def test_load_inputs__decodes_a_photo_again_only_at_another_scale(side: int, times: int) -> None:
    preprocessings = [build_preprocessing((64, 64)), build_preprocessing((side, side))]
    file = CountingFile(encode(noise(600, 600), "JPEG"))
    inputs = load_inputs(file, preprocessings)
    assert file.decoded == times
    for preprocessing in preprocessings:
        np.testing.assert_array_equal(inputs[preprocessing], load_input(file, preprocessing)[None])
