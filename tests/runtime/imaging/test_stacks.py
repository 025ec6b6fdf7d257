"""Channels and planes of TIFF stacks, compared with tifffile and numpy."""

from __future__ import annotations

import struct
import sys
import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

tifffile = pytest.importorskip("tifffile", reason="reads the axes of stacks")

from tests.runtime.images import RECIPE, encode, noise  # noqa: E402
from tests.stacks import CHANNELS, imagej, make_stack, ome, plain, write_bytes  # noqa: E402
from tl.errors import ImageReadError  # noqa: E402
from tl.runtime.imaging.decode import decode_image, read_size  # noqa: E402
from tl.runtime.imaging.inspection import find_dark  # noqa: E402
from tl.runtime.imaging.preprocessing import build_preprocessing  # noqa: E402
from tl.runtime.imaging.stacks import Channels, read_channels  # noqa: E402

STACK_PIXELS = np.zeros((2, 8, 9), np.uint8)
STACK = plain(STACK_PIXELS)


def decode(data: Any, channels: str | None = None, project: str | None = None, **more: Any) -> NDArray[np.uint8]:
    chosen = None if channels is None else tuple(channels.split(","))
    return decode_image(data, build_preprocessing((8, 8), channels=chosen, project=project, **more))


def fault(data: Any, channels: str | None = None, project: str | None = None, **more: Any) -> str:
    with pytest.raises(ImageReadError) as caught:
        decode(data, channels, project, **more)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def expected(planes: NDArray[Any], channels: list[int], project: str) -> NDArray[np.uint8]:
    """The rule by numpy: planes (Z, C, H, W) -> (H, W, channels), before arranging as RGB."""
    wide = planes[:, channels].astype(np.uint64)
    one = {"max": lambda: wide.max(axis=0), "mean": lambda: wide.sum(axis=0) // len(wide)}.get(
        project, lambda: wide[int(project)]
    )()
    return np.moveaxis(one >> 8 if planes.dtype == np.uint16 else one, 0, -1).astype(np.uint8)


# --- properties

WRITERS = {
    "ome": lambda a: ome(a, "ZCYX"),
    "ome deflate": lambda a: ome(a, "ZCYX", compression="zlib", predictor=True),
    "ome lzma": lambda a: ome(a, "ZCYX", compression="lzma"),
    "ome tiles": lambda a: ome(a, "ZCYX", tile=(16, 16), compression="zlib"),
    "ome strips": lambda a: ome(a, "ZCYX", rowsperstrip=5, compression="zlib"),
    "ome big-endian": lambda a: ome(a, "ZCYX", byteorder=">"),
    "ome big-endian deflate": lambda a: ome(a, "ZCYX", byteorder=">", compression="zlib", predictor=True),
    "ome BigTIFF": lambda a: ome(a, "ZCYX", bigtiff=True),
    "ImageJ": lambda a: imagej(a, "ZCYX"),
}


@settings(max_examples=60, deadline=None)
@given(
    writer=st.sampled_from(sorted(WRITERS)),
    shape=st.tuples(st.integers(2, 4), st.integers(2, 5), st.integers(1, 20), st.integers(2, 20)),
    bits=st.sampled_from([8, 16]),
    project=st.sampled_from(["max", "mean", "0", "1"]),
    chosen=st.permutations(range(5)),
    count=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_decode_image__as_tifffile_and_numpy(
    writer: str, shape: tuple[int, ...], bits: int, project: str, chosen: list[int], count: int, seed: int
) -> None:
    pixels = make_stack(np.random.default_rng(seed), shape, bits)
    data = WRITERS[writer](pixels)
    assert (tifffile.imread(BytesIO(data)).reshape(shape) == pixels).all()
    channels = [channel for channel in chosen if channel < shape[1]][:count]
    image = decode(data, ",".join(map(str, channels)), project)
    wanted = expected(pixels, channels, project)
    if len(channels) == 1:
        wanted = wanted.repeat(3, axis=2)
    elif len(channels) == 2:
        wanted = np.concatenate([wanted, np.zeros_like(wanted[:, :, :1])], axis=2)
    assert image.shape == wanted.shape
    assert (image == wanted).all()
    assert image.flags.c_contiguous


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages", "tiles", "lzw", "rgb"])
def test_decode_image__channels_of_one_plane(layout: str, bits: int) -> None:
    count = 3 if layout == "rgb" else 4
    pixels = make_stack(np.random.default_rng(1), (count, 33, 40), bits)
    last = np.moveaxis(pixels, 0, -1)
    if layout == "lzw":
        stream = BytesIO()
        images = [Image.fromarray(one) for one in pixels]
        images[0].save(stream, "TIFF", save_all=True, append_images=images[1:], compression="tiff_lzw")
        data = stream.getvalue()
    elif layout == "rgb":
        data = write_bytes(last, metadata=None, photometric="rgb", compression="zlib", predictor=True)
    else:
        data = {
            "contig": lambda: plain(last, planarconfig="contig", compression="zlib", predictor=True),
            "separate": lambda: plain(pixels, planarconfig="separate", compression="zlib", rowsperstrip=7),
            "tiles": lambda: plain(pixels, planarconfig="separate", tile=(16, 32)),
            "pages": lambda: plain(pixels),
        }[layout]()
    image = decode(data, "2,0,1")
    assert (image == expected(pixels[None], [2, 0, 1], "0")).all()


def test_decode_image__names_and_order() -> None:
    pixels = make_stack(np.random.default_rng(2), (4, 20, 30))
    data = ome(pixels, "CYX", CHANNELS)
    assert (decode(data, "RFP,DAPI,Cy5") == decode(data, "2,0,3")).all()
    assert fault(data, "mCherry") == "channel 'mCherry' is not in this file, whose channels are DAPI, GFP, RFP, Cy5"
    assert fault(data, "4") == "channel 4 is not in this file, whose channels are number 0 to 3"
    assert "does not name its channels" in fault(ome(pixels, "CYX"), "GFP")
    assert "several channels are named 'GFP'" in fault(ome(pixels, "CYX", ("GFP", "GFP", "a", "b")), "GFP")


def test_decode_image__more_than_three_channels_are_kept() -> None:
    pixels = make_stack(np.random.default_rng(3), (5, 20, 30))
    image = decode(ome(pixels, "CYX"), "0,1,2,3,4")
    assert (image == np.moveaxis(pixels >> 8, 0, -1)).all()
    array = np.ascontiguousarray(image)
    assert (decode(array, "0,1,2,3,4") == array).all()
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 5\), got uint8 \(20, 30, 3\)"):
        decode(array[:, :, :3], "0,1,2,3,4")


def test_decode_image__projection_before_depth() -> None:
    # 0x00FF and 0x0101: their mean is 0x0100, whose high byte is 1; the mean of the high bytes would be 0.
    pixels = np.array([0x00FF, 0x0101], np.uint16)[:, None, None].repeat(2, 1).repeat(2, 2)
    assert (decode(plain(pixels), None, "mean") == 1).all()
    assert (decode(plain(pixels), "0", "mean") == 1).all()
    assert (decode(plain(pixels.astype(np.uint8)), None, "mean") == 128).all()  # (255 + 1) / 2


def test_decode_image__12_bits() -> None:
    pixels = np.array([0, 1023, 4095], np.uint16)[:, None, None].repeat(2, 1).repeat(2, 2)
    assert (decode(plain(pixels), "0,1,2", bit_depth_max=4095)[0, 0] == [0, 63, 255]).all()
    assert "4095 is above bit_depth_max 1023" in fault(plain(pixels), "2", bit_depth_max=1023)


@pytest.mark.parametrize("bits", [8, 16])
def test_decode_image__0_is_white(bits: int) -> None:
    pixels = make_stack(np.random.default_rng(4), (3, 8, 9), bits)
    top = 255 if bits == 8 else 65535
    for compression in (None, "zlib"):
        data = write_bytes(pixels, metadata=None, photometric="miniswhite", compression=compression)
        assert (decode(data, None, "max") == expected(top - pixels[:, None], [0], "max")).all()


def test_decode_image__orientation_of_a_stack() -> None:
    pixels = make_stack(np.random.default_rng(5), (2, 8, 12))
    data = plain(pixels, extratags=[(274, "H", 1, 6, True)])
    assert (decode(data, "1")[:, :, 0] == np.rot90(pixels[1] >> 8, -1)).all()


def test_decode_image__other_formats() -> None:
    image = noise(10, 12)
    assert (
        decode(encode(image, "PNG"), "2,0") == np.dstack([image[:, :, 2], image[:, :, 0], 0 * image[:, :, 0]])
    ).all()
    assert (decode(encode(image, "PNG"), project="max") == image).all()
    whole = decode(encode(image, "JPEG"))
    assert (decode(encode(image, "JPEG"), "1") == whole[:, :, 1:2]).all()
    gray = encode(image[:, :, 0], "JPEG")
    assert "channel 1 is not in this file, whose channels are number 0" in fault(gray, "1")
    rgba = np.dstack([image, image[:, :, 1]])
    assert (decode(encode(rgba, "PNG"), "3,2,1,0") == rgba[:, :, ::-1]).all()
    assert (decode(Image.fromarray(image), "2") == image[:, :, 2:]).all()
    assert fault(encode(image, "PNG"), project="1") == "page 1 is not in this file, which has one page"


def test_decode_image__project_leaves_plain_images_alone() -> None:
    image = noise(10, 12)
    for kind in ("L", "RGB", "RGBA", "P", "1", "CMYK"):
        data = encode(np.asarray(Image.fromarray(image).convert(kind)), "TIFF") if kind not in "P1" else None
        if data is None:
            stream = BytesIO()
            Image.fromarray(image).convert(kind).save(stream, "TIFF")
            data = stream.getvalue()
        assert (decode(data, project="max") == decode_image(data, RECIPE)).all(), kind


# --- refusals


def test_decode_image__what_is_not_chosen_is_refused() -> None:
    zc = make_stack(np.random.default_rng(6), (3, 2, 8, 9))
    data = ome(zc, "ZCYX", ("a", "b"))
    assert "a TIFF of 6 pages: " in fault(data)
    assert fault(data, "0").startswith("a TIFF of 3 z planes: train with channels or project set (project is missing)")
    assert fault(data, project="max").startswith("a TIFF of 2 channels (a, b): train with channels or project set")
    assert fault(data, "0", "3") == "page 3 is not in this file, whose pages are number 0 to 2"
    assert "a TIFF of 3 time points and 2 z planes: save one" in fault(ome(zc, "TZYX"), "0", "max")
    color = write_bytes(
        make_stack(np.random.default_rng(0), (3, 8, 9, 3)), ome=True, metadata={"axes": "CYXS"}, photometric="rgb"
    )
    assert "a TIFF of 3 channels in color" in fault(color, "0")


def test_decode_image__several_images() -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(np.zeros((2, 8, 9), np.uint8), metadata=None, photometric="minisblack")
        writer.write(np.zeros((2, 16, 9), np.uint8), metadata=None, photometric="minisblack")
    assert fault(stream.getvalue(), "0") == "a TIFF of 2 images: save the one to use as a file of its own"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (np.float32, "pixels of 32-bit floating point have no standard range: save the image with 8 or 16 bits"),
        (np.int16, "signed pixel values have no standard range"),
        (np.uint32, "pixels of 32 bits cannot be read: save the image with 8 or 16 bits per channel"),
    ],
)
def test_decode_image__depths(kind: Any, reason: str) -> None:
    data = plain(np.zeros((2, 8, 9), kind))
    assert fault(data, "0").startswith(reason)
    assert fault(data, project="max").startswith(reason)


def test_decode_image__unsupported_compression() -> None:
    stream = BytesIO()
    Image.fromarray(noise(16, 16)).convert("L").save(stream, "TIFF", compression="packbits")
    assert decode(stream.getvalue(), "0").shape == (16, 16, 3)
    data = bytearray(plain(np.zeros((2, 16, 16), np.uint16), compression="zlib"))
    changed = bytes(data).replace(struct.pack("<HHIH", 259, 3, 1, 8), struct.pack("<HHIH", 259, 3, 1, 34712))
    assert changed != bytes(data)
    assert fault(changed, "0").startswith(
        "channels or pages of a TIFF compressed with JPEG 2000 cannot be read: save it"
    )


def test_decode_image__raw_photo() -> None:
    data = plain(np.zeros((2, 16, 16), np.uint16), extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])
    assert fault(data, "0").startswith("a raw camera photo")


# --- damage


@pytest.mark.parametrize("writer", sorted(WRITERS))
def test_decode_image__truncated_anywhere(writer: str) -> None:
    pixels = make_stack(np.random.default_rng(8), (2, 2, 24, 24))
    data = WRITERS[writer](pixels)
    whole = decode(data, "0,1", "max")
    for size in range(8, len(data) - 1, 41):
        try:
            image = decode(data[:size], "0,1", "max")
        except ImageReadError:
            continue
        assert (image == whole).all()  # only what is behind the pixels is missing


def test_decode_image__damaged_deflate() -> None:
    data = WRITERS["ome deflate"](make_stack(np.random.default_rng(9), (2, 2, 64, 64)))
    whole, places = decode(data, "0,1", "max"), range(2000, len(data), 397)
    refused = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 16
        try:
            assert (decode(bytes(damaged), "0,1", "max") == whole).all()  # a tag that says nothing about the pixels
        except ImageReadError:
            refused += 1
    assert refused > 0.9 * len(places)


@pytest.mark.parametrize("writer", sorted(WRITERS))
def test_decode_image__truncated_after_the_first_plane(writer: str) -> None:
    # What is left is not taken for the whole stack.
    pixels = make_stack(np.random.default_rng(8), (6, 1, 24, 24)).repeat(2, axis=1)
    data = WRITERS[writer](pixels)
    whole = decode(data, "0", "max")
    for size in range(900, len(data) - 1, 101):
        try:
            assert (decode(data[:size], "0", "max") == whole).all()
        except ImageReadError:
            continue


def test_decode_image__described_planes_that_are_not_there() -> None:
    start = time.perf_counter()
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="I:0">'
        '<Pixels DimensionOrder="XYZCT" Type="uint8" SizeX="9" SizeY="8" SizeZ="{}" SizeC="1" SizeT="1">'
        '<TiffData IFD="0" PlaneCount="{}"/></Pixels></Image></OME>'
    )
    for description in (
        xml.format(2, 999_999_999),
        xml.format(60_000, 2),
        xml.format(2, "&#57;99999999"),
        xml.format(2, 2).replace("<TiffData", 300_000 * "<TiffData/>" + "<TiffData"),
        "ImageJ=1.53\nimages=12\nslices=12\n",
        '{"shape": [999999999, 8, 9]}',
    ):
        data = write_bytes(STACK_PIXELS, photometric="minisblack", description=description, metadata=None)
        assert fault(data, project="max"), description[:90]
    assert time.perf_counter() - start < 10


def test_decode_image__pages_in_a_loop() -> None:
    data = bytearray(plain(np.zeros((3, 8, 9), np.uint8)))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert fault(bytes(data), "0") == "damaged TIFF (its pages form a loop)"


def test_decode_image__too_many_declared_planes_and_pixels() -> None:
    start = time.perf_counter()
    small = np.zeros((2, 8, 9), np.uint8)
    longer = ome(small, "ZYX").replace(b'SizeZ="2"', b'SizeZ="2000000000"')  # its tag then ends within the text
    assert "OME-XML" in fault(longer, project="max")
    wide = bytearray(plain(small))
    for tag in (256, 257):  # width and height
        place = wide.index(struct.pack("<HHI", tag, 4, 1))
        struct.pack_into("<HHII", wide, place, tag, 4, 1, 60000)
    assert "million" in fault(bytes(wide), "0")
    entity = ome(small, "ZYX").replace(b"<OME", b"<!DOCTYPE a [<!ENTITY b 'c'>]><OME", 1)
    assert "OME-XML" in fault(entity, project="max")
    many = plain(np.zeros((40, 8, 9), np.uint8))
    for tag, size in ((256, 9), (257, 8)):
        many = many.replace(struct.pack("<HHII", tag, 4, 1, size), struct.pack("<HHII", tag, 4, 1, 8000))
    assert "a stack of 2560000000 values" in fault(many, project="max")
    assert time.perf_counter() - start < 20  # 0.1 s


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WRITERS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)
)
@pytest.mark.filterwarnings("ignore")
def test_decode_image__mutated(writer: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(WRITERS[writer](make_stack(np.random.default_rng(10), (2, 3, 9, 8))))
    for share, value in changes:
        data[min(len(data) - 1, int(share * len(data)))] = value
    try:
        image = decode(bytes(data), "0,2", "max")
    except ImageReadError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


# --- facts


def test_read_channels(tmp_path: Any) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(ome(make_stack(np.random.default_rng(0), (3, 4, 8, 9)), "ZCYX", CHANNELS))
    found = read_channels(str(path))
    assert found == Channels(4, CHANNELS)
    assert str(found) == "4 channels (DAPI, GFP, RFP, Cy5)"
    path.write_bytes(encode(noise(8, 8), "PNG"))
    assert read_channels(str(path)) is None
    path.write_bytes(plain(make_stack(np.random.default_rng(0), (3, 8, 9))))
    assert read_channels(str(path)) == Channels(3, ())


def test_read_size__more_channels_than_pillow_reads(tmp_path: Any) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(plain(np.zeros((20, 30, 5), np.uint16), planarconfig="contig"))
    assert read_size(path) == (20, 30)


def test_find_dark__of_the_chosen_channels() -> None:
    stacks = [ome(make_stack(np.random.default_rng(seed), (2, 3, 8, 9)), "ZCYX") for seed in range(8)]
    dim = [
        ome(tifffile.imread(BytesIO(data)) // np.array([1, 20, 1])[:, None, None].astype(np.uint16), "ZCYX")
        for data in stacks
    ]
    chosen = build_preprocessing((8, 8), channels=("1",), project="max")
    assert "the brightest value of 8 16-bit images is 32" in str(find_dark(dim, 65535, chosen))
    assert find_dark(dim, 65535, build_preprocessing((8, 8), channels=("1", "2"), project="max")) is None
    assert find_dark(stacks, 65535, chosen) is None


def test_decode_image__without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)  # as if it were not installed
    assert "requires tifffile: install it with pip install 'tl-toolkit[tiff]'" in fault(STACK, "0")
    assert decode(encode(noise(8, 8), "PNG"), "0").shape == (8, 8, 3)
