from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

from tests.runtime.images import RECIPE, blocks, encode, encode_turned, noise, png, with_tiff_value
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_image, read_size
from tl.runtime.imaging.orientation import upright
from tl.runtime.imaging.preprocessing import build_preprocessing

CAMERA_12_BIT = build_preprocessing((8, 8), bit_depth_max=4095)
GRAY16 = np.array([[0, 255, 256], [4095, 40000, 65535]], np.uint16)
RGB16 = np.array([[[1000, 2000, 3000], [40000, 50128, 65535]]], ">u2")


def gray_rgb(values: list[list[int]]) -> NDArray[np.uint8]:
    return np.repeat(np.array(values, np.uint8)[:, :, None], 3, axis=2)


# --- orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image__orientations_give_one_array(kind: str, orientation: int) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    decoded = decode_image(encode_turned(blocks(), orientation, kind, **options), RECIPE)
    np.testing.assert_array_equal(decoded, blocks())
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", [2, 6])
def test_decode_image__orientation_of_other_kinds(kind: str, orientation: int) -> None:
    decoded = decode_image(encode_turned(blocks(), orientation, kind, quality=100), RECIPE)
    # Both codecs change values by a few gray levels; neighboring blocks differ by 32.
    np.testing.assert_allclose(decoded, blocks().astype(float), atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright__equals_pillow(orientation: int) -> None:
    stored = noise(5, 7)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", [0, 9])
def test_decode_image__impossible_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encode(blocks(), "PNG", exif=exif.tobytes()), RECIPE), blocks())


# --- color and alpha


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_decode_image__gray_is_repeated(kind: str) -> None:
    decoded = decode_image(encode(np.array([[0, 7], [128, 255]], np.uint8), kind), RECIPE)
    np.testing.assert_array_equal(decoded, gray_rgb([[0, 7], [128, 255]]))


@pytest.mark.parametrize(("subsampling", "quality"), [(0, 95), (2, 75)])
def test_decode_image__jpeg_equals_pillow(subsampling: int, quality: int) -> None:
    data = encode(noise(), "JPEG", subsampling=subsampling, quality=quality)
    expected = np.asarray(Image.open(BytesIO(data)))
    # Both use libjpeg-turbo, but different releases: DCT and upsampling may round differently by one level.
    np.testing.assert_allclose(decode_image(data, RECIPE), expected.astype(float), atol=1)


def test_decode_image__gray_jpeg() -> None:
    np.testing.assert_array_equal(decode_image(encode(blocks()[:, :, 0].copy(), "JPEG", quality=100), RECIPE), blocks())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_image__rgba_over_white(kind: str) -> None:
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [255, 0, 0, 51]]], np.uint8)
    # Alpha 51 is a fifth: 255/5 + 255 * 4/5 = 255, and 0/5 + 255 * 4/5 = 204.
    expected = np.array([[[200, 100, 50], [255, 255, 255], [255, 204, 204]]], np.uint8)
    np.testing.assert_array_equal(decode_image(encode(pixels, kind), RECIPE), expected)


def test_decode_image__gray_alpha_over_white() -> None:
    image = Image.merge("LA", [Image.fromarray(np.array([row], np.uint8)) for row in ([10, 10, 0], [255, 0, 51])])
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), RECIPE), gray_rgb([[10, 255, 204]]))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_decode_image__palette_transparency_over_white(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([9, 8, 7, 60, 50, 40, 3, 2, 1])
    decoded = decode_image(encode(image, kind, transparency=1), RECIPE)
    np.testing.assert_array_equal(decoded, [[[9, 8, 7], [255, 255, 255], [3, 2, 1]]])


def test_decode_image__palette_with_partial_alpha() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 0, 0])
    decoded = decode_image(encode(image, "PNG", transparency=bytes([255, 51])), RECIPE)
    np.testing.assert_array_equal(decoded, [[[255, 0, 0], [204, 204, 204]]])


@pytest.mark.parametrize(
    ("bits", "color", "rows", "key", "expected"),
    [
        (8, 2, bytes([1, 2, 3, 9, 9, 9]), (1, 2, 3), [[[255] * 3, [9] * 3]]),
        (8, 0, bytes([5, 6]), (5,), [[[255] * 3, [6] * 3]]),
        (2, 0, bytes([0b01100000]), (1,), [[[255] * 3, [170] * 3]]),
        (16, 0, np.array([300, 512], ">u2").tobytes(), (300,), [[[255] * 3, [2] * 3]]),
    ],
    ids=["rgb8", "gray8", "gray2", "gray16"],
)
def test_decode_image__png_transparent_color(
    bits: int, color: int, rows: bytes, key: tuple[int, ...], expected: list[list[list[int]]]
) -> None:
    chunk = b"tRNS", np.array(key, ">u2").tobytes()
    data = png(2, 1, bits=bits, color=color, rows=rows, chunks=(chunk,))
    np.testing.assert_array_equal(decode_image(data, RECIPE), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_image__one_bit(kind: str) -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    np.testing.assert_array_equal(decode_image(encode(image, kind), RECIPE), gray_rgb([[255, 0, 255]]))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_decode_image__cmyk_equals_pillow(kind: str) -> None:
    data = encode(Image.fromarray(noise()).convert("CMYK"), kind)
    with Image.open(BytesIO(data)) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, RECIPE), expected)


# --- bit depth


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_image__gray16_is_shifted(kind: str) -> None:
    decoded = decode_image(encode(GRAY16, kind), RECIPE)
    np.testing.assert_array_equal(decoded, gray_rgb([[0, 0, 1], [15, 156, 255]]))


def test_decode_image__gray16_pgm() -> None:
    data = b"P5 3 2 65535\n" + GRAY16.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(data, RECIPE), gray_rgb([[0, 0, 1], [15, 156, 255]]))


def test_decode_image__gray16_of_a_12_bit_camera() -> None:
    values = np.array([[0, 15, 16, 2048, 4095]], np.uint16)
    np.testing.assert_array_equal(decode_image(encode(values, "PNG"), CAMERA_12_BIT), gray_rgb([[0, 0, 1, 128, 255]]))


def test_decode_image__gray16_over_bit_depth_max_refused() -> None:
    with pytest.raises(ImageReadError, match="4096 is above bit_depth_max 4095"):
        decode_image(encode(np.array([[4096]], np.uint16), "PNG"), CAMERA_12_BIT)


def test_decode_image__rgb16_is_its_high_byte() -> None:
    data = png(2, 1, bits=16, color=2, rows=RGB16.tobytes())
    np.testing.assert_array_equal(decode_image(data, RECIPE), RGB16 >> 8)


def test_decode_image__rgb16_with_another_depth_refused() -> None:
    with pytest.raises(ImageReadError, match="only grayscale images can be rescaled"):
        decode_image(png(2, 1, bits=16, color=2, rows=RGB16.tobytes()), CAMERA_12_BIT)


@pytest.mark.parametrize(
    "data",
    [b"P6 2 1 65535\n" + RGB16.tobytes(), b"P5 3 1 4095\n" + b"\1\2" * 3, b"P5 3 1 100\n" + b"\1" * 3],
    ids=["rgb16", "gray12", "gray to 100"],
)
def test_decode_image__pnm_that_pillow_would_stretch_refused(data: bytes) -> None:
    with pytest.raises(ImageReadError, match="unsupported maximum value"):
        decode_image(data, RECIPE)


def test_decode_image__rgb16_with_a_transparent_color_refused() -> None:
    chunk = b"tRNS", RGB16[0, 0].astype(">u2").tobytes()
    data = png(2, 1, bits=16, color=2, rows=RGB16.tobytes(), chunks=(chunk,))
    with pytest.raises(ImageReadError, match="one transparent color"):
        decode_image(data, RECIPE)


# --- frames and kinds


def test_decode_image__first_image_of_an_mpo() -> None:
    # Phones store previews and gain maps behind the photo.
    data = encode(blocks(), "MPO", save_all=True, append_images=[Image.fromarray(255 - blocks())], quality=100)
    np.testing.assert_array_equal(decode_image(data, RECIPE), blocks())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_decode_image__file_of_one_frame(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    data = encode(blocks(), kind, save_all=True, **options)
    assert np.abs(decode_image(data, RECIPE).astype(int) - blocks()).max() <= 2  # AVIF converts to YCbCr


@pytest.mark.parametrize("kind_of_page", [1, 4])
def test_decode_image__tiff_with_a_preview_or_mask(kind_of_page: int) -> None:
    stream = BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream) as pages:
        Image.fromarray(blocks()).save(pages, "TIFF")
        pages.newFrame()
        Image.fromarray(255 - blocks()).save(pages, "TIFF", tiffinfo={254: kind_of_page})
    np.testing.assert_array_equal(decode_image(stream.getvalue(), RECIPE), blocks())


def test_decode_image__gray16_tiff_where_zero_is_white() -> None:
    gray = np.arange(0, 65536, 97, dtype=np.uint16).reshape(26, 26)
    black_is_zero = encode(gray, "TIFF")
    white_is_zero = with_tiff_value(encode(65535 - gray, "TIFF"), 262, 0)
    np.testing.assert_array_equal(decode_image(white_is_zero, RECIPE), decode_image(black_is_zero, RECIPE))
    recipe = build_preprocessing((8, 8), bit_depth_max=4095)
    gray //= 16
    white_is_zero = with_tiff_value(encode(4095 - gray, "TIFF"), 262, 0)
    np.testing.assert_array_equal(decode_image(white_is_zero, recipe), decode_image(encode(gray, "TIFF"), recipe))


@pytest.mark.parametrize("is_after_pixels", [False, True])
@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_decode_image__png_with_a_large_profile_or_text(tmp_path: Path, kind: bytes, is_after_pixels: bool) -> None:
    data = encode(noise(), "PNG")
    text = zlib.compress(bytes(2_000_000))
    chunk = kind + b"name\0\0" + text
    chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    place = data.index(b"IEND" if is_after_pixels else b"IDAT") - 4
    data = data[:place] + chunk + data[place:]
    np.testing.assert_array_equal(decode_image(data, RECIPE), noise())
    (tmp_path / "a.png").write_bytes(data)
    assert read_size(tmp_path / "a.png") == (64, 64)


def test_decode_image__jpeg2000_lossless() -> None:
    np.testing.assert_array_equal(decode_image(encode(noise(), "JPEG2000"), RECIPE), noise())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_read_size__of_the_upright_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(noise(20, 40)).save(path, exif=exif)
    assert read_size(path) == decode_image(path, RECIPE).shape[:2]
