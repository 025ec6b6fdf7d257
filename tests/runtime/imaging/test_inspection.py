"""The stored values that 8 bits hide."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.runtime.images import encode, noise, png
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.inspection import MIN_IMAGES, StoredValues, find_dark, read_values


def gray16(brightest: int, kind: str = "PNG") -> bytes:
    values = np.linspace(0, brightest, 64).astype(np.uint16).reshape(8, 8)
    return encode(values, kind)


def rgba(alpha: np.ndarray) -> bytes:
    return encode(Image.fromarray(np.dstack([noise(8, 8), alpha.astype(np.uint8)])), "PNG")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_read_values__brightest_of_gray(kind: str) -> None:
    assert read_values(gray16(4001, kind)) == StoredValues(4001, True, "none")
    assert read_values(BytesIO(gray16(4001, kind))) == StoredValues(4001, True, "none")


def test_read_values__brightest_of_pgm() -> None:
    assert read_values(b"P5 2 1 65535\n" + b"\x0f\xa1\0\0") == StoredValues(4001, True, "none")


def test_read_values__brightest_of_color_is_known_to_256() -> None:
    rows = np.full((2, 2, 3), 4001, ">u2").tobytes()
    assert read_values(png(2, 2, bits=16, color=2, rows=rows)) == StoredValues(15 * 256 + 255, False, "none")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
def test_read_values__none_for_8_bits(kind: str) -> None:
    assert read_values(encode(noise(8, 8), kind)) is None


@pytest.mark.parametrize("source", [b"", b"text", b"\x89PNG\r\n\x1a\n", "/no/such/file", noise(8, 8)])
def test_read_values__none_for_what_cannot_be_read(source: ImageSource) -> None:
    assert read_values(source) is None


def test_read_values__alpha() -> None:
    cut_out = np.where(np.eye(8), 0, 255)
    for alpha, found in ((cut_out, "plain"), (np.full((8, 8), 255), "plain"), (np.zeros((8, 8)), "invisible")):
        values = read_values(rgba(alpha))
        assert values == StoredValues(None, False, found)  # type: ignore[arg-type]
    measured = read_values(rgba(noise(8, 8, seed=1)[:, :, 0]))
    assert measured == StoredValues(None, False, "varies")


def test_find_dark__all_below() -> None:
    said = find_dark([gray16(4000)] * MIN_IMAGES, 65535)
    assert said is not None
    assert "the brightest value of 8 16-bit images is 4000 of 65535: they become dark, at most 15 of 255" in said
    assert "train with bit_depth_max=4095" in said
    assert "bit_depth_max=16383" in str(find_dark([gray16(16383), gray16(200)] * MIN_IMAGES, 65535))


def test_find_dark__not_for_few_bright_or_declared() -> None:
    assert find_dark([gray16(4000)] * (MIN_IMAGES - 1), 65535) is None
    assert find_dark([*[gray16(4000)] * (MIN_IMAGES - 1), gray16(60000)], 65535) is None
    assert find_dark([gray16(4000)] * MIN_IMAGES, 4095) is None
    assert find_dark([encode(noise(8, 8), "JPEG")] * 100, 65535) is None


def test_find_dark__stops_at_the_first_bright_image() -> None:
    def sources() -> Iterator[bytes]:
        yield gray16(60000)
        raise AssertionError("read on")

    assert find_dark(sources(), 65535) is None
