"""scikit-learn's handwritten digits as class folders, for tests of the whole workflow without pretrained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

# Few training images, as in a lab: this is where a pretrained backbone helps.
_TRAIN_PER_CLASS, _VAL_PER_CLASS = 8, 30


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as class folders of PNG files: digits-0-4, and digits-5-9 with train, val, test."""
    digits = load_digits()
    counts: dict[int, int] = {}
    for image, label in zip(digits.images, digits.target.tolist(), strict=True):
        number = counts[label] = counts.get(label, -1) + 1
        home = folder / "digits-0-4" if label < 5 else folder / "digits-5-9" / _split(number)
        path = home / str(label) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = np.round(image * (255 / 16)).astype(np.uint8)  # 8x8 pixels of 0..16
        Image.fromarray(gray).resize((32, 32), Image.Resampling.BICUBIC).save(path)


def _split(number: int) -> str:
    if number < _TRAIN_PER_CLASS:
        return "train"
    return "val" if number < _TRAIN_PER_CLASS + _VAL_PER_CLASS else "test"
