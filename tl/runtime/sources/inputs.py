"""Find all inputs of a prediction: files, folders, patterns, archives and lists, counted first, then read in order.

Reads names and archives; never decodes images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeGuard, cast

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.sources.archives import MAX_MEMBER_BYTES, Member, is_archive, iter_members
from tl.runtime.sources.films import FrameBudget, count_frames, iter_frames
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile
from tl.runtime.sources.names import FileFinder
from tl.runtime.sources.packed_names import PackedNames
from tl.runtime.sources.paths import (
    FoundImages,
    collect_images,
    expand_name,
    find_images,
    is_film,
    is_hidden,
    is_image_name,
)
from tl.runtime.sources.remote import check_reachable, is_remote, iter_opened, list_remote, remote_name, shown_name
from tl.runtime.sources.shards import Listing, Shard

# Programs at a time that tell the length of a film.
_PROBES = 4


@dataclass(frozen=True)
class Frames:
    """Read a frame of films `every` seconds. `counts`: expected number of frames of each film."""

    every: float
    counts: tuple[int, ...]
    budget: FrameBudget


@dataclass(frozen=True)
class Inputs:
    """Images in input order. `len()` counts them without reading any; iteration reads archives and films on the way.

    `frames`: how films are read; None reads them as images, which gives errors. `max_bytes`: of an image that is read
    from a server.

    `hidden`: number of hidden files and hidden folders. `not_images`: number of files with other extensions. `links`:
    number of links and devices in archives, which contain no image data.
    """

    parts: tuple[FoundImages | Archive, ...]
    frames: Frames | None = None
    max_bytes: int = MAX_MEMBER_BYTES

    def __len__(self) -> int:
        count = sum(len(part.paths) if isinstance(part, FoundImages) else part.count for part in self.parts)
        return count if self.frames is None else count + sum(self.frames.counts) - len(self.frames.counts)

    def __iter__(self) -> Iterator[ImageSource]:
        return self._read(opens_remote=True)

    def unopened(self) -> Iterator[ImageSource]:
        """Yield the images as iteration does, except that those on servers are addresses, for others to read."""
        return self._read(opens_remote=False)

    def _read(self, *, opens_remote: bool) -> Iterator[ImageSource]:
        frames = self.frames
        for part in self.parts:
            for source in self._sources(part, opens_remote):
                if frames is not None and _is_film_file(source):
                    yield from iter_frames(source, frames.every, frames.budget)
                else:
                    yield source

    def _sources(self, part: FoundImages | Archive, opens_remote: bool) -> Iterator[ImageSource]:
        if not isinstance(part, FoundImages):
            yield from part.images()
            return
        for source in iter_opened(part.paths, self.max_bytes) if opens_remote else part.paths:
            yield cast("ImageSource", source)  # without a box, as it was given

    def without_films(self) -> Iterator[ImageSource]:
        """Yield the images without those in films."""
        return (source for source in replace(self, frames=None) if not _is_film_file(source))

    def local(self) -> Iterator[ImageSource]:
        """Yield the images of files and archives: none in a film, and none from a server, which nothing is read of."""
        for part in self.parts:
            if isinstance(part, FoundImages):
                yield from (path for path in part.paths if not (is_remote(path) or is_film(path)))
            else:
                yield from part.images()

    @property
    def films(self) -> list[str]:
        """The films among the inputs, whose frames are read if `frames` says so."""
        found = (path for part in self.parts if isinstance(part, FoundImages) for path in part.paths)
        return [path for path in found if is_film(path) and not is_remote(path)]

    def names(self) -> Iterator[str]:
        """Yield the name of each image, as results have it, without reading any."""
        for part in self.parts:
            yield from map(shown_name, part.paths) if isinstance(part, FoundImages) else part.names()

    def of_shard(self, shard: Shard) -> tuple[Inputs, Listing]:
        """Return the images of a shard, and what it has seen of the whole list. Reads the names in archives again."""
        listing = Listing()
        parts: list[FoundImages | Archive] = []
        for part in self.parts:
            given = part.paths if isinstance(part, FoundImages) else part.names()
            names = listing.select(given, shard, shown_name)
            if isinstance(part, FoundImages):
                parts.append(replace(part, paths=PackedNames(names)))
            else:
                parts.append(replace(part, count=sum(1 for _ in names), shard=shard))
        return replace(self, parts=tuple(parts)), listing

    @property
    def passed_over(self) -> str:
        """Description of the skipped files; "" if there are none."""
        counts = {
            "hidden": sum(part.hidden for part in self.parts),
            "films": sum(part.films for part in self.parts if isinstance(part, FoundImages)),
            "files without an image extension": sum(part.not_images for part in self.parts),
            "links in archives": sum(part.links for part in self.parts if isinstance(part, Archive)),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True)
class Archive:
    """A zip or tar archive that contains `count` images, of which those up to `max_bytes` are read.

    `shard`: the images are those of a shard, None for all.
    """

    path: str
    count: int
    hidden: int
    not_images: int
    links: int
    max_bytes: int = MAX_MEMBER_BYTES
    shard: Shard | None = None

    def images(self) -> Iterator[ImageSource]:
        """Yield its images, in memory, named `ARCHIVE/MEMBER`. Raises `DataError` if the archive is damaged."""
        for member in iter_members(self.path, self.max_bytes):
            if _kind(member) == "image" and self._has(name := f"{self.path}/{member.name}"):
                yield _load(name, member)

    def names(self) -> Iterator[str]:
        """Yield the names of its images. Raises as `images`."""
        names = (f"{self.path}/{member.name}" for member in iter_members(self.path) if _kind(member) == "image")
        yield from filter(self._has, names)

    def _has(self, name: str) -> bool:
        return self.shard is None or self.shard.holds(name)


def find_inputs(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    listed: Iterable[str] = (),
    images: str | os.PathLike[str] | None = None,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    every: float | None = None,
    batch_size: int = 64,
) -> Inputs:
    """Return the images of `inputs`, then of `listed`: names, not patterns; a missing one becomes an error row.

    `images`: the folder that listed names are relative to, also tried with file names alone. Names from other systems
    are found as by `FileFinder`, and replaced with the path of the file. `max_member_bytes`: a larger image in an
    archive becomes an error row, because archives are read into memory. `every`: also read films, one frame for this
    many seconds; they are searched for in folders too. `batch_size`: at most this many images are used at once.
    Reads the member lists of archives completely.
    Raises `DataError` for damaged archives, and like `find_images`.
    """
    parts = [_find(name, every) for given in inputs for name in _expanded(os.fspath(given))]
    files = PackedNames()
    finder = FileFinder([os.curdir if images is None else images], by_file_name=images is not None)
    servers: set[str] = set()
    for name in (_located(name, finder, images) for name in listed):
        if is_remote(name):
            if (server := "/".join(name.split("/", 3)[:3])) not in servers:
                servers.add(server)
                check_reachable(name)
            files.append(name)
        elif os.path.isdir(name) or is_archive(name):
            parts += [FoundImages(files, 0, 0), _find(name, every)]
            files = PackedNames()
        else:
            files.append(name)
    parts = [replace(part, max_bytes=max_member_bytes) if isinstance(part, Archive) else part for part in parts]
    found = Inputs((*parts, FoundImages(files, 0, 0)), max_bytes=max_member_bytes)
    if every is None:
        return found
    with ThreadPoolExecutor(_PROBES) as pool:
        counts = tuple(pool.map(partial(count_frames, every=every), found.films))
    return replace(found, frames=Frames(every, counts, FrameBudget(least=max(batch_size + 1, FrameBudget.least))))


def _located(name: str, finder: FileFinder, images: str | os.PathLike[str] | None) -> str:
    if address := remote_name(name):
        return address
    if images is None and os.path.lexists(name):
        return name
    found = finder.find(name)
    return name if found is None else found if images is not None else os.path.normpath(found)


def _expanded(given: str) -> list[str]:
    return [given] if is_remote(given) else expand_name(given)


def _find(given: str, every: float | None) -> FoundImages | Archive:
    if address := remote_name(given):
        names, is_folder = list_remote(address)
        return collect_images(((name, is_folder) for name in names), packed=True)
    return (
        _list_archive(given) if is_archive(given) else find_images([given], with_films=every is not None, packed=True)
    )


def _list_archive(path: str) -> Archive:
    kinds = {"image": 0, "other": 0, "link": 0, "folder": 0}
    hidden: set[str] = set()
    for member in iter_members(path):
        if part := _hidden_part(member.name):
            hidden.add(part)
        else:
            kinds[_kind(member)] += 1
    return Archive(path, kinds["image"], len(hidden), kinds["other"], kinds["link"])


def _is_film_file(source: ImageSource) -> TypeGuard[str]:
    return isinstance(source, str) and is_film(source) and not is_remote(source)


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
