"""Class names in the order of a network's outputs, from a text file, JSON or what a framework wrote down.

Knows lists and their faults. Does not know models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl.errors import ConfigError
from tl.exporter.adoption.plain_json import read_text, read_value


def read_labels(path: Path) -> tuple[str, ...]:
    """A text file with one name a line, or `.json`: a list of names, or {id: name} or {name: id}.

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
        raise ConfigError(f"{where}: expected a list of class names or an object of ids and names")
    for place, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{where}: the name of class {place} is {name!r}, expected a text")
    return tuple(str(names[i]).strip() for i in range(len(names)))


def check_names(names: tuple[str, ...], num_classes: int, where: str) -> None:
    """Raise `ConfigError` unless there are as many names as classes, all of them different."""
    if len(names) != num_classes:
        raise ConfigError(
            f"{where}: {len(names)} class names for the {num_classes} outputs of the network; "
            "give its own list, in the order it was trained with"
        )
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    if repeated := {name: found for name, found in places.items() if len(found) > 1}:
        shown = "; ".join(f"'{name}' is class {' and '.join(map(str, found))}" for name, found in repeated.items())
        raise ConfigError(
            f"{where}: class names must differ, but counted from 0, {shown}: rename one of each, "
            "as in 'crane' and 'crane bird'"
        )


def _class_id(key: object) -> object:
    return int(key) if isinstance(key, str) and key.isdecimal() else key
