"""HEIC photos: made by heif-enc 1.15.1 from `pattern`, at quality 90.

`exif_only` has the EXIF orientation 6 and no rotation of its own; `turned` has both, as phones write them; `grid`
consists of two equal tiles, as photos consist of many.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.images import RECIPE
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_image, read_size, read_stored
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.imaging.signatures import HEAD_BYTES, foreign_fault, is_heif, unchecked_format

FOLDER = Path(__file__).parent / "heic"
# Quality 90 and 4:2:0 chroma: measured 2.1 on average.
CLOSE = 4.0


def pattern() -> NDArray[np.uint8]:
    y, x = np.mgrid[0:48, 0:64]
    image = np.stack([4 * x, 5 * y, np.where((y < 12) & (x < 16), 255, 0)], axis=-1)
    return image.astype(np.uint8)


def distance(image: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    assert image.shape == expected.shape
    return float(np.abs(image.astype(int) - expected).mean())


def test_foreign_fault__heic_names_the_package() -> None:
    head = (FOLDER / "plain.heic").read_bytes()[:HEAD_BYTES]
    assert is_heif(head)
    assert unchecked_format(head) == "HEIC"
    assert str(foreign_fault(head)).startswith("an HEIC photo: install pi-heif to read it (pip install ")
    assert not is_heif(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf")
    assert not is_heif(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf")


def test_decode_image__heic_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)  # as if it were not installed
    with pytest.raises(ImageReadError, match=r"install pi-heif to read it .*, or export it as JPEG"):
        decode_image(FOLDER / "plain.heic", RECIPE)
    with pytest.raises(ImageReadError, match="install pi-heif"):
        read_size(FOLDER / "plain.heic")


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def _needs_pi_heif(self) -> None:
        pytest.importorskip("pi_heif", reason="reads HEIC")

    def test_decode_image__heic(self) -> None:
        assert distance(decode_image(FOLDER / "plain.heic", RECIPE), pattern()) < CLOSE
        assert read_stored(FOLDER / "plain.heic") == ((48, 64), 1)

    def test_decode_image__heic_turned_once(self) -> None:
        upright = np.rot90(pattern(), -1)  # orientation 6: the right of the stored image is the top
        assert distance(decode_image(FOLDER / "turned.heic", RECIPE), upright) < CLOSE
        assert read_stored(FOLDER / "turned.heic") == ((64, 48), 1)

    def test_decode_image__heic_exif_orientation_is_not_applied(self) -> None:
        # ISO 23008-12 makes the rotation property normative; EXIF repeats it.
        assert distance(decode_image(FOLDER / "exif_only.heic", RECIPE), pattern()) < CLOSE
        assert read_size(FOLDER / "exif_only.heic") == (48, 64)

    def test_decode_image__heic_alpha_over_white(self) -> None:
        image = decode_image(FOLDER / "alpha.heic", RECIPE)
        assert (image[34:, 44:60] == 255).all()
        assert distance(image[:28, :36], pattern()[:28, :36]) < CLOSE

    def test_decode_image__heic_gray(self) -> None:
        image = decode_image(FOLDER / "gray.heic", RECIPE)
        assert distance(image, np.repeat(pattern()[:, :, :1], 3, axis=2)) < CLOSE

    def test_decode_image__heic_channels(self) -> None:
        whole = decode_image(FOLDER / "plain.heic", RECIPE)
        image = decode_image(FOLDER / "plain.heic", build_preprocessing((8, 8), channels=("1",)))
        assert (image == whole[:, :, 1:2]).all()

    def test_decode_image__heic_sources(self) -> None:
        data = (FOLDER / "plain.heic").read_bytes()
        assert (decode_image(data, RECIPE) == decode_image(BytesIO(data), RECIPE)).all()

    @pytest.mark.parametrize("name", ["plain", "grid", "turned"])
    def test_decode_image__heic_truncated_anywhere(self, name: str) -> None:
        data = (FOLDER / f"{name}.heic").read_bytes()
        for size in range(16, len(data), 7):
            with pytest.raises(ImageReadError):
                decode_image(data[:size], RECIPE)

    @pytest.mark.parametrize("filler", [b"\0", b"\xff"])
    def test_decode_image__heic_without_its_last_tile(self, filler: bytes) -> None:
        data = (FOLDER / "grid.heic").read_bytes()
        whole = decode_image(data, RECIPE)
        assert (whole[:, :64] == whole[:, 64:]).all()
        damaged = data[:-1960] + filler * 1960  # the second tile has 1999 bytes; libheif leaves it out
        with pytest.raises(ImageReadError, match="damaged HEIC"):
            decode_image(damaged, RECIPE)

    def test_decode_image__heic_without_pixels(self) -> None:
        with pytest.raises(ImageReadError, match="HEIC"):
            decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", RECIPE)
        with pytest.raises(ImageReadError, match="HEIC"):
            decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(2000), RECIPE)

    def test_decode_image__heic_leaves_pillow_alone(self) -> None:
        decode_image(FOLDER / "plain.heic", RECIPE)
        assert not {"HEIF", "HEIC"} & set(Image.OPEN)
        assert ".heic" not in Image.registered_extensions()
