"""Turn images upright by their EXIF orientation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EXIF_ORIENTATION = 0x0112


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8 of an opened image, 1 if it has none."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # no orientation in an unreadable EXIF block; viewers show such images as stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Rotate and flip a stored (H, W, 3) array according to its EXIF orientation 1..8; C-contiguous.

    Source: EXIF 2.32, tag 0x0112 (which side of the stored image is the visual top and left).
    """
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
