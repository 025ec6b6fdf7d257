r"""Find files by names that were written on another system: `\`, drive letters, other case, another Unicode form.

Looks into folders; never opens files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tl.errors import DataError

_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])|\\\\(?=[^\\])")


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS writes the same letters decomposed."""
    return unicodedata.normalize("NFC", name)


def image_folders(path: str | os.PathLike[str], images: str | os.PathLike[str] | None) -> list[Path]:
    """Return where the images that a file of annotations names are looked for, in this order.

    `images` alone if it is given; otherwise the file's folder (`path` itself if it is a folder), `images/` in it, and
    the two folders above it, which the names in DeepLabCut's files are relative to.
    """
    if images is not None:
        return [Path(images)]
    here = Path(path).absolute() if os.path.isdir(path) else Path(path).absolute().parent
    return [here, here / "images", *here.parents[:2]]


class FileFinder:
    r"""Find the files that names mean, relative to `folders`, searched in order.

    A name is tried as written. If no file has it, `\` separates folders, and the only file is found whose name is equal
    apart from Unicode form and case. `by_file_name`: at last, try the file name alone, without its folders.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]], *, by_file_name: bool = False) -> None:
        self._folders, self._by_file_name = [os.fspath(folder) for folder in folders], by_file_name
        self._listed = cache(_list_folder)

    def find(self, name: str) -> str | None:
        """Return a path, None if there is no such file. Raises `DataError` if several files could be meant."""
        for folder in self._folders:
            if os.path.lexists(path := os.path.join(folder, name)):
                return path
        bare = _DRIVE.sub("", name)
        parts = [part for part in bare.replace("\\", "/").split("/") if part not in ("", ".")]
        is_absolute = bare != name or name.startswith("/")
        for folder in ["/"] if name.startswith("/") else [] if is_absolute else self._folders:
            if path := self._follow(folder, parts):
                return path
        for folder in self._folders if self._by_file_name and parts else ():
            if path := self._follow(folder, parts[-1:]):
                return path
        return None

    def _follow(self, folder: str, parts: Sequence[str]) -> str:
        """Return the path of `parts` below a folder, "" if there is none."""
        here = folder
        for part in parts:
            if part != ".." and not os.path.lexists(os.path.join(here, part)):
                found = self._listed(here or ".").get(_key(part), [])
                if len(found) > 1:
                    shown = " and ".join(repr(name) for name in found)
                    raise DataError(f"'{part}' could be {shown} in {here or '.'}: write the name as it is there")
                if not found:
                    return ""
                part = found[0]
            here = os.path.join(here, part)
        return here if os.path.lexists(here) else ""


def _list_folder(folder: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            names.setdefault(_key(name), []).append(name)
    except OSError:  # no folder, or not readable: it contains nothing that can be found
        pass
    return names


def _key(name: str) -> str:
    return composed(name).casefold()
