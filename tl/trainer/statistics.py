"""Mean and spread of a data set's colours, in one pass over pictures of any number.

Knows arrays. Does not know files or networks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[float, float, float]


def color_statistics(images: Iterable[NDArray[np.uint8]]) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of each channel in 0..1 over all pixels of uint8 (H, W, 3) images.

    A channel without any spread counts as 1 / 255, so that it can be divided by. Raises ValueError without images.

    Source: Chan, Golub & LeVeque 1979, the pairwise update of counts, means and sums of squares.
    """
    count, mean, squares = 0, np.zeros(3), np.zeros(3)
    for image in images:
        pixels = image.reshape(-1, 3).astype(np.float64) / 255
        own_mean = pixels.mean(axis=0)
        own_squares = ((pixels - own_mean) ** 2).sum(axis=0)
        total = count + len(pixels)
        step = own_mean - mean
        mean += step * (len(pixels) / total)
        squares += own_squares + step**2 * (count * len(pixels) / total)
        count = total
    if count == 0:
        raise ValueError("no images to measure")
    std = np.maximum(np.sqrt(squares / count), 1 / 255)
    return _rgb(mean), _rgb(std)


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
