"""Lists of file names, as `find` and text editors write them.

Knows bytes and line ends. Does not look at the files that are named.
"""

from __future__ import annotations

import codecs
import os
import sys

from tl.errors import DataError


def read_path_list(list_file: str, *, null: bool = False) -> list[str]:
    """The names in a file, or on stdin for `-`, in order: one a line, or with `null` each ended by a NUL byte.

    Names keep their spaces, and their bytes where they are not UTF-8. Blank lines, Windows' line ends and a byte order
    mark are not part of names; with `null`, only NUL is not. Raises `DataError` for a list that cannot be read.
    """
    data = _read(list_file)
    if null:
        return [os.fsdecode(name) for name in data.split(b"\0") if name]
    if b"\0" in data:  # no file name holds one
        raise DataError(f"{list_file}: has NUL bytes: give --null if they end the names, or save the list as UTF-8")
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]


def _read(list_file: str) -> bytes:
    if list_file == "-":
        return sys.stdin.buffer.read()
    try:
        with open(list_file, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"{list_file}: the list of names cannot be read ({error.strerror})") from error
