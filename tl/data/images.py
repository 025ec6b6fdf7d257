"""Read every image of a run, report unreadable ones, and cache images in memory or on disk where that pays off.

Depends on images, preprocessing and threads. Contains no augmentation, tensors or models.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tl.data import Cache
from tl.data.array_cache import ArrayCache, cache_folder
from tl.data.manifests import LabeledImage
from tl.errors import DataError, ImageReadError
from tl.progress import Progress
from tl.runtime.devices import usable_cores
from tl.runtime.imaging.geometry import crop_to_input
from tl.runtime.imaging.pipeline import load_working
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.refusals import CHOOSE
from tl.runtime.model_file.strict_json import dump_json
from tl.runtime.prefetch import prefetch_map

Item = TypeVar("Item")

# "auto" caches images in memory only while they take less than this fraction of the free memory.
_MEMORY_SHARE = 0.4
# Increase with every change in this project that changes a decoded or resized image.
VERSION = 3
# "auto" uses the disk only if it has this many times the images' size free.
_DISK_SHARE = 4


@dataclass(frozen=True)
class ImageStore:
    """Readable images in order, their content hashes (SHA-256, hex), and the cached working images."""

    images: tuple[LabeledImage, ...]
    hashes: tuple[str, ...]
    preprocessing: Preprocessing
    kept: dict[int, NDArray[np.uint8]]
    disk: ArrayCache | None = None

    @property
    def is_decoded(self) -> bool:
        """Whether every image is available without decoding."""
        on_disk = self.disk or ()
        return all(i in self.kept or key in on_disk for i, key in enumerate(self.keys))

    def working(self, index: int) -> NDArray[np.uint8]:
        """Return the resized image before cropping, uint8 (h, w, 3). The pixels are the same whether cached or not."""
        if index in self.kept:
            return self.kept[index]
        image = self.images[index]
        key = content_key(image, self.hashes[index])
        if self.disk is not None and key in self.disk:
            return self.disk.get(key)
        content = _read_file(image.path)
        if hashlib.sha256(content).hexdigest() != self.hashes[index]:
            raise DataError(f"{image.name}: has changed since this run began")
        return load_working(content, self.preprocessing, image.region)

    def input(self, index: int) -> NDArray[np.uint8]:
        """Return the image as used in validation and deployment, uint8 (input_h, input_w, 3)."""
        return crop_to_input(self.working(index), self.preprocessing)

    def map(
        self, prepare: Callable[[Item], NDArray[np.uint8]], items: Sequence[Item], *, ahead: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Return `map(prepare, items)`; threads prefetch ahead of the consumer if images must still be decoded."""
        if self.is_decoded:
            return map(prepare, items)
        return prefetch_map(prepare, items, workers=usable_cores(), ahead=ahead)

    @property
    def keys(self) -> list[str]:
        """What distinguishes the images' contents: their hashes, with the regions of boxes."""
        return list(map(content_key, self.images, self.hashes))

    def indices(self, split: str) -> list[int]:
        """Indices of a split's images."""
        return [i for i, image in enumerate(self.images) if image.split == split]


def load_images(
    images: Sequence[LabeledImage],
    preprocessing: Preprocessing,
    cache: Cache,
    progress: Progress,
    *,
    is_done: Callable[[LabeledImage, str], bool] = lambda image, digest: False,
) -> tuple[ImageStore, list[tuple[LabeledImage, str]]]:
    """Read and decode every image once. Returns the store of readable images, and the unreadable ones with the reasons.

    `is_done(image, content hash)` returns whether an image needs no decoding now, because its results are already
    cached.
    """
    progress.start("reading images", len(images), "images")
    keeper = _Keeper(preprocessing, cache, len(images), progress)
    good: list[LabeledImage] = []
    hashes: list[str] = []
    bad: list[tuple[LabeledImage, str]] = []

    def read(image: LabeledImage) -> tuple[str, NDArray[np.uint8] | None] | ImageReadError:
        try:
            content = _read_file(image.path)  # hashed and decoded from one read
            digest = hashlib.sha256(content).hexdigest()
            if is_done(image, digest) or (keeper.disk is not None and content_key(image, digest) in keeper.disk):
                return digest, None
            return digest, load_working(content, preprocessing, image.region)
        except ImageReadError as error:
            return error
        except OSError as error:
            return ImageReadError(image.path, error.strerror or str(error))

    outcomes = prefetch_map(read, images, workers=usable_cores(), ahead=16)
    for image, outcome in zip(images, outcomes, strict=True):
        progress.advance()
        if isinstance(outcome, ImageReadError):
            bad.append((image, outcome.reason))
            continue
        digest, working = outcome
        if working is not None:
            keeper.keep(len(good), content_key(image, digest), working)
        good.append(image)
        hashes.append(digest)
    keeper.finish()
    return ImageStore(tuple(good), tuple(hashes), preprocessing, keeper.kept, keeper.disk), bad


class _Keeper:
    """Decides while reading where each working image is cached: in memory, on disk, or not at all."""

    def __init__(self, preprocessing: Preprocessing, cache: Cache, count: int, progress: Progress) -> None:
        self._preprocessing, self._count, self._progress = preprocessing, count, progress
        self._budget = _memory_budget() if cache == "auto" else float("inf")
        self._to_memory = cache in ("auto", "ram")
        self.kept: dict[int, NDArray[np.uint8]] = {}
        self.disk = _disk_cache(preprocessing) if cache == "disk" else None

    def keep(self, index: int, key: str, working: NDArray[np.uint8]) -> None:
        """Cache one image if there is room for it."""
        if self._to_memory:
            self._budget -= working.nbytes
            if self._budget >= 0:
                self.kept[index] = working
                return
            self._to_memory = False
            self._leave_memory(working.nbytes)
        if self.disk is not None:
            self.disk.put(key, working)

    def finish(self) -> None:
        """Write all pending images to disk."""
        if self.disk is not None:
            self.disk.flush()
            if self.disk.fault:
                self._progress.say(f"images cannot be cached on disk: {self.disk.fault}")

    def _leave_memory(self, image_bytes: int) -> None:
        """Memory is full: cache the remaining images on disk if there is room."""
        needed = _DISK_SHARE * image_bytes * (self._count - len(self.kept))
        if _free_disk_bytes() > needed:
            self.disk = _disk_cache(self._preprocessing)
            self._progress.say(f"the images do not fit into memory; the rest is cached in {cache_folder()}")
        else:
            self._progress.say(
                "the images fit neither into memory nor on disk, so they are decoded again in each "
                "epoch; cache ram forces them into memory"
            )


def content_key(image: LabeledImage, digest: str) -> str:
    """The key of a working image among those with the same preprocessing: its content and region."""
    return digest if image.region is None else f"{digest}-{'-'.join(f'{side:.9g}' for side in image.region)}"


def preprocessing_key(preprocessing: Preprocessing) -> str:
    """Hash everything that working images depend on besides content: preprocessing, decoder and resizer."""
    versions = {"tl": VERSION, **{name: metadata.version(name) for name in ("pillow", "simplejpeg")}}
    return hashlib.sha256(f"{dump_json(preprocessing)} {versions}".encode()).hexdigest()[:32]


def _disk_cache(preprocessing: Preprocessing) -> ArrayCache:
    return ArrayCache(cache_folder() / "images" / preprocessing_key(preprocessing))


def _read_file(path: str) -> bytes:
    """Read a regular file. Raises `ImageReadError` for anything else, such as a pipe, without opening it."""
    if not Path(path).is_file():
        raise ImageReadError(path, "not a regular file" if Path(path).exists() else os.strerror(errno.ENOENT))
    return Path(path).read_bytes()


def check_readable(
    bad: Sequence[tuple[LabeledImage, str]], cure: str = "fix, remove or skip them", *, options: Sequence[str] = ()
) -> None:
    """Raise `DataError` listing every unreadable image and the cure. `options`: those that can fix it."""
    if bad:
        if options and any(CHOOSE in reason for _, reason in bad):
            options = ["channels", "project", *options]
        listed = "\n".join(f"  {image.name}: {reason}" for image, reason in bad)
        raise DataError(f"{len(bad)} images cannot be read; {cure}:\n{listed}", options=options)


def _memory_budget() -> float:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes each have their own cache
    return _MEMORY_SHARE * min(_available_bytes(), _container_bytes()) / processes


def _free_disk_bytes() -> int:
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _available_bytes() -> float:
    """Memory available without swapping. Source: proc(5), MemAvailable."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    except (OSError, StopIteration, ValueError):  # not Linux
        return 4e9


def _container_bytes() -> float:
    """Memory left within the container's limit. Source: the kernel's cgroup-v2 documentation."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return float(limit) - float(used)
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return float("inf")


# A value for each channel: red, green and blue, or those that the preprocessing chooses.
Colors = tuple[float, ...]


def color_statistics(images: Iterable[NDArray[np.uint8]]) -> tuple[Colors, Colors]:
    """Compute mean and standard deviation of each channel in 0..1 over all pixels of uint8 (H, W, C) images.

    The standard deviation of a constant channel is returned as 1 / 255, so that it is a valid divisor. Raises
    ValueError without images.

    Source: Chan, Golub & LeVeque 1979, the pairwise update of counts, means and sums of squares.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for image in images:
        pixels = image.reshape(-1, image.shape[-1]).astype(np.float64) / 255
        own_mean = pixels.mean(axis=0)
        own_squares = ((pixels - own_mean) ** 2).sum(axis=0)
        total = count + len(pixels)
        step = own_mean - mean
        mean = mean + step * (len(pixels) / total)
        squares = squares + own_squares + step**2 * (count * len(pixels) / total)
        count = total
    if count == 0:
        raise ValueError("no images to measure")
    std = np.maximum(np.sqrt(squares / count), 1 / 255)
    return tuple(map(float, mean)), tuple(map(float, std))
