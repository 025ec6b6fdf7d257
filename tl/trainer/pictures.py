"""Every picture of a run decoded through `tl.runtime`, found readable or reported, and kept in memory where it fits.

Knows pictures, recipes and threads. Does not know augmentation, tensors or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError, ImageReadError
from tl.runtime.ahead import map_ahead
from tl.runtime.decode import decode_image
from tl.runtime.devices import usable_cores
from tl.runtime.geometry import crop_to_input, working_image
from tl.runtime.recipe import Recipe
from tl.trainer.config import Cache
from tl.trainer.data import Picture
from tl.trainer.progress import Progress

# auto keeps pictures only while they take less than this share of the free memory.
_MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class PictureStore:
    """Readable pictures in order, their content hashes (SHA-256, hex), and the working pictures if kept."""

    pictures: tuple[Picture, ...]
    hashes: tuple[str, ...]
    recipe: Recipe
    kept: tuple[NDArray[np.uint8], ...] | None

    def working(self, index: int) -> NDArray[np.uint8]:
        """The resized, not yet cropped picture, uint8 (h, w, 3); the same pixels kept or not."""
        if self.kept is not None:
            return self.kept[index]
        return working_image(decode_image(self.pictures[index].path, self.recipe), self.recipe)

    def input(self, index: int) -> NDArray[np.uint8]:
        """The picture as validation and deployment see it, uint8 (input_h, input_w, 3)."""
        return crop_to_input(self.working(index), self.recipe)

    def indices(self, split: str) -> list[int]:
        """Places of a split's pictures."""
        return [i for i, picture in enumerate(self.pictures) if picture.split == split]


def load_pictures(
    pictures: Sequence[Picture], recipe: Recipe, cache: Cache, progress: Progress
) -> tuple[PictureStore, list[tuple[Picture, str]]]:
    """Decode every picture once. Returns the store of readable ones, and the others with their reasons."""
    progress.start("reading pictures", len(pictures), "pictures")
    good: list[Picture] = []
    hashes: list[str] = []
    bad: list[tuple[Picture, str]] = []
    kept: list[NDArray[np.uint8]] | None = None if cache == "none" else []
    budget = _memory_budget() if cache == "auto" else float("inf")

    def read(picture: Picture) -> tuple[str, NDArray[np.uint8]] | ImageReadError:
        try:
            image = decode_image(picture.path, recipe)
            return hashlib.sha256(Path(picture.path).read_bytes()).hexdigest(), working_image(image, recipe)
        except ImageReadError as error:
            return error
        except OSError as error:
            return ImageReadError(picture.path, error.strerror or str(error))

    outcomes = map_ahead(read, pictures, workers=usable_cores(), ahead=16)
    for picture, outcome in zip(pictures, outcomes, strict=True):
        progress.advance()
        if isinstance(outcome, ImageReadError):
            bad.append((picture, outcome.reason))
            continue
        digest, working = outcome
        good.append(picture)
        hashes.append(digest)
        budget -= working.nbytes
        if budget < 0 and kept is not None:
            kept = None
            progress.say("the pictures do not fit into memory: each epoch decodes them again (--cache ram insists)")
        if kept is not None:
            kept.append(working)
    return PictureStore(tuple(good), tuple(hashes), recipe, None if kept is None else tuple(kept)), bad


def check_readable(bad: Sequence[tuple[Picture, str]], cure: str) -> None:
    """Raise `DataError` listing every unreadable picture and the cure."""
    if bad:
        listed = "\n".join(f"  {picture.name}: {reason}" for picture, reason in bad)
        raise DataError(f"{len(bad)} pictures cannot be read; {cure}:\n{listed}")


def _memory_budget() -> float:
    return _MEMORY_SHARE * min(_available_bytes(), _container_bytes())


def _available_bytes() -> float:
    """Memory that can be taken without swapping. Source: proc(5), MemAvailable."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    except (OSError, StopIteration, ValueError):  # not Linux
        return 4e9


def _container_bytes() -> float:
    """What a container's limit leaves. Source: the kernel's cgroup-v2 documentation."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return float(limit) - float(used)
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return float("inf")
