"""The bytes of an image source and what names them: their SHA-256.

Knows files and hashes. Does not decode.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import numpy as np

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import ImageSource, source_name

# Larger files, such as stacks of which the first frame alone is wanted, are hashed in passing and opened by name.
_READ_WHOLE_BYTES = 64 << 20


def read_content(source: ImageSource) -> tuple[ImageSource, str]:
    """A source to decode from, read once where it is small, and the SHA-256 of its content in hex.

    Raises `ImageReadError` for what cannot be read.
    """
    if isinstance(source, np.ndarray):
        return source, hashlib.sha256(np.ascontiguousarray(source).data).hexdigest()
    if isinstance(source, bytes):
        return source, hashlib.sha256(source).hexdigest()
    try:
        if isinstance(source, str | os.PathLike):
            return _read_path(Path(source))
        content = source.read()
        return content, hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise ImageReadError(source_name(source), error.strerror or str(error)) from error


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file of any size, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_path(path: Path) -> tuple[ImageSource, str]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
        raise ImageReadError(str(path), "not a regular file")
    if found.st_size > _READ_WHOLE_BYTES:
        return path, hash_file(path)
    content = path.read_bytes()
    return content, hashlib.sha256(content).hexdigest()
