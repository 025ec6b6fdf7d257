"""Content hashes of files, remembered between runs, so that thousands of large photos are not read again to know them.

A file counts as unchanged while its size and the time of its last change are the same, as `make` and rsync assume.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.data.array_cache import cache_folder
from tl.errors import OutputError
from tl.runtime.model_file.strict_json import dump_json, parse_json
from tl.runtime.output.files import write_text

# What tells that a file was changed: its size in bytes and the time of its last change in ns.
Stamp = tuple[int, int]


def read_stamp(path: str) -> Stamp | None:
    """The stamp of a file; None if it cannot be found."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@dataclass
class ContentHashes:
    """SHA-256 (hex) of files by path, in one file of the cache for each set of photos. Not thread-safe."""

    path: Path
    known: dict[str, tuple[Stamp, str]]
    is_saved: bool = True

    @classmethod
    def open(cls, paths: Sequence[str]) -> ContentHashes:
        """Open what is known of the files below the folder that all `paths` share."""
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
        path = cache_folder() / "content-hashes" / f"{name}.json"
        return cls(path, _read(path))

    def get(self, path: str) -> str | None:
        """The hash of a file, None if it is not known or the file has changed."""
        stamp, digest = self.known.get(os.path.abspath(path), (None, None))
        return digest if stamp is not None and stamp == read_stamp(path) else None

    def put(self, path: str, stamp: Stamp | None, digest: str) -> None:
        """Remember the hash of the content that a file had at `stamp`."""
        if stamp is not None:
            self.known[os.path.abspath(path)] = stamp, digest
            self.is_saved = False

    def save(self) -> None:
        """Write all hashes. Failing is no fault: the files are read again next time."""
        if self.is_saved:
            return
        rows = [[path, *stamp, digest] for path, (stamp, digest) in self.known.items()]
        with suppress(OutputError):
            write_text(self.path, dump_json(rows))
            self.is_saved = True


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        rows: Any = parse_json(path.read_text(encoding="utf-8", errors="surrogateescape"))
        return {str(name): ((int(size), int(time)), str(digest)) for name, size, time, digest in rows}
    except (OSError, ValueError, TypeError):  # not there yet, or damaged
        return {}
