"""Find all inputs of a prediction: files, folders, patterns, archives and lists, counted first, then read in order.

Reads names and archives; never decodes images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.sources.archives import MAX_MEMBER_BYTES, Member, is_archive, iter_members
from tl.runtime.sources.names import FileFinder
from tl.runtime.sources.paths import FoundImages, expand_name, find_images, is_hidden, is_image_name


@dataclass(frozen=True)
class Inputs:
    """Images in input order. `len()` counts them without reading any; iteration reads archives on the way.

    `hidden`: number of hidden files and hidden folders. `not_images`: number of files with other extensions. `links`:
    number of links and devices in archives, which contain no image data.
    """

    parts: tuple[FoundImages | Archive, ...]

    def __len__(self) -> int:
        return sum(len(part.paths) if isinstance(part, FoundImages) else part.count for part in self.parts)

    def __iter__(self) -> Iterator[ImageSource]:
        for part in self.parts:
            yield from part.paths if isinstance(part, FoundImages) else part.images()

    def names(self) -> Iterator[str]:
        """Yield the name of each image, as results have it, without reading any."""
        for part in self.parts:
            yield from part.paths if isinstance(part, FoundImages) else part.names()

    @property
    def passed_over(self) -> str:
        """Description of the skipped files; "" if there are none."""
        counts = {
            "hidden": sum(part.hidden for part in self.parts),
            "files without an image extension": sum(part.not_images for part in self.parts),
            "links in archives": sum(part.links for part in self.parts if isinstance(part, Archive)),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True)
class Archive:
    """A zip or tar archive that contains `count` images, of which those up to `max_bytes` are read."""

    path: str
    count: int
    hidden: int
    not_images: int
    links: int
    max_bytes: int = MAX_MEMBER_BYTES

    def images(self) -> Iterator[ImageSource]:
        """Yield its images, in memory, named `ARCHIVE/MEMBER`. Raises `DataError` if the archive is damaged."""
        for member in iter_members(self.path, self.max_bytes):
            if _kind(member) == "image":
                yield _load(f"{self.path}/{member.name}", member)

    def names(self) -> Iterator[str]:
        """Yield the names of its images. Raises as `images`."""
        yield from (f"{self.path}/{member.name}" for member in iter_members(self.path) if _kind(member) == "image")


class MemoryFile(BytesIO):
    """An encoded image in memory, with a name."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name


class UnreadableFile(BytesIO):
    """An image that could not be read: its name, and the reason, which is raised on reading."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__()
        self.name, self._reason = name, reason

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Raise `ImageReadError`."""
        raise ImageReadError(self.name, self._reason)

    def read(self, size: int | None = -1, /) -> bytes:
        """Raise `ImageReadError`."""
        raise ImageReadError(self.name, self._reason)


def find_inputs(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    listed: Iterable[str] = (),
    images: str | os.PathLike[str] | None = None,
    max_member_bytes: int = MAX_MEMBER_BYTES,
) -> Inputs:
    """Return the images of `inputs`, then of `listed`: names, not patterns; a missing one becomes an error row.

    `images`: the folder that listed names are relative to, also tried with file names alone. Names from other systems
    are found as by `FileFinder`, and replaced with the path of the file. `max_member_bytes`: a larger image in an
    archive becomes an error row, because archives are read into memory. Reads the member lists of archives completely.
    Raises `DataError` for damaged archives, and like `find_images`.
    """
    parts = [_find(name) for given in inputs for name in expand_name(os.fspath(given))]
    files: list[str] = []
    finder = FileFinder([os.curdir if images is None else images], by_file_name=images is not None)
    for name in (_located(name, finder, images) for name in listed):
        if os.path.isdir(name) or is_archive(name):
            parts += [_plain(files), _find(name)]
            files = []
        else:
            files.append(name)
    parts = [replace(part, max_bytes=max_member_bytes) if isinstance(part, Archive) else part for part in parts]
    return Inputs((*parts, _plain(files)))


def _located(name: str, finder: FileFinder, images: str | os.PathLike[str] | None) -> str:
    if images is None and os.path.lexists(name):
        return name
    found = finder.find(name)
    return name if found is None else found if images is not None else os.path.normpath(found)


def _find(given: str) -> FoundImages | Archive:
    return _list_archive(given) if is_archive(given) else find_images([given])


def _plain(files: list[str]) -> FoundImages:
    return FoundImages(tuple(files), 0, 0)


def _list_archive(path: str) -> Archive:
    kinds = {"image": 0, "other": 0, "link": 0, "folder": 0}
    hidden: set[str] = set()
    for member in iter_members(path):
        if part := _hidden_part(member.name):
            hidden.add(part)
        else:
            kinds[_kind(member)] += 1
    return Archive(path, kinds["image"], len(hidden), kinds["other"], kinds["link"])


def _kind(member: Member) -> str:
    if _hidden_part(member.name):
        return "hidden"
    if member.kind != "file":
        return member.kind
    return "image" if is_image_name(member.name) else "other"


def _hidden_part(name: str) -> str:
    """Return a member's name up to its first hidden folder, the whole name if the file is hidden, else ""."""
    parts = name.split("/")
    first = next((i for i, part in enumerate(parts) if is_hidden(part) and part not in (".", "..")), -1)
    return "/".join(parts[: first + 1])


def _load(name: str, member: Member) -> ImageSource:
    try:
        return MemoryFile(name, member.read())
    except ImageReadError as error:
        return UnreadableFile(name, error.reason)
