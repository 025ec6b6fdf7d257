"""Find image files from folders, patterns such as `images/**/*.jpg` and lists; read a file and its SHA-256.

Reads files and folders; never decodes images.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import itertools
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tl.errors import DataError, ImageReadError
from tl.runtime.imaging.decode import ImageSource, source_name
from tl.runtime.imaging.pillow_images import plain_source
from tl.runtime.sources.packed_names import PackedNames
from tl.runtime.sources.tables import decode_text

_PIECE_BYTES = 1 << 20  # of a list of names, in memory at a time


def is_pattern(name: str) -> bool:
    """Return whether a name contains pattern characters."""
    return any(sign in name for sign in "*?[")


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """Split a pattern at its first `**`: `a/b/**/*.jpg` -> `a/b`, [`**`, `*.jpg`].

    The list is empty for a pattern without `**`.
    """
    names = pattern.split(os.sep)
    if "**" not in names:
        return pattern, []
    start = names.index("**")
    before = os.sep.join(names[:start])
    return (before or os.sep if start else ""), [name for name in names[start:] if name]


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a relative path match those of a pattern completely."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(matches(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


def read_path_list(list_file: str, *, null: bool = False) -> list[str]:
    """Return all names of `iter_path_list`."""
    return list(iter_path_list(list_file, null=null))


def iter_path_list(list_file: str, *, null: bool = False) -> Iterator[str]:
    """Yield the names in a file, or on stdin for `-`, in order: one per line, or with `null`, NUL-terminated.

    Names keep their spaces, and their bytes if they are not UTF-8. Blank lines, Windows line ends and a byte order mark
    are removed; with `null`, only the NUL bytes are. Reads the list piece by piece, unless it is UTF-16. Raises
    `DataError` for a list that cannot be read.
    """
    try:
        with nullcontext(sys.stdin.buffer) if list_file == "-" else open(list_file, "rb") as stream:
            if null:
                yield from (os.fsdecode(name) for name in _split(stream, b"\0") if name)
            else:
                yield from (line for line in _iter_lines(stream, list_file) if line.strip())
    except OSError as error:
        raise DataError(f"{list_file}: the list of names cannot be read ({error.strerror})") from error


def _iter_lines(stream: BinaryIO, where: str) -> Iterator[str]:
    try:
        lines = _split(stream, b"\n")
        first = next(lines, b"")
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = decode_text(b"\n".join([first, *lines]), where)
            yield from (line.removesuffix("\r") for line in text.split("\n"))
            return
        for line in itertools.chain([first.removeprefix(codecs.BOM_UTF8)], lines):
            if b"\0" in line:
                decode_text(line, where)  # raises
            yield line.decode(errors="surrogateescape").removesuffix("\r")
    except DataError as error:
        raise DataError(f"{error}, or set null if NUL bytes separate the names", options=["null"]) from error


def _split(stream: BinaryIO, end: bytes) -> Iterator[bytes]:
    """Yield what stands between `end` bytes."""
    rest = b""
    while piece := stream.read(_PIECE_BYTES):
        *whole, rest = (rest + piece).split(end)
        yield from whole
    yield rest


# Extensions that a folder is searched for. Formats that cannot be decoded (raw, CZI ...) are included, so that these
# files appear as rows with an error instead of being skipped silently.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for kinds in (
        "jpg jpeg jpe jfif mpo png apng tif tiff bmp dib gif webp avif jp2 j2k jpx jpf pbm pgm ppm pnm",
        "heic heif jxl tga dng nef nrw cr2 cr3 arw orf rw2 raf pef srw x3f mrw czi nd2 lif svs psd ico",
    )
    for suffix in kinds.split()
)
# Films, whose frames are read if that is asked for.
_FILMS = "mp4 m4v mov avi mkv webm mts m2ts mpg mpeg wmv 3gp flv ogv"
FILM_SUFFIXES = frozenset(f".{suffix}" for suffix in _FILMS.split())


@dataclass(frozen=True)
class FoundImages:
    """`paths` as the user would write them, sorted within each folder, and the number of skipped files.

    `hidden`: number of hidden files and hidden folders. `films`: number of skipped films.
    """

    paths: Sequence[str]
    hidden: int
    not_images: int
    films: int = 0


def find_images(
    inputs: Iterable[str | os.PathLike[str]], *, with_films: bool = False, packed: bool = False
) -> FoundImages:
    """Expand files, folders (recursively, following each link to a folder once), and patterns if no such file exists.

    A file that is given explicitly or matches a pattern is included whatever its extension. `with_films`: include films
    in folders too. `packed`: return `PackedNames` instead of a tuple. Raises `DataError` for a name that does not
    exist, a pattern without matches and a folder that cannot be read.
    """
    listed = (one for given in inputs for name in expand_name(os.fspath(given)) for one in _listed(name))
    return collect_images(listed, with_films=with_films, packed=packed)


def _listed(name: str) -> Iterator[tuple[str, bool]]:
    if os.path.isdir(name):
        yield from ((path, True) for path in _walk(name))
    else:
        yield name, False


def collect_images(
    listed: Iterable[tuple[str, bool]], *, with_films: bool = False, packed: bool = False
) -> FoundImages:
    """Sort listed names by what they are. Each comes with whether it was found in a folder; others are all images."""
    paths = PackedNames()
    hidden = not_images = films = 0
    for path, is_in_folder in listed:
        name = os.path.basename(path.rstrip(os.sep))
        if not is_in_folder or (not is_hidden(name) and (is_image_name(name) or (with_films and is_film(name)))):
            paths.append(path)
        elif is_hidden(name):
            hidden += 1
        elif is_film(name):
            films += 1
        else:
            not_images += 1
    return FoundImages(paths if packed else tuple(paths), hidden, not_images, films)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or is the one in which macOS keeps what zip cannot store."""
    return name.startswith(".") or name == "__MACOSX"


def is_image_name(name: str) -> bool:
    """Return whether a file is an image, by its extension."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_film(path: str) -> bool:
    """Return whether a name has a film's extension."""
    return os.path.splitext(path)[1].lower() in FILM_SUFFIXES


def expand_name(given: str) -> list[str]:
    """Return the name itself, or the sorted matches of a pattern. Raises `DataError` if nothing is found."""
    if os.path.lexists(given):
        return [given]
    if not is_pattern(given):
        raise DataError(f"{given}: no such file or folder")
    start, names = split_pattern(given)
    found = _walk_matches(start, names) if names else sorted(glob.glob(given))
    if not found:
        raise DataError(f"{given}: no such file or folder, and no file matches it as a pattern")
    return found


def _walk_matches(start: str, names: list[str]) -> list[str]:
    """Return files matching `names` below each folder matching `start`; as in a shell, hidden files never match."""
    folders = [start or "."] if os.path.isdir(start or ".") else sorted(filter(os.path.isdir, glob.glob(start)))
    found = []
    for folder in folders:
        for path in _walk(folder):
            below = os.path.relpath(path, folder).split(os.sep)
            if not below[-1].startswith(".") and matches(below, names):
                found.append(path if start else os.path.relpath(path))
    return found


def _walk(folder: str) -> Iterator[str]:
    visited: set[str] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read this folder ({error.strerror})") from error

    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # a cycle of links, or two links to one folder
            folders.clear()
            continue
        visited.add(real)
        yield from (os.path.join(here, name) for name in sorted(folders) if is_hidden(name))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (os.path.join(here, name) for name in sorted(files))


# Larger files, such as stacks of which only the first frame is needed, are hashed in chunks and opened by name.
_READ_WHOLE_BYTES = 64 << 20


def read_content(source: ImageSource) -> tuple[ImageSource, str]:
    """Return a source to decode from, with small files already in memory, and the SHA-256 of its content in hex.

    Raises `ImageReadError` if it cannot be read.
    """
    source = plain_source(source)
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
    """Return the SHA-256 of a file of any size, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_regular(path: str) -> bytes:
    """Return the content of a file of any size. Raises `ImageReadError` if it is missing or not a regular file."""
    try:
        _regular_bytes(Path(path))
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise ImageReadError(path, error.strerror or str(error)) from error


def _regular_bytes(path: Path) -> int:
    """Return the size of a file. Raises `ImageReadError` for FIFOs and devices, `OSError`."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a FIFO would block forever
        raise ImageReadError(str(path), "not a regular file")
    return found.st_size


def _read_path(path: Path) -> tuple[ImageSource, str]:
    if _regular_bytes(path) > _READ_WHOLE_BYTES:
        return path, hash_file(path)
    content = path.read_bytes()
    return content, hashlib.sha256(content).hexdigest()
