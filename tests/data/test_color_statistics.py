from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.make import make_noise
from tl.data.images import color_statistics

# float64 sums of several thousand terms in a different order.
FLOAT64_ORDER = 1e-12


def make_images() -> list[NDArray[np.uint8]]:
    """Images of several sizes and colors, one with a single pixel."""
    sizes = ((1, 1), (20, 20), (3, 50), (64, 2), (33, 17))
    colors = ((0, 0, 0), (128, 60, 250), (40, 200, 3), (255, 255, 255), (90, 100, 110))
    return [make_noise(i, rgb, hw) for i, (rgb, hw) in enumerate(zip(colors, sizes, strict=True))]


@pytest.mark.parametrize("seed", range(4))
def test_color_statistics__equal_numpy_over_all_pixels_in_any_order(seed: int) -> None:
    images = make_images()
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    order = np.random.default_rng(seed).permutation(len(images))
    mean, std = color_statistics(images[i] for i in order)  # a single pass, as from a file reader
    assert mean == pytest.approx(tuple(pixels.mean(axis=0)), abs=FLOAT64_ORDER)
    assert std == pytest.approx(tuple(pixels.std(axis=0)), abs=FLOAT64_ORDER)
    assert all(type(value) is float for value in (*mean, *std))


def test_color_statistics__by_hand() -> None:
    # Channel 0: one 0 and three 255, mean 3/4, variance 3/16. Channel 1: two and two.
    images = [np.array([[[0, 0, 9]]], np.uint8), np.array([[[255, 0, 9], [255, 255, 9], [255, 255, 9]]], np.uint8)]
    mean, std = color_statistics(images)
    assert mean == pytest.approx((0.75, 0.5, 9 / 255), abs=FLOAT64_ORDER)
    assert std[:2] == pytest.approx(((3 / 16) ** 0.5, 0.5), abs=FLOAT64_ORDER)


def test_color_statistics__a_channel_without_spread_can_be_divided_by() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 1] = 7
    image[:2, :, 2] = 200
    mean, std = color_statistics([image, image])
    assert mean == pytest.approx((0, 7 / 255, 100 / 255), abs=FLOAT64_ORDER)
    assert std == pytest.approx((1 / 255, 1 / 255, 100 / 255), abs=FLOAT64_ORDER)


def test_color_statistics__the_spread_between_images_counts() -> None:
    dark, bright = np.zeros((5, 5, 3), np.uint8), np.full((5, 5, 3), 255, np.uint8)
    assert color_statistics([dark, bright])[1] == pytest.approx((0.5, 0.5, 0.5), abs=FLOAT64_ORDER)


def test_color_statistics__a_small_spread_on_many_bright_pixels_is_not_canceled() -> None:
    # The textbook formula, mean of squares minus squared mean, would lose digits here.
    image = np.full((512, 512, 3), 254, np.uint8)
    image[::2] = 252
    std = color_statistics([image] * 8)[1]
    assert std == pytest.approx((1 / 255,) * 3, rel=1e-9)  # two million terms


def test_color_statistics__gray_images() -> None:
    gray = np.repeat(make_noise(3)[..., :1], 3, axis=2)
    mean, std = color_statistics([gray])
    assert len(set(mean)) == len(set(std)) == 1


@pytest.mark.parametrize("images", [[], iter(())])
def test_color_statistics__no_images(images: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ValueError, match="no images"):
        color_statistics(images)


def test_color_statistics__of_any_number_of_channels() -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (6, 7, 5), np.uint8) for seed in range(3)]
    mean, std = color_statistics(iter(images))
    pixels = np.concatenate([image.reshape(-1, 5) for image in images]) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)
