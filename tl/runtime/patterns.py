"""Patterns such as `images/**/*.jpg`, for names that the shell has not expanded.

Knows `*`, `?`, `[...]` within a name and `**` for any number of folders. Does not look at the disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase


def is_pattern(name: str) -> bool:
    """Whether a name has signs of a pattern in it."""
    return any(sign in name for sign in "*?[")


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """What stands before the first `**`, and the names from there on: `a/b/**/*.jpg` -> `a/b`, [`**`, `*.jpg`].

    No names for a pattern without `**`.
    """
    names = pattern.split(os.sep)
    if "**" not in names:
        return pattern, []
    start = names.index("**")
    before = os.sep.join(names[:start])
    return (before or os.sep if start else ""), [name for name in names[start:] if name]


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names of a relative path fit those of a pattern, all to the end."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(matches(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])
