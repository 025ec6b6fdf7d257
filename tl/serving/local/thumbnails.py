"""Small images for a page: made by a few threads, those that are asked for first, and kept in the cache folder.

Decodes through `tl.runtime.imaging`, so that a page shows what the runtime reads, upright. Photos are only read.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.data.array_cache import cache_folder
from tl.errors import ImageReadError
from tl.runtime.devices import usable_cores
from tl.runtime.imaging.decode import decode_scaled
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.serving.local.jpeg_cache import JpegCache

THUMB_PX, VIEW_PX = 320, 2048
_QUALITY = {THUMB_PX: 82, VIEW_PX: 90}
# Increase with every change that changes thumbnails.
_VERSION = 1
# Of views, which are not kept on disk: a look at one of 20,000 photos is no reason to store another copy of it.
_VIEW_BYTES = 48 << 20
_RULES = build_preprocessing((THUMB_PX, THUMB_PX), "letterbox")
# What opens an image: its path, after a check that it may be read. Raises `ImageReadError`.
Locate = Callable[[int], str]


@dataclass(frozen=True)
class Small:
    """A JPEG. `tag`: names its content, for caches of browsers."""

    content: bytes
    tag: str


class Thumbnails:
    """Makes small images of numbered images. Thread-safe.

    `locate`: number of an image -> its path. `count`: of images. `rules`: how images are decoded, as for a model that
    uses certain channels. `fills`: also make the thumbnails of all images while nothing is asked for.
    """

    def __init__(
        self,
        locate: Locate,
        count: int,
        *,
        rules: Preprocessing = _RULES,
        folder: Path | None = None,
        threads: int | None = None,
        fills: bool = True,
    ) -> None:
        self._locate, self._rules = locate, rules
        self._kept = JpegCache(folder or cache_folder() / "thumbnails")
        self._views = _Recent(_VIEW_BYTES)
        self._asked: deque[tuple[int, int, Future[Small]]] = deque()
        self._rest: Iterator[int] = iter(range(count if fills else 0))
        self._wake = threading.Condition()
        self._is_filling = self._is_closed = False
        number = threads or max(2, min(4, usable_cores()))
        tasks = [self._kept.trim, *[self._work] * number]
        self._threads = [threading.Thread(target=task, name="thumbnails", daemon=True) for task in tasks]
        for thread in self._threads:
            thread.start()

    def ask(self, index: int, longest: int) -> Future[Small]:
        """Return the future image, whose longest side is at most `longest` pixels. Cancel it if it is not needed.

        Its exception is `ImageReadError` for an image that cannot be shown.
        """
        future: Future[Small] = Future()
        with self._wake:
            if self._is_closed:
                future.cancel()
                return future
            self._asked.append((index, longest, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Stop the threads, after the images in progress."""
        with self._wake:
            self._is_closed = True
            for _, _, future in self._asked:
                future.cancel()
            self._asked.clear()
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            index, longest, future = job
            if future is None:
                with suppress(Exception):  # it is reported to whoever asks for this image
                    self._thumb(index, is_needed=False)
                with self._wake:
                    self._is_filling = False
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._view(index) if longest == VIEW_PX else self._thumb(index, is_needed=True))
                except Exception as error:
                    future.set_exception(error)

    def _next(self) -> tuple[int, int, Future[Small] | None] | None:
        """Wait for a job: what was asked for, or else, in one thread at a time, the next of all images. None to end."""
        with self._wake:
            while not self._is_closed:
                if self._asked:
                    return self._asked.popleft()
                if not self._is_filling:
                    index = next(self._rest, None)
                    if index is not None:
                        self._is_filling = True
                        return index, THUMB_PX, None
                self._wake.wait()
            return None

    def _thumb(self, index: int, *, is_needed: bool) -> Small:
        """Return a thumbnail from the cache, or make it and keep it. Not `is_needed`: only look that it is there."""
        path = self._locate(index)
        tag = _tag(path, THUMB_PX, self._rules)
        if not is_needed and tag in self._kept:
            return Small(b"", tag)
        content = self._kept.get(tag)
        if content is None:
            content = make_jpeg(path, THUMB_PX, self._rules)
            self._kept.put(tag, content)
        return Small(content, tag)

    def _view(self, index: int) -> Small:
        path = self._locate(index)
        tag = _tag(path, VIEW_PX, self._rules)
        content = self._views.get(tag)
        if content is None:
            content = make_jpeg(path, VIEW_PX, self._rules)
            self._views.put(tag, content)
        return Small(content, tag)


class _Recent:
    """The most recently used contents, up to a number of bytes. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._contents:
                self._contents.move_to_end(key)
            return self._contents.get(key)

    def put(self, key: str, content: bytes) -> None:
        with self._lock:
            self._bytes += len(content) - len(self._contents.pop(key, b""))
            self._contents[key] = content
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._contents.popitem(last=False)[1])


def make_jpeg(path: str, longest: int, rules: Preprocessing = _RULES) -> bytes:
    """Return an image as a JPEG whose longest side is at most `longest` pixels, upright, without metadata.

    Large JPEGs are decoded at a fraction of their size. Raises `ImageReadError`.
    """

    def scale(full_hw: tuple[int, int]) -> int:
        return min(8, max(1, -(-8 * longest // max(full_hw))))

    decoded = decode_scaled(path, rules, scale)
    left, top, right, bottom = decoded.box
    height, width = decoded.full_hw
    ratio = min(1.0, longest / max(height, width))
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    image = _as_rgb(decoded.image)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom), reducing_gap=2.0)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY.get(longest, 85))
    return buffer.getvalue()


def _as_rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    """The first three channels of an image with more."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))


def _tag(path: str, longest: int, rules: Preprocessing) -> str:
    """Name the content of a small image, by path, size and time of the photo. Raises `ImageReadError`."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ImageReadError(path, error.strerror or str(error)) from error
    facts = (os.path.abspath(path), found.st_size, found.st_mtime_ns, longest, _VERSION, rules.decode_key)
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()
