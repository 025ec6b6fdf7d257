"""Images of three colored spots and their annotations, for fast training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.spots import SPOTS, USUAL_XY, save_spots
from tests.trainer.make import make_config
from tl.runtime.landmarks.files import image_finder, image_sizes, write_landmarks
from tl.runtime.landmarks.sets import LandmarkSet, image_landmarks
from tl.trainer.config import TrainConfig


def moved_spots(seed: int) -> NDArray[np.float64]:
    """The typical positions, slightly rotated, scaled and shifted."""
    rng = np.random.default_rng(seed)
    angle, scale, shift = rng.uniform(-0.3, 0.3), rng.uniform(0.8, 1.1), rng.uniform(-5, 5, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = USUAL_XY.mean(axis=0)
    return np.asarray(scale * (USUAL_XY - middle) @ turn + middle + shift)


def make_spots(root: Path, count: int = 12, *, whole: bool = False, **facts: Any) -> Path:
    """ROOT/spots.csv and its images; every fifth lacks its last point, unless `whole`. `facts` apply to all images."""
    images = []
    for seed in range(count):
        points = moved_spots(seed)
        if seed % 5 == 4 and not whole:
            points[2] = np.nan
        name = f"images/{seed}.png"
        save_spots(root / name, points)
        images.append(image_landmarks(name, points, **facts))
    path = root / "spots.csv"
    write_landmarks(LandmarkSet(SPOTS, tuple(images)), path, None, image_sizes(image_finder(path)))
    return path


def make_landmark_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run that takes about a second: smallcnn at 32 px from scratch, a heatmap head with 8 channels, two epochs."""
    values: dict[str, Any] = {"task": "landmarks", "head": "heatmap"}
    values |= changes
    if values["head"] == "heatmap":
        values.setdefault("head_sizes", (8,))
    return make_config(data, out, **values)
