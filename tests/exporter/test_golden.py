from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tl.exporter.publish import NUM_SAMPLES, TOLERANCE, build_golden, synthetic_inputs


def one_hot(*labels: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[list(labels)]


def numbered(count: int) -> np.ndarray:
    """Every pixel of image i is i."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 5, 7, 3), np.uint8)


def chosen(labels: tuple[int, ...]) -> list[int]:
    golden = build_golden("validation", numbered(len(labels)), one_hot(*labels))
    places = []
    for sample in golden.samples:
        with Image.open(BytesIO(base64.b64decode(sample.png))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (7, 5))
            places.append(int(np.asarray(image)[0, 0, 0]))
    return places


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        ((0, 0, 0, 0, 0, 0), [0, 1, 2, 3]),
        ((0, 0, 0, 1, 2, 3), [0, 3, 4, 5]),
        ((0, 0, 0, 0, 0, 1), [0, 5, 1, 2]),
        ((0, 1, 2, 3, 0, 1), [0, 1, 2, 3]),
        ((2,), [0]),
    ],
)
def test_build_golden__several_classes_are_tested(labels: tuple[int, ...], places: list[int]) -> None:
    assert chosen(labels) == places


def test_build_golden__pixels_and_probabilities_are_exact() -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3)).astype(np.uint8)
    probabilities = np.random.default_rng(1).dirichlet(np.ones(4), 3).astype(np.float32)
    golden = build_golden("validation", inputs, probabilities)
    found = {sample.expected: sample.png for sample in golden.samples}
    for image, row in zip(inputs, probabilities, strict=True):
        with Image.open(BytesIO(base64.b64decode(found[tuple(map(float, row))]))) as opened:
            np.testing.assert_array_equal(np.asarray(opened), image)


@pytest.mark.parametrize("source", ["validation", "synthetic"])
def test_build_golden__says_its_source_and_tolerances(source: str) -> None:
    golden = build_golden(source, numbered(2), one_hot(0, 1))  # type: ignore[arg-type]
    assert golden.source == source
    assert golden.tolerance == TOLERANCE
    assert golden.tolerance is not TOLERANCE
    assert set(TOLERANCE) == {"fp32", "fp16", "bf16", "int8"}
    assert TOLERANCE["fp32"] < TOLERANCE["fp16"] < TOLERANCE["int8"]


@pytest.mark.parametrize("hw", [(8, 8), (224, 224), (10, 33), (1, 1)])
def test_synthetic_inputs__form(hw: tuple[int, int]) -> None:
    images = synthetic_inputs((*hw, 3))
    assert (images.shape, images.dtype) == ((NUM_SAMPLES, *hw, 3), np.uint8)


def test_synthetic_inputs__the_same_everywhere_smooth_and_distinct() -> None:
    images = synthetic_inputs((64, 64, 3))
    np.testing.assert_array_equal(images, synthetic_inputs((64, 64, 3)))
    assert len({image.tobytes() for image in images}) == NUM_SAMPLES
    steps = np.abs(np.diff(images.astype(int), axis=1)).max()
    # d/dy| of 255 * (0.5 + 0.5 sin(k (3x + cy) + c)) is at most 127.5 * 4 * 2 / 64 per pixel, plus 1 for rounding.
    assert steps <= 127.5 * 4 * 2 / 64 + 1
    assert images.std() > 30  # no blank images


def test_synthetic_inputs__by_hand() -> None:
    # Top left of every image: sin(c) for channels c = 0, 1, 2.
    wanted = [int(255 * (0.5 + 0.5 * np.sin(c))) for c in range(3)]
    assert synthetic_inputs((16, 16, 3))[:, 0, 0].tolist() == [wanted] * NUM_SAMPLES
