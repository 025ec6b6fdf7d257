"""Pillow images as sources: the same pixels as their file, lazily opened, loaded or made by the host program."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tl.runtime
from tests.models import make_model
from tests.runtime.images import RECIPE, encode, encode_turned, noise, png, zero_middle
from tests.spots import USUAL_XY, make_spot_model, spot_image
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_image, decode_scaled
from tl.runtime.imaging.pillow_images import plain_source
from tl.runtime.imaging.preprocessing import build_preprocessing

GRAY = noise(9, 7)[..., 0]
ALPHA = np.dstack([noise(9, 7), GRAY])


def opened(data: bytes, *, loaded: bool) -> Image.Image:
    image = Image.open(BytesIO(data))
    if loaded:
        image.load()
    return image


def made(mode: str) -> Image.Image:
    """An image of a mode, with transparency where the mode has it."""
    if mode in ("LA", "La"):
        return Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(np.ascontiguousarray(GRAY[::-1]))]).convert(
            mode
        )
    if mode in ("RGBA", "RGBa"):
        return Image.fromarray(ALPHA).convert(mode)
    if mode == "I;16":
        return Image.fromarray(GRAY.astype(np.uint16) * 257)
    return Image.fromarray(noise(9, 7)).convert(mode)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "I;16"])
def test_plain_source__modes_as_their_png(mode: str, loaded: bool) -> None:
    data = encode(made(mode), "PNG")
    expected = decode_image(data, RECIPE)
    np.testing.assert_array_equal(decode_image(opened(data, loaded=loaded), RECIPE), expected)
    np.testing.assert_array_equal(decode_image(made(mode), RECIPE), expected)  # never was a file


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa"])
def test_plain_source__modes_that_png_lacks(mode: str) -> None:
    image = made(mode)
    kept = {"La": "LA", "RGBa": "RGBA"}.get(mode)
    expected = image.convert("RGB") if kept is None else image.convert(kept)
    np.testing.assert_array_equal(decode_image(image, RECIPE), decode_image(encode(expected, "PNG"), RECIPE))


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_plain_source__upright(orientation: int, kind: str, loaded: bool) -> None:
    data = encode_turned(noise(16, 24), orientation, kind, **({"quality": 95} if kind == "JPEG" else {}))
    found = decode_image(opened(data, loaded=loaded), RECIPE)
    # Pillow and simplejpeg may be built with libraries whose JPEG arithmetic differs in the last digit.
    np.testing.assert_allclose(found.astype(int), decode_image(data, RECIPE).astype(int), atol=2 if loaded else 0)


@pytest.mark.parametrize("loaded", [False, True])
def test_plain_source__transparent_colors(loaded: bool) -> None:
    rgb = encode(made("RGB"), "PNG", transparency=tuple(map(int, noise(9, 7)[0, 0])))
    palette = encode(made("P"), "PNG", transparency=3)
    for data in (rgb, palette):
        image = opened(data, loaded=loaded)
        np.testing.assert_array_equal(decode_image(image, RECIPE), decode_image(data, RECIPE))


def test_plain_source__an_open_file_is_read_by_the_decoder() -> None:
    deep = png(1, 1, bits=16, color=2, rows=b"\x12\x34\x56\x78\x9a\xbc")
    image = opened(deep, loaded=False)
    assert plain_source(image) == deep
    with pytest.raises(ImageReadError, match="only grayscale images can be rescaled"):
        decode_image(image, build_preprocessing((8, 8), bit_depth_max=4095))
    assert image.load() is not None  # the image is as usable as before
    scaled = decode_scaled(opened(encode(noise(64, 64), "JPEG"), loaded=False), RECIPE, lambda full_hw: 2)
    assert (scaled.image.shape, scaled.full_hw) == ((16, 16, 3), (64, 64))
    damaged = zero_middle(encode(noise(64, 64), "JPEG"))
    with pytest.raises(ImageReadError, match="damaged JPEG"):
        decode_image(opened(damaged, loaded=False), RECIPE)


def test_plain_source__what_the_program_did_to_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    first, second = (Image.fromarray(np.full((4, 4), gray, np.uint8)) for gray in (10, 200))
    first.save(path, save_all=True, append_images=[second])
    with Image.open(path) as frames:
        frames.seek(1)
        assert decode_image(frames, RECIPE)[0, 0].tolist() == [200] * 3
    with Image.open(BytesIO(encode(noise(64, 64), "JPEG"))) as drafted:
        drafted.draft("RGB", (16, 16))
        assert decode_image(drafted, RECIPE).shape == (16, 16, 3)
    cropped = opened(encode(noise(16, 16), "PNG"), loaded=False).crop((2, 3, 9, 12))
    np.testing.assert_array_equal(decode_image(cropped, RECIPE), noise(16, 16)[3:12, 2:9])


def test_plain_source__refused() -> None:
    with pytest.raises(ImageReadError, match="32-bit pixels have no standard range"):
        decode_image(Image.fromarray(GRAY.astype(np.float32)), RECIPE)
    truncated = opened(encode(noise(64, 64), "PNG")[:-300], loaded=False)
    with pytest.raises(ImageReadError):
        decode_image(truncated, RECIPE)
    truncated.seek(0)
    inverted = opened(encode(made("I;16"), "TIFF", tiffinfo={262: 0}), loaded=True)
    with pytest.raises(ImageReadError, match="give the file instead"):
        decode_image(inverted, RECIPE)
    assert plain_source("name.png") == "name.png"


def probabilities(results: list[object]) -> NDArray[np.float32]:
    return np.stack([result.probabilities for result in results if isinstance(result, tl.runtime.Classification)])


@pytest.mark.parametrize("processes", [0, 1])
def test_predict__pillow_images_of_classifiers(processes: int, tmp_path: Path) -> None:
    models = [make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.05), ("b", 0.01))]
    data = encode_turned(noise(30, 20), 6, "PNG")
    images = [opened(data, loaded=False), opened(data, loaded=True), Image.fromarray(noise(30, 20))]
    for chosen in (models[0], models):
        with tl.runtime.load(chosen, device="cpu", threads=1, decode_processes=processes) as model:
            expected = model.predict(data)
            results = model.predict_batch([*images, Image.fromarray(GRAY.astype(np.float32))])
            np.testing.assert_array_equal(model.predict(images[0]).probabilities, expected.probabilities)
        np.testing.assert_allclose(probabilities(list(results)), [expected.probabilities] * 3, atol=1e-6)  # batches
        assert isinstance(results[3], tl.runtime.Failure)
        assert "32-bit pixels" in results[3].error


def test_predict__pillow_images_of_landmark_models(tmp_path: Path) -> None:
    image = spot_image(USUAL_XY)
    with tl.runtime.load_landmarks(make_spot_model(tmp_path / "m.onnx"), device="cpu", threads=1) as model:
        found = [model.predict(source).keypoints_xy for source in (encode(image, "PNG"), Image.fromarray(image))]
        (streamed,) = model.predict_batch([Image.fromarray(image)])
    np.testing.assert_array_equal(found[0], found[1])
    assert isinstance(streamed, tl.runtime.Landmarks)


def test_explain__a_pillow_image(tmp_path: Path) -> None:
    with tl.runtime.load(make_model(tmp_path / "m.onnx"), device="cpu") as model:
        found = tl.runtime.explain(model, Image.fromarray(noise(30, 20)))
        assert np.array_equal(found.heat, tl.runtime.explain(model, noise(30, 20)).heat)
