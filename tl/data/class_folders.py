"""List the labeled images of class folders, or of class folders in split folders, here or in an object store.

What is allowed is the same in both: only `_LocalTree` and `_RemoteTree` know where names come from. Opens no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tl.errors import DataError
from tl.runtime.landmarks.files import contains_landmarks
from tl.runtime.sources.names import composed
from tl.runtime.sources.paths import FoundImages, collect_images, find_images, is_hidden
from tl.runtime.sources.remote import list_remote

SPLITS = ("train", "val", "test")
# Other usual names of splits, in lower case.
SPLIT_NAMES = {name: name for name in SPLITS} | {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "validation"), "val"),
    **dict.fromkeys(("testing",), "test"),
}
Say = Callable[[str], None]
# Path or address of an image, its name within the data set with '/', its label, its split ('' without split folders).
FolderImage = tuple[str, str, str, str]


def iter_class_folders(root: Path, say: Say) -> Iterator[FolderImage]:
    """Yield the images of a folder. Raises `DataError` for folders that are neither class nor split folders."""
    yield from _iter_images(_LocalTree(root), say)


def iter_remote_folders(address: str, say: Say) -> Iterator[FolderImage]:
    """Yield the images of a folder in an object store, as `iter_class_folders` does. Raises `DataError`."""
    yield from _iter_images(_RemoteTree(address), say)


def bind_splits(root: str, folders: Sequence[str], inner: Callable[[str], Iterable[str]]) -> dict[str, str]:
    """Return the folder of each split, whatever usual name it has; {} if the folders are those of classes.

    `folders`: names of the folders in `root`. `inner`: the name of one -> names of the folders in it. Raises
    `DataError`.
    """
    splits: dict[str, list[str]] = {}
    for name in folders:
        splits.setdefault(SPLIT_NAMES.get(name.casefold(), ""), []).append(name)
    if "train" not in splits:
        _check_not_splits(root, folders, splits, inner)
        return {}
    if twice := next((names for split, names in splits.items() if split and len(names) > 1), None):
        raise DataError(f"{root}: folders {' and '.join(map(repr, twice))} are both the same split")
    if "" in splits:
        raise DataError(f"{root}: unexpected folder '{splits[''][0]}': expected only train/, val/ and test/")
    return {split: splits[split][0] for split in SPLITS if split in splits}


def _check_not_splits(
    root: str, folders: Sequence[str], splits: Mapping[str, Sequence[str]], inner: Callable[[str], Iterable[str]]
) -> None:
    """Raise `DataError` for folders that look like splits without `train`, or for one folder that contains `train`."""
    named = [name for split, names in splits.items() if split for name in names]
    if named:
        raise DataError(
            f"{root}: folder '{named[0]}' is probably a split, not a class, but there is no folder train: "
            "add one, or rename the folder"
        )
    for folder in folders:
        if any(SPLIT_NAMES.get(name.casefold()) == "train" for name in inner(folder)):
            where = f"{root}/{folder}"
            raise DataError(f"{root}: the split folders are one level below, in {where}: use that folder as data")


class _Tree(Protocol):
    """Folders below a root, which are named by their path from it with '/'; the root itself is ''."""

    def place(self, folder: str) -> str:
        """Return a folder as messages show it."""

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders in a folder that are not hidden."""

    def count_files(self, folder: str) -> int:
        """Return the number of files in a folder itself that are not hidden."""

    def images(self, folder: str) -> FoundImages:
        """Return the images in a folder and below it."""

    def name(self, path: str) -> str:
        """Return the name of an image within the data set."""

    def landmarks(self, folder: str) -> str:
        """Return a file in a folder that contains landmarks, '' if there is none or none can be read."""


def _iter_images(tree: _Tree, say: Say) -> Iterator[FolderImage]:
    splits = bind_splits(tree.place(""), tree.folders(""), tree.folders)
    for split, folder in splits.items() if splits else [("", "")]:
        yield from _iter_classes(tree, folder, split, say)


def _iter_classes(tree: _Tree, folder: str, split: str, say: Say) -> Iterator[FolderImage]:
    classes = tree.folders(folder)
    if not classes:
        raise DataError(f"{tree.place(folder)}: contains no class folders; expected one folder of images per class")
    hidden, others = 0, tree.count_files(folder)
    for label in classes:
        below = f"{folder}/{label}" if folder else label
        found = tree.images(below)
        if not found.paths:
            raise DataError(f"{tree.place(below)}: this class folder contains no images: add images or remove it")
        hidden, others = hidden + found.hidden, others + found.not_images
        if found.not_images and (file := tree.landmarks(below)):
            say(f"{file}: contains landmarks, but its folder is the class '{label}': to use them, give this file")
        yield from ((path, tree.name(path), composed(label), split) for path in found.paths)
    if hidden or others:
        say(
            f"{tree.place(folder)}: skipped {hidden} hidden files and {others} that are not images, by name or location"
        )


class _LocalTree:
    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, folder: str) -> str:
        return str(self._root / folder)

    def folders(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def count_files(self, folder: str) -> int:
        return sum(not entry.is_dir() for entry in self._entries(folder))

    def images(self, folder: str) -> FoundImages:
        return find_images([self._root / folder])

    def name(self, path: str) -> str:
        return Path(path).relative_to(self._root).as_posix()

    def landmarks(self, folder: str) -> str:
        files = sorted((self._root / folder).rglob("*"))
        return next((str(path) for path in files if contains_landmarks(path)), "")

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        with os.scandir(self._root / folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]


class _RemoteTree:
    """Lists all objects at once. Of hidden folders, only their names are listed. Raises `DataError`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._entries: dict[str, dict[str, bool]] = {}  # folder -> name in it -> whether that is a folder
        self._paths: dict[str, list[str]] = {}  # folder -> what is below it
        for path in list_remote(f"{address}/")[0]:
            parts = self.name(path).split("/")
            for depth in range(min(len(parts), 3)):  # a split, a class, and what is in it
                folder, name = "/".join(parts[:depth]), parts[depth]
                entries = self._entries.setdefault(folder, {})
                entries[name] = entries.get(name, False) or depth < len(parts) - 1
                self._paths.setdefault(folder, []).append(path)

    def place(self, folder: str) -> str:
        return f"{self._address}/{folder}".rstrip("/")

    def folders(self, folder: str) -> list[str]:
        entries = self._entries.get(folder, {})
        return sorted(name for name, is_folder in entries.items() if is_folder and not is_hidden(name))

    def count_files(self, folder: str) -> int:
        entries = self._entries.get(folder, {})
        return sum(not is_folder and not is_hidden(name) for name, is_folder in entries.items())

    def images(self, folder: str) -> FoundImages:
        return collect_images((path, True) for path in self._paths.get(folder, ()))

    def name(self, path: str) -> str:
        return path[len(self._address) + 1 :]

    def landmarks(self, folder: str) -> str:
        return ""  # files are not opened
