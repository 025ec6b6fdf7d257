"""Input that `decode` must reject, and the sources it accepts."""

from __future__ import annotations

import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.images import (
    RECIPE,
    blocks,
    encode,
    encode_turned,
    noise,
    png,
    with_tiff_value,
    zero_middle,
)
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_image, source_name

SEEDS = [
    encode_turned(noise(24, 24), 6, "JPEG"),
    encode(noise(24, 24), "PNG"),
    encode(noise(24, 24), "TIFF", compression="tiff_lzw"),
    encode(noise(24, 24), "GIF"),
    encode(noise(24, 24), "WEBP"),
    encode(noise(24, 24), "BMP"),
    b"P6 24 24 255\n" + noise(24, 24).tobytes(),
]


def failure(source: Any) -> ImageReadError:
    with pytest.raises(ImageReadError) as caught:
        decode_image(source, RECIPE)
    assert "\n" not in caught.value.reason
    return caught.value


# --- damaged data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "JPEG2000", "AVIF", "PPM", "MPO"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about some broken TIFF tags before it raises
def test_decode_image__truncated(kind: str, share: float) -> None:
    data = encode(noise(), kind)
    assert failure(data[: int(len(data) * share)]).reason


def test_decode_image__progressive_jpeg_truncated() -> None:
    data = encode(noise(), "JPEG", progressive=True)
    assert "damaged JPEG" in failure(data[: len(data) * 9 // 10]).reason


def test_decode_image__tiff_of_several_pages() -> None:
    data = encode(noise(), "TIFF", save_all=True, append_images=[Image.fromarray(noise())] * 2)
    assert "a TIFF of 3 pages: save the page or channels" in failure(data).reason


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_decode_image__animation(kind: str) -> None:
    data = encode(blocks(), kind, save_all=True, append_images=[Image.fromarray(255 - blocks())])
    count = "several" if kind == "GIF" else "2"
    assert failure(data).reason == f"an animation of {count} frames: save the frame to use as an image of its own"


@pytest.mark.parametrize(
    "content",
    [b"P6 2 2 255\n" + bytes(12), b"P5 2 2 255\n" + bytes(4), b"P5 2 2 65535\n" + bytes(8), b"P4 9 2\n" + bytes(4)],
)
def test_decode_image__pnm_of_several_images(content: bytes) -> None:
    assert decode_image(content, RECIPE).shape[2] == 3
    assert decode_image(content + b"\n", RECIPE).shape[2] == 3
    assert failure(content * 2).reason.startswith("a PNM file of several images")


def rgba(alpha: int = 255) -> Image.Image:
    return Image.fromarray(np.dstack([noise(), np.full((64, 64), alpha, np.uint8)]))


def test_decode_image__tiff_with_an_extra_channel_of_unspecified_meaning() -> None:
    data = encode(rgba(), "TIFF")  # ExtraSamples 2: alpha
    assert decode_image(data, RECIPE).shape == (64, 64, 3)
    unspecified = failure(with_tiff_value(data, 338, 0)).reason
    assert "3 color channels and 1 more of unspecified meaning: save it without them, or as RGBA" in unspecified
    assert failure(with_tiff_value(data, 338, 999)).reason == unspecified


def test_decode_image__tiff_with_a_fourth_channel_that_no_tag_names() -> None:
    data = encode(rgba(), "TIFF")
    unnamed = data.replace(struct.pack("<HHI", 338, 3, 1), struct.pack("<HHI", 339, 3, 1))  # SampleFormat 2 has no 4
    unnamed = with_tiff_value(unnamed, 339, 1)
    assert "1 more of unspecified meaning" in failure(unnamed).reason


def test_decode_image__tiff_of_two_channels() -> None:
    data = encode(Image.merge("LA", [Image.fromarray(noise()[:, :, i]) for i in range(2)]), "TIFF")
    gray_and_more = with_tiff_value(data, 338, 0)
    # Pillow opens such files since version 12.
    known = (
        "a TIFF of 1 color channels and 1 more of unspecified meaning",
        "a TIFF of 2 channels of 8 bits, which cannot",
    )
    assert failure(gray_and_more).reason.startswith(known)


def test_decode_image__tiff_of_channels_that_no_decoder_knows() -> None:
    data = with_tiff_value(encode(rgba(), "TIFF"), 262, 1)  # gray, with four channels
    assert "a TIFF of 4 channels of 8 bits, which cannot be read: save the channels" in failure(data).reason


@pytest.mark.parametrize("colors", [32803, 34892], ids=["filter array, as PEF", "linear"])
def test_decode_image__raw_pixels_in_tiff(colors: int) -> None:
    data = encode(noise()[:, :, 0], "TIFF")
    place = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    raw = data[:place] + struct.pack("<H", colors) + data[place + 2 :]
    assert failure(raw).reason == "a raw camera photo, whose pixels cannot be read: develop it to JPEG or TIFF"


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}], ids=["DNG", "preview first, as NEF and ARW"])
def test_decode_image__raw_photo_in_a_tiff(tags: dict[int, Any]) -> None:
    assert "a raw camera photo" in failure(encode(noise(), "TIFF", tiffinfo=tags)).reason


def test_decode_image__slide_in_a_tiff() -> None:
    data = encode(noise(), "TIFF", tiffinfo={270: "Aperio Image Library v10"})
    assert "an Aperio SVS slide: export regions" in failure(data).reason


def test_decode_image__signed_tiff() -> None:
    data = with_tiff_value(encode(noise()[:, :, 0], "TIFF", tiffinfo={339: 1}), 339, 2)
    assert "signed pixel values" in failure(data).reason


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_decode_image__jpeg_with_zeroed_middle(options: dict[str, bool]) -> None:
    damaged = zero_middle(encode(noise(), "JPEG", quality=90, **options))
    Image.open(BytesIO(damaged)).load()  # Pillow alone accepts it
    assert "damaged JPEG" in failure(damaged).reason


def test_decode_image__cmyk_jpeg_with_zeroed_middle() -> None:
    damaged = zero_middle(encode(Image.fromarray(noise()).convert("CMYK"), "JPEG", quality=90))
    assert "damaged JPEG" in failure(damaged).reason


@pytest.mark.parametrize("level", [0, 6])
def test_decode_image__png_with_one_wrong_byte(level: int) -> None:
    data = bytearray(encode(noise(), "PNG", compress_level=level))
    data[len(data) // 2] ^= 0x10
    assert failure(bytes(data)).reason


def test_decode_image__jpeg_with_bytes_after_its_end() -> None:
    # Motion photos and some cameras append a video or padding.
    data = encode(blocks(), "JPEG", quality=100)
    np.testing.assert_array_equal(decode_image(data + b"film" * 100, RECIPE), blocks())


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decode_image__png_bomb_by_its_header(size: tuple[int, int]) -> None:
    begun = time.process_time()
    reason = failure(png(*size, bits=8, color=2)).reason
    assert "the limit is 179 million" in reason
    assert time.process_time() - begun < 10  # CPU time of this process; decoding 3.6 Gpx would take far longer


def test_decode_image__jpeg_bomb_by_its_header() -> None:
    data = encode(blocks(), "JPEG")
    start = data.index(b"\xff\xc0") + 5  # frame header: length, precision, then height and width
    bomb = data[:start] + (60_000).to_bytes(2, "big") * 2 + data[start + 4 :]
    assert "the limit is" in failure(bomb).reason


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_decode_image__32_bit_refused(dtype: type) -> None:
    assert "32-bit" in failure(encode(np.ones((2, 2), dtype), "TIFF")).reason


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        *(("TGA", "a TGA image"), ("ICO", "an icon (ICO)"), ("PCX", "not an image of a supported format")),
        *(("EPS", "a PostScript file"), ("PDF", "a PDF document")),
    ],
)
def test_decode_image__other_kinds_refused(kind: str, named: str) -> None:
    assert failure(encode(blocks(), kind)).reason.startswith(named)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's warnings about broken tags, which are not tested here
@given(
    seed=st.sampled_from(SEEDS),
    cut=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_decode_image__fuzzed_files_give_a_image_or_image_read_error(
    seed: bytes, cut: float, edits: list[tuple[float, int]]
) -> None:
    damaged = bytearray(seed)
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    try:
        image = decode_image(bytes(damaged[: int(len(damaged) * max(cut, 0.01))]), RECIPE)
    except ImageReadError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@given(st.binary(max_size=200))
def test_decode_image__random_bytes_are_refused(data: bytes) -> None:
    assert failure(data).reason


# --- files that are not images


def test_decode_image__not_a_image_file(tmp_path: Path) -> None:
    empty, text, folder, fifo = (tmp_path / name for name in ("empty.jpg", "text.jpg", "folder.jpg", "fifo.jpg"))
    empty.touch()
    text.write_text("not an image")
    folder.mkdir()
    os.mkfifo(fifo)
    expected = {empty: "empty file", text: "supported format", folder: "not a regular file", fifo: "not a regular file"}
    for path, reason in expected.items():
        error = failure(path)
        assert reason in error.reason
        assert str(error) == f"{path}: {error.reason}"
    assert failure(tmp_path / "missing.jpg").reason == "No such file or directory"
    assert failure("/dev/zero").reason == "not a regular file"


def test_decode_image__empty_bytes_have_no_path() -> None:
    assert str(failure(b"")) == "empty file"


def test_decode_image__impossible_path() -> None:
    assert failure("a\0b.jpg").reason


# --- sources


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF"])
def test_decode_image__sources_give_one_array(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong-suffix.xyz"
    path.write_bytes(encode(blocks(), kind))
    expected = decode_image(path, RECIPE)
    with path.open("rb") as stream:
        for source in (str(path), path.read_bytes(), BytesIO(path.read_bytes()), stream, stream):
            np.testing.assert_array_equal(decode_image(source, RECIPE), expected)
        assert not stream.closed


def test_decode_image__array_passes_through() -> None:
    image = noise(4, 6)
    assert decode_image(image, RECIPE) is image
    turned = decode_image(image.transpose(1, 0, 2), RECIPE)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned[3, 2], image[2, 3])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["float", "gray", "rgba", "batch", "empty"],
)
def test_decode_image__wrong_array(array: Any) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\) RGB"):
        decode_image(array, RECIPE)


@pytest.mark.parametrize("source", [None, 3, [noise(4, 4)]])
def test_decode_image__wrong_type_is_a_programming_fault(source: Any) -> None:
    with pytest.raises(TypeError):
        decode_image(source, RECIPE)


def test_decode_image__threads() -> None:
    files = [encode(noise(seed=seed), "PNG") for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for seed, image in enumerate(pool.map(lambda data: decode_image(data, RECIPE), files)):
            np.testing.assert_array_equal(image, noise(seed=seed))


def test_source_name__path_file_and_data(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(blocks(), "PNG"))
    with path.open("rb") as stream, os.fdopen(os.dup(stream.fileno()), "rb") as nameless:
        assert source_name(stream) == source_name(path) == source_name(str(path)) == str(path)
        assert source_name(nameless) == source_name(b"") == source_name(BytesIO()) == source_name(noise(1, 1)) == ""
