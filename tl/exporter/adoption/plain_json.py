"""Values out of JSON files that other tools wrote: read, and refused by name where they are of another kind.

Knows JSON. Does not know whose file it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tl.errors import ConfigError

MAX_BYTES = 16 << 20  # the labels of a million classes


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises `ConfigError`."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_value(path: Path) -> Any:
    """A JSON file. Raises `ConfigError`."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


def read_text(path: Path) -> str:
    """A small UTF-8 file, with or without byte order mark. Raises `ConfigError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: over {MAX_BYTES >> 20} MiB, expected a small text file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error


def numbers(value: object, where: str) -> tuple[float, float, float]:
    """Three finite numbers for R, G, B; a single one stands for all. Raises `ConfigError`."""
    items = [value] * 3 if is_number(value) else value
    if not isinstance(items, list | tuple) or len(items) != 3 or not all(map(is_number, items)):
        raise ConfigError(f"{where}: expected one number or three, found {value!r}")
    red, green, blue = map(float, items)
    return red, green, blue


def take_size(value: object, where: str) -> tuple[int, int]:
    """A size (H, W): an integer for a square, or two. Raises `ConfigError`."""
    items = [value, value] if isinstance(value, int) else value
    if not isinstance(items, list | tuple) or len(items) != 2 or not all(type(i) is int and i > 0 for i in items):
        raise ConfigError(f"{where}: expected a size in pixels, found {value!r}")
    return items[0], items[1]


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
