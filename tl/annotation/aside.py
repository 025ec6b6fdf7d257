"""Set files aside instead of replacing them, under names that nobody has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from tl.runtime.output.files import output_errors

Say = Callable[[str], None]


def set_aside(paths: Sequence[Path], say: Say) -> None:
    """Rename files of one folder, all with the same number: `labels.csv` -> `labels.1.csv`. Raises `OutputError`.

    Those that do not exist are passed over.
    """
    found = [path for path in paths if os.path.lexists(path)]
    for path, aside in zip(found, _free_names(found), strict=True):
        with output_errors(path):
            path.rename(aside)
        say(f"{path.name} is now {aside.name}")


def copy_aside(path: Path) -> Path:
    """Copy a file to a name of its own, and return it. Raises `OutputError`."""
    (aside,) = _free_names([path])
    with output_errors(aside):
        shutil.copyfile(path, aside)
    return aside


def _free_names(paths: Sequence[Path]) -> list[Path]:
    """The names with the first number that none of them has yet."""
    parts = [path.name.partition(".") for path in paths]
    for n in count(1):
        names = [
            path.with_name(f"{first}.{n}{dot}{rest}") for path, (first, dot, rest) in zip(paths, parts, strict=True)
        ]
        if not any(map(os.path.lexists, names)):
            break
    return names
