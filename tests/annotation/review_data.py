"""A small data set with mistakes, and what is known of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tl.annotation.problems import Evidence, Problem
from tl.annotation.review import Review
from tl.annotation.review_items import ReviewItems
from tl.annotation.review_output import ReviewOutput
from tl.annotation.review_table import read_review_table
from tl.data.manifests import LabeledImage, read_images

COLORS = {"ant": (150, 60, 40), "bee": (220, 180, 40), "moth": (90, 90, 160)}


def make_photos(folder: Path, count: int = 6, splits: Sequence[str] = ()) -> Path:
    """Class folders of noisy images, each class with a color; below folders of splits if there are any."""
    for c, (name, rgb) in enumerate(COLORS.items()):
        for i in range(count):
            path = folder / (splits[i % len(splits)] if splits else "") / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(100 * c + i)
            pixels = np.array(rgb) + rng.integers(-40, 41, (4, 6, 1)).repeat(12, axis=0).repeat(11, axis=1)
            Image.fromarray(np.clip(pixels + rng.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8)).save(path)
    return folder


def spoil(folder: Path) -> Path:
    """Put the wrong image into a class, and a copy of another image into a second class."""
    shutil.move(folder / "bee/01.png", folder / "ant/wrong.png")
    shutil.copy(folder / "moth/00.png", folder / "bee/copy.png")
    return folder


def evidence_of(images: Sequence[LabeledImage], failed: Sequence[tuple[LabeledImage, str]] = ()) -> Evidence:
    """Evidence in which every image is as its label says."""
    names = tuple(sorted({image.label for image in images}))
    ids = np.array([names.index(image.label) for image in images], np.int64)
    probabilities = np.full((len(images), len(names)), 0.1, np.float32)
    probabilities[np.arange(len(images)), ids] = 1 - 0.1 * (len(names) - 1)
    return Evidence(
        images=tuple(images),
        hashes=tuple(f"{i:064d}" for i in range(len(images))),
        features=np.eye(len(images), 4, dtype=np.float32),
        ids=ids,
        class_names=names,
        probabilities=probabilities,
        is_by_run=np.zeros(len(images), np.bool_),
        failed=tuple(failed),
    )


def place(items: ReviewItems, name: str) -> int:
    return next(i for i, image in enumerate(items.images) if image.name == name)


def wrong_label(index: int, suggested: str = "bee", score: float = 0.9) -> Problem:
    return Problem("label", index, score, suggested, None, (0, 1), "Predicted bee with 97%.")


def duplicates(index: int, other: int) -> Problem:
    return Problem("duplicate", index, 1.0, None, other, (other,), "The same file as the other one.")


def open_review(data: Path, output: Path, *problems: Problem, overwrite: bool = False) -> tuple[Review, ReviewOutput]:
    """A review of problems, whose indices are places in `read_images(data)`."""
    table = read_review_table(data)
    held = ReviewOutput(output, table, overwrite=overwrite)
    try:
        return Review(ReviewItems(evidence_of(read_images(data)), problems), table, held), held
    except BaseException:
        held.close()
        raise


def close(review: Review, held: ReviewOutput) -> None:
    review.close()
    held.close()
