"""Class names of foreign models from text and JSON files, and typed access to JSON fields.

Does not depend on models.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tl.errors import ConfigError

MAX_BYTES = 16 << 20  # labels of a million classes fit


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that contains an object. Raises `ConfigError`."""
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
            raise ConfigError(f"{path}: larger than {MAX_BYTES >> 20} MiB, expected a small text file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error


def numbers(value: object, where: str) -> tuple[float, float, float]:
    """Three finite numbers for R, G, B; a single number applies to all. Raises `ConfigError`."""
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
    """Whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a text file with one name per line, or `.json`: a list of names, or {id: name} or {name: id}.

    Raises `ConfigError`.
    """
    if path.suffix.lower() == ".json":
        return names_from_mapping(read_value(path), str(path))
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if "" in lines:
        raise ConfigError(f"{path}: line {lines.index('') + 1} is empty, expected a class name")
    return tuple(lines)


def names_from_mapping(value: object, where: str) -> tuple[str, ...]:
    """A list of names, {id: name} with ids 0 to C - 1 as numbers or digits, or {name: id}. Raises `ConfigError`."""
    if isinstance(value, list | tuple):
        names: dict[Any, Any] = dict(enumerate(value))
    elif isinstance(value, dict):
        turned = bool(value) and all(type(item) is int for item in value.values())
        names = {_class_id(item if turned else key): key if turned else item for key, item in value.items()}
        if len(names) != len(value) or set(names) != set(range(len(names))):
            raise ConfigError(f"{where}: expected the ids 0 to {len(value) - 1}, each once")
    else:
        raise ConfigError(f"{where}: expected a list of class names, or an object that maps ids to names")
    for place, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{where}: the name of class {place} is {name!r}, expected a non-empty string")
    return tuple(str(names[i]).strip() for i in range(len(names)))


def check_names(names: tuple[str, ...], num_classes: int, where: str) -> None:
    """Raise `ConfigError` unless there are as many names as classes, and all are unique."""
    if len(names) != num_classes:
        raise ConfigError(
            f"{where}: {len(names)} class names, but the network has {num_classes} outputs; give the "
            "list of names that it was trained with, in that order"
        )
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    if repeated := {name: found for name, found in places.items() if len(found) > 1}:
        shown = "; ".join(f"'{name}' is class {' and '.join(map(str, found))}" for name, found in repeated.items())
        raise ConfigError(
            f"{where}: class names must be unique, but (counting from 0) {shown}: rename all but one of "
            "each, as in 'crane' and 'crane bird'"
        )


def _class_id(key: object) -> object:
    return int(key) if isinstance(key, str) and key.isdecimal() else key
