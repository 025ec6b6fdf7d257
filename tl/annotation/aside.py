"""Set files aside instead of replacing them, under names that nobody has; notice outputs that somebody has edited."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from tl.runtime.output.files import output_errors

Say = Callable[[str], None]
# Longer than it takes until an action is in the output.
_SECONDS_TO_WRITE = 3.0


def set_aside(paths: Sequence[Path], say: Say) -> None:
    """Rename an output, the first of `paths`, and the files beside it whose names begin as its own does.

    All get the same number: `labels.csv` and `labels.notes.csv` -> `labels.1.csv` and `labels.1.notes.csv`. Those that
    do not exist are passed over. Raises `OutputError`.
    """
    for path, aside in zip(paths, _free_names(paths), strict=True):
        if os.path.lexists(path):
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
    stem = paths[0].stem
    for n in count(1):
        names = [path.with_name(f"{stem}.{n}{path.name.removeprefix(stem)}") for path in paths]
        if not any(map(os.path.lexists, names)):
            break
    return names


def modified(path: Path) -> float:
    """Return when a file was changed last, infinitely late if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def may_be_edited(output: Path, written_at: float) -> bool:
    """Return whether somebody may have changed an output whose journal was written last at `written_at`.

    A process that was killed leaves an output that is no newer.
    """
    return output.exists() and modified(output) > written_at + _SECONDS_TO_WRITE
