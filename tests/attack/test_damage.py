"""Files with one changed bit: a sentence or a result, never a crash; with checksums, the right pixels or none."""

from __future__ import annotations

import random
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tl.errors import ImageReadError, ModelFileError
from tl.runtime.imaging.decode import decode_image
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.predictor import load

FLIPS = 400
PREPROCESSING = build_preprocessing((16, 16))
FORMATS = {
    "PNG": {},
    "JPEG": {"quality": 90},
    "TIFF": {},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "AVIF": {},
}
# A changed byte is noticed by the decoder, whatever it is. Source: PNG specification, "CRC algorithm".
HAS_CHECKSUMS = ("PNG",)


def encoded(kind: str) -> bytes:
    name = kind.split()[0]
    if name in ("WEBP", "AVIF") and not features.check(name.lower()):
        pytest.skip(f"this Pillow cannot write {name}")
    stream = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, name, **FORMATS[kind])
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_decode_image__one_changed_byte(kind: str) -> None:
    content = encoded(kind)
    right = decode_image(content, PREPROCESSING)
    chance = random.Random(kind)
    for _ in range(FLIPS):
        damaged = bytearray(content)
        place = chance.randrange(len(damaged))
        damaged[place] ^= 1 << chance.randrange(8)
        with suppress(ImageReadError):
            found = decode_image(bytes(damaged), PREPROCESSING)
            assert found.dtype == np.uint8
            assert found.ndim == 3
            assert kind not in HAS_CHECKSUMS or np.array_equal(found, right), place


def test_load__a_model_file_with_one_changed_byte(exported: Path, photos: Path, tmp_path: Path) -> None:
    """Refused in a sentence, or it still predicts finite numbers: a weight's changed digit cannot be noticed."""
    content = exported.read_bytes()
    image = next(photos.rglob("*.png"))
    chance = random.Random(0)
    refused: list[str] = []
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        (tmp_path / "m.onnx").write_bytes(damaged)
        try:
            with load(tmp_path / "m.onnx", device="cpu", threads=1) as predictor:
                assert np.isfinite(predictor.predict(str(image)).probabilities).all()
        except ModelFileError as error:
            refused.append(str(error))
    assert refused
    assert all(text.startswith(f"{tmp_path}/m.onnx: ") for text in refused)


def test_decode_image__every_changed_bit_of_a_png() -> None:
    """Also in the last bytes of its pixels, after which Pillow stops reading."""
    content = encoded("PNG")
    right = decode_image(content, PREPROCESSING)
    for place in range(len(content) - 200, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with suppress(ImageReadError):
                assert np.array_equal(decode_image(bytes(damaged), PREPROCESSING), right), (place, bit)
