"""JPEG files in the cache folder, by a name of their content. Those that nobody used for longest are removed."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Thumbnails of about 100,000 photos.
MAX_BYTES = 2 << 30
# The time of use is written at most this often.
_SECONDS_BETWEEN_USES = 86400.0


class JpegCache:
    """Files `folder/ab/abcd....jpg` by tag `abcd...`. Thread-safe, also between processes."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def __contains__(self, tag: str) -> bool:
        return self._use(self._path(tag))

    def get(self, tag: str) -> bytes | None:
        """Return a whole file, None if there is none."""
        path = self._path(tag)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):  # cut off when power failed
            return None
        self._use(path)
        return content

    def put(self, tag: str, content: bytes) -> None:
        """Keep a file. Without room for it, nothing happens."""
        path = self._path(tag)
        temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove the files that were not used for longest, until the others have at most `max_bytes`."""
        left = 0
        for _, size, path in sorted(self._files(), reverse=True):
            left += size
            if left > self._max_bytes:
                with suppress(OSError):
                    os.unlink(path)

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Time of use, size in bytes and path of each file."""
        with suppress(OSError), os.scandir(self._folder) as folders:
            for folder in folders:
                with suppress(OSError), os.scandir(folder) as files:
                    for file in files:
                        found = file.stat(follow_symlinks=False)
                        yield found.st_mtime, found.st_size, file.path

    def _path(self, tag: str) -> Path:
        return self._folder / tag[:2] / f"{tag}.jpg"

    def _use(self, path: Path) -> bool:
        """Note that a file is used now. Returns whether there is one."""
        try:
            if path.stat().st_mtime < time.time() - _SECONDS_BETWEEN_USES:
                os.utime(path)
        except OSError:
            return False
        return True
