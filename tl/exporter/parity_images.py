"""Images for the parity check: given ones, or synthetic ones.

Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError, ImageReadError
from tl.exporter.parity import spread
from tl.exporter.publish import synthetic_inputs
from tl.progress import Progress
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import load_inputs
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Box, BoxCrop
from tl.runtime.sources.boxed_images import BoxedImage, PredictionSource
from tl.runtime.sources.paths import find_images

MAX_IMAGES = 64
# A box in an image whose own boxes are not known.
_BOX = Box((0.3, 0.4, 0.5, 0.3), is_relative=True)
_NOISE_SIZES_HW = ((480, 640), (300, 200), (224, 224), (97, 131))


@dataclass(frozen=True)
class ParityImages:
    """Sources for the runtime, and the same images as inputs uint8 (N, H, W, 3)."""

    sources: Sequence[PredictionSource]
    inputs: NDArray[np.uint8]


def find_parity_images(images: Sequence[str | os.PathLike[str]]) -> list[str]:
    """A sample of the images in files and folders, evenly spaced. Raises `DataError` if there are none."""
    found = spread(find_images(images).paths, MAX_IMAGES)
    if not found:
        raise DataError(f"no images to check parity on in {', '.join(map(str, images))}")
    return found


def load_parity_images(
    sources: Sequence[ImageSource],
    preprocessing: Preprocessing,
    progress: Progress,
    crop: BoxCrop | None = None,
) -> ParityImages:
    """Prepare images as the runtime does; for models of boxes, a box of each. Raises `DataError` if they cannot."""
    inputs, faults = [], []
    progress.start("reading images", len(sources), "images")
    for source in sources:
        try:
            (prepared,) = load_inputs(source, [preprocessing], box=None if crop is None else _BOX, crop=crop).values()
            inputs.append(prepared[0])
        except ImageReadError as error:
            faults.append(str(error))
        progress.advance()
    if faults:
        listed = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise DataError(f"the parity check requires undamaged images: fix or remove these {len(faults)}: {listed}")
    boxed = sources if crop is None else [BoxedImage(source, _BOX) for source in sources]
    return ParityImages(boxed, np.stack(inputs))


def noise_images(preprocessing: Preprocessing | None = None) -> list[NDArray[np.uint8]]:
    """Synthetic images in several sizes, from smooth to noisy, identical on every machine: uint8 (H, W, C) each."""
    random, channels = np.random.default_rng(0), 3 if preprocessing is None else preprocessing.num_channels
    smooth = [image for hw in _NOISE_SIZES_HW for image in synthetic_inputs((*hw, channels))[:2]]
    return [
        np.clip(image + random.normal(0, 8 * i, image.shape), 0, 255).astype(np.uint8) for i, image in enumerate(smooth)
    ]
