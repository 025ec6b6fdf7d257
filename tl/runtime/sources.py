"""Find the pictures that a user means by files and folders. Nothing is dropped without being counted.

Knows names and folders. Does not open pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tl.errors import DataError

# What a folder is searched for. Kinds that cannot be decoded (raw, HEIC ...) are listed too: they must turn up as rows
# with an error, not vanish.
PICTURE_SUFFIXES = frozenset(
    f".{suffix}"
    for kinds in (
        "jpg jpeg jpe jfif mpo png apng tif tiff bmp dib gif webp avif jp2 j2k jpx jpf pbm pgm ppm pnm",
        "heic heif jxl tga dng nef cr2 cr3 arw orf rw2 raf czi nd2 lif svs psd ico",
    )
    for suffix in kinds.split()
)


@dataclass(frozen=True)
class FoundPictures:
    """`paths` as the user would write them, in sorted order per folder; and how much was passed over.

    `hidden` counts hidden files, and hidden folders as one each.
    """

    paths: tuple[str, ...]
    hidden: int
    not_pictures: int


def find_pictures(inputs: Iterable[str | os.PathLike[str]]) -> FoundPictures:
    """Expand files and folders (recursively; links to folders are followed once).

    A file that is named is taken whatever it is called. Raises `DataError` for a name that does not exist or a folder
    that cannot be read.
    """
    paths: list[str] = []
    hidden = not_pictures = 0
    for given in (os.fspath(name) for name in inputs):
        if not os.path.isdir(given):
            if not os.path.lexists(given):
                raise DataError(f"{given}: no such file or folder")
            paths.append(given)
            continue
        for path in _walk(given):
            name = os.path.basename(path.rstrip(os.sep))
            if name.startswith("."):
                hidden += 1
            elif Path(name).suffix.lower() in PICTURE_SUFFIXES:
                paths.append(path)
            else:
                not_pictures += 1
    return FoundPictures(tuple(paths), hidden, not_pictures)


def _walk(folder: str) -> Iterator[str]:
    visited: set[str] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read this folder ({error.strerror})") from error

    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # a loop of links, or two links to one folder
            folders.clear()
            continue
        visited.add(real)
        yield from (os.path.join(here, name) for name in sorted(folders) if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(files))
