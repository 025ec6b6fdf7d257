"""What a labeling tool's file says of each image, whatever the tool: classes, points, split, size.

Opens no images. Readers of single tools are the modules beside this one; `tools` selects among them.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tl.errors import DataError
from tl.runtime.sources.names import FileFinder, composed

# How the answers of several annotators become one: the last one, or the one that most of them gave.
Annotators = Literal["latest", "majority"]
# What a file is read for.
Wanted = Literal["classes", "points"]
# The center of the top-left pixel is (0, 0) here, and (0.5, 0.5) in tools that measure from the corner of the image.
PIXEL_CENTER = 0.5
# Label Studio puts eight hexadecimal digits before the name of an uploaded file.
_UPLOAD_FOLDER = "upload/"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")


@dataclass(frozen=True)
class ToolPoint:
    """A named point, (x, y) in pixels of the image as the tool shows it; center of the top-left pixel = (0, 0)."""

    name: str
    x: float
    y: float
    is_occluded: bool = False


@dataclass(frozen=True)
class ToolImage:
    """An image of a tool's file.

    `place`: where it is in the file, for messages. `names`: what the file may be called, the likeliest first. `labels`:
    its classes, None if nobody has judged it. `stated_hw`: its size according to the tool, None if it states none.
    """

    place: str
    names: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    points: tuple[ToolPoint, ...] = ()
    split: str = ""
    stated_hw: tuple[int, int] | None = None


@dataclass(frozen=True)
class ToolFile:
    """All images of a tool's file. `point_names`: in the tool's own order. `remarks`: what of the file is not used.

    `has_label_columns`: the file states for each label whether an image has it, so that images may have several.
    """

    where: str
    images: tuple[ToolImage, ...]
    point_names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    has_label_columns: bool = False

    @property
    def has_points(self) -> bool:
        """Whether an image has points."""
        return any(image.points for image in self.images)


@dataclass(frozen=True)
class Reading:
    """How to read a file.

    `wanted`: what it is read for; the other one may be ambiguous, and is then left out. `label`: the control or
    attribute that holds the class or the name of a point, None for the only one. `size`: names
    of an image -> (height, width) as the tool shows it, for files that state points in percent without it.
    """

    wanted: Wanted
    label: str | None = None
    annotators: Annotators = "latest"
    size: Callable[[Sequence[str]], tuple[int, int]] | None = None


@dataclass
class Passed:
    """Counts what of a file is not used, by kind."""

    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, what: str, count: int = 1) -> None:
        """Count one more."""
        self.counts[what] += count

    def remarks(self) -> tuple[str, ...]:
        """Return one sentence for each kind."""
        return tuple(f"{count} {what}" for what, count in self.counts.items() if count)


@contextmanager
def reading_of(place: str, tool: str) -> Iterator[None]:
    """Convert errors of unexpected JSON or XML to a `DataError` that names the place."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{place}: not as {tool} writes it ({type(error).__name__}: {error})") from error


def number(value: Any, place: str, what: str) -> float:
    """Return a finite number from JSON or XML. Raises `DataError`."""
    try:
        found = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{place}: {what} must be a number, found {value!r}")
    return found


def size_of(height: Any, width: Any, place: str) -> tuple[int, int] | None:
    """Return the size that a tool states, None if it states none. Raises `DataError`."""
    if height is None and width is None:
        return None
    size_hw = int(number(height, place, "the height")), int(number(width, place, "the width"))
    if min(size_hw) < 1:
        raise DataError(f"{place}: width and height must be at least 1, found {width} and {height}")
    return size_hw


def one_name(found: Iterable[str], given: str | None, where: str, what: str) -> str:
    """Return the name in use of a class or of points: `given`, else the only one; "" without any. Raises `DataError`.

    `what`: what is named, for messages.
    """
    names = list(dict.fromkeys(found))
    listed = ", ".join(f"'{name}'" for name in names)
    if given is not None and given not in names:
        raise DataError(f"{where}: has no {what} '{given}' (found: {listed or 'none'})")
    if given is None and len(names) > 1:
        options = [f"label_column={name}" for name in names]
        raise DataError(f"{where}: has {len(names)} {what}s, {listed}: name the one to use", options=options)
    return given or next(iter(names), "")


def only_name(found: Iterable[str]) -> str:
    """Return the only name, "" if there are none or several: for what a file is not read for."""
    names = list(dict.fromkeys(found))
    return names[0] if len(names) == 1 else ""


def check_points(points: Sequence[ToolPoint], place: str) -> tuple[ToolPoint, ...]:
    """Return the points of an image. Raises `DataError` if two have one name."""
    counts = Counter(point.name for point in points)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"{place}: has {counts[twice[0]]} points '{twice[0]}': keep one; one specimen per image is expected"
        )
    return tuple(points)


def names_of(value: str) -> tuple[str, ...]:
    """Return the names that the file behind a tool's path or URL may have, relative to some folder of images.

    Longer ones come first. A file uploaded to Label Studio is also looked for without the digits before its name.
    """
    parts = urlsplit(value)
    if parts.path.endswith("/data/local-files/") and (local := parse_qs(parts.query).get("d")):
        return _tails(local[0])
    if "/data/upload/" in parts.path:
        uploaded = unquote(parts.path).split("/data/upload/", 1)[1]
        file = uploaded.rsplit("/", 1)[-1]
        return tuple(dict.fromkeys((f"{_UPLOAD_FOLDER}{uploaded}", *_tails(uploaded), _UPLOADED.sub("", file))))
    if len(parts.scheme) > 1 and parts.netloc:  # one letter is a drive
        key = value.split("://", 1)[1].partition("/")[2]
        return _tails(unquote(parts.path.lstrip("/")) if parts.scheme in ("http", "https") else key)
    return _tails(value)


def _tails(path: str) -> tuple[str, ...]:
    words = [word for word in path.replace("\\", "/").split("/") if word not in ("", ".")]
    tails = tuple("/".join(words[start:]) for start in range(len(words)) if ".." not in words[start:])
    return tuple(dict.fromkeys((path, *tails)))


def resolve(images: Sequence[ToolImage], folders: Sequence[str | os.PathLike[str]]) -> list[tuple[str, str | None]]:
    """Return the name of each image that has a file in one of `folders`, and its path; else its first name and None.

    Raises `DataError` for an image that the file has twice, and if several files could be meant.
    """
    finder, uploads = FileFinder(folders), _Uploads(folders)
    found: list[tuple[str, str | None]] = []
    seen: dict[str, ToolImage] = {}
    for image in images:
        paths = ((name, finder.find(name)) for name in (*image.names, *uploads.names_for(image)))
        name, path = next(((name, path) for name, path in paths if path is not None), (image.names[0], None))
        other = seen.setdefault(os.path.normpath(path or name), image)
        if other is not image:
            raise DataError(f"{image.place}: is of {name}, as is {other.place.split(': ')[-1]}: keep one of them")
        found.append((name, path))
    return found


class _Uploads:
    """Find files whose names Label Studio changed when they were uploaded: spaces become `_`, other signs vanish.

    Source: `django.utils.text.get_valid_filename`.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]]) -> None:
        self._folders, self._names = folders, cache(self._list)

    def names_for(self, image: ToolImage) -> list[str]:
        """Return the names of files that an uploaded image may have had. Raises `DataError` for several."""
        if not image.names[0].startswith(_UPLOAD_FOLDER):
            return []
        found = self._names().get(image.names[-1], [])
        if len(found) > 1:
            shown = " and ".join(map(repr, found))
            raise DataError(f"{image.place}: the uploaded image {image.names[-1]} could be {shown}: rename one")
        return found

    def _list(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for folder in self._folders:
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                valid = re.sub(r"[^-\w.]", "", composed(name).strip().replace(" ", "_"))
                names.setdefault(valid, []).append(name)
        return names


def used_point_names(images: Sequence[ToolImage], declared: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of all points: those of `declared` in its order, then the others as they come."""
    used = dict.fromkeys(point.name for image in images for point in image.points)
    return tuple(dict.fromkeys((*(name for name in declared if name in used), *used)))


def truthy(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options that are checked."""
    return [composed(str(name)) for name, is_set in options.items() if is_set]
