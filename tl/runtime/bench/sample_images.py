"""Made-up photos to measure with, where no real ones are given.

Knows JPEG and what a photo's spectrum is like. Does not know what is measured.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

# A phone's photo: 12 megapixels. At quality 90 a made-up one has about 0.2 bytes a pixel, as many real ones have.
PHONE_WH = (4000, 3000)
_TILE = 512
# How much fainter each octave of detail is: 0.5 gives JPEGs of 0.13 bytes a pixel, 0.7 of 0.32.
_FALLOFF = 0.6


def sample_jpeg(size_wh: tuple[int, int] = PHONE_WH, seed: int = 0) -> bytes:
    """A JPEG (quality 90, 4:2:0) of `size_wh` pixels with detail at every scale, the same for the same seed."""
    tile = _clouds(seed)
    width, height = size_wh
    repeats = (-(-height // _TILE), -(-width // _TILE), 1)
    image = np.ascontiguousarray(np.tile(tile, repeats)[:height, :width])
    encoded: bytes = simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420")
    return encoded


def _clouds(seed: int) -> NDArray[np.uint8]:
    """Noise of 4, 8, 16 ... cells a side, one above the other: uint8 (_TILE, _TILE, 3)."""
    generator = np.random.default_rng(seed)
    image = np.full((_TILE, _TILE, 3), 128, np.float32)
    cells, contrast = 4, 60.0
    while cells <= _TILE:
        noise = generator.standard_normal((cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[:, :, channel]).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
            image[:, :, channel] += contrast * np.asarray(layer)
        cells, contrast = 2 * cells, contrast * _FALLOFF
    return image.clip(0, 255).astype(np.uint8)
