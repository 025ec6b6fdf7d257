"""The images of a folder, numbered, and where each is: never outside the folder, whatever links there are.

Opens no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tl.errors import DataError, ImageReadError
from tl.runtime.sources.names import composed
from tl.runtime.sources.paths import find_images
from tl.runtime.sources.remote import remote_name


@dataclass(frozen=True)
class Photos:
    """Images of a folder. `names`: paths below `root` with '/', in the order of folders; index = id of an image.

    `group` of an image is its sub-folder if `has_groups`, "" for an image of the folder itself.
    """

    root: Path
    names: Sequence[str]
    has_groups: bool = False
    index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Number the names."""
        object.__setattr__(self, "index", {name: i for i, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def folded(self) -> Sequence[str]:
        """The names for searching, see `fold`."""
        return [fold(name) for name in self.names]

    @cached_property
    def paths(self) -> list[str]:
        """Where the images are."""
        return [os.path.join(self.root, *name.split("/")) for name in self.names]

    @property
    def places(self) -> dict[str, str]:
        """Where the images are, by name."""
        return dict(zip(self.names, self.paths, strict=True))

    def group(self, image: int) -> str:
        """Return the group of an image, "" for none."""
        return self.group_of(self.names[image])

    def group_of(self, name: str) -> str:
        """Return the group of an image, which may be gone, by its name."""
        return name.rpartition("/")[0] if self.has_groups else ""

    def locate(self, image: int) -> str:
        """Return the path of an image that may be read now. Raises `ImageReadError`.

        The folder may have changed since it was listed, so links are followed again.
        """
        path = self.paths[image]
        if not _is_inside(os.path.realpath(path), self._real_root):
            raise ImageReadError(path, "is a link out of the folder")
        return path

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)


def fold(text: str) -> str:
    """Return a text for searching, without regard to case and to how letters with accents are written."""
    return composed(text.casefold())


def list_photos(
    root: str | os.PathLike[str], *, has_groups: bool = False, say: Callable[[str], None] = lambda line: None
) -> Photos:
    """Find the images of a folder and its sub-folders. `say` receives what was left out.

    Raises `DataError` for anything but a local folder with images.
    """
    given = os.fspath(root)
    if address := remote_name(given):
        raise DataError(f"{address}: is on a server: copy the photos to a folder of this machine first")
    if not os.path.isdir(given):
        found = "is a file" if os.path.lexists(given) else "does not exist"
        raise DataError(f"{given}: {found}: expected a folder of photos")
    listed = find_images([given])
    real_root = os.path.realpath(given)
    homes: dict[str, bool] = {}
    inside = [path for path in listed.paths if _is_own(path, real_root, homes)]
    if outside := len(listed.paths) - len(inside):
        say(f"left out {outside} images that are links out of the folder {given}")
    if listed.not_images or listed.films or listed.hidden:
        say(f"left out {listed.not_images + listed.films + listed.hidden} files that are no images, or hidden")
    if not inside:
        raise DataError(f"{given}: contains no images")
    names = [os.path.relpath(path, given).replace(os.sep, "/") for path in inside]
    return Photos(Path(given), names, has_groups)


def _is_own(path: str, real_root: str, homes: dict[str, bool]) -> bool:
    """Whether a file lies in the folder. `homes`: known folders, as following links of each file would be slow."""
    if os.path.islink(path):
        return _is_inside(os.path.realpath(path), real_root)
    home = os.path.dirname(path)
    if home not in homes:
        real = os.path.realpath(home)
        homes[home] = real == real_root or _is_inside(real, real_root)
    return homes[home]


def _is_inside(real: str, real_root: str) -> bool:
    return real.startswith(real_root if real_root.endswith(os.sep) else real_root + os.sep)
