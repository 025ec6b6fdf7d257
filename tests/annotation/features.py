"""Photos and features for tests of learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_photos(folder: Path, count: int) -> tuple[list[str], NDArray[np.float32]]:
    """PNG files of one random color each, 8x8 pixels, and these colors float32 (N, 3)."""
    colors = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, color in enumerate(colors):
        path = folder / f"{i:03d}.png"
        Image.fromarray(np.broadcast_to(color, (8, 8, 3)).copy()).save(path)
        paths.append(str(path))
    return paths, colors.astype(np.float32)


def make_clouds(
    classes: int, count: int, *, width: int = 32, apart: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (N, D) of clouds around class centers, with entries of different scales, and class ids (N,) in turn."""
    rng = np.random.default_rng(seed)
    ids = np.arange(count) % classes
    centers, sizes = rng.normal(size=(classes, width)), rng.uniform(0.5, 3, width)
    features = sizes * (apart * centers[ids] + rng.normal(size=(count, width))) + 5
    return features.astype(np.float32), ids.astype(np.int64)
