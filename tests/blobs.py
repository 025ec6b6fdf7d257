"""Images of red, green and blue blobs in all combinations, for tests of several labels without pretrained weights."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BLOBS = ("red", "green", "blue")
SIDE = 24


def blob_image(has: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise with a square of each color that the image `has`, uint8 (SIDE, SIDE, 3)."""
    image = rng.integers(0, 60, (SIDE, SIDE, 3))
    for channel, is_present in enumerate(has):
        if is_present:
            y, x = rng.integers(0, SIDE - 8, 2)
            image[y : y + 8, x : x + 8, channel] += 180
    return image.astype(np.uint8)


def write_blobs(folder: Path, *, times: int = 12, unknown: float = 0.1, test: int = 4) -> Path:
    """Write each combination `times` times, and `test` times for the test split. Returns labels.csv.

    Its columns are path, split, red, green and blue: 1, 0 or, for a share `unknown` of the training images, nothing.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,split,red,green,blue"]
    for number, has in enumerate(product((0, 1), repeat=3)):
        for copy in range(times + test):
            name = f"{number}-{copy}.png"
            Image.fromarray(blob_image(has, rng)).save(folder / name)
            split = "train" if copy < times else "test"
            cells = [str(value) for value in has]
            if split == "train" and rng.random() < unknown:
                cells[rng.integers(3)] = ""
            lines.append(",".join([name, split, *cells]))
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
