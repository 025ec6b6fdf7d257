"""Convert frozen dataclasses to and from JSON, strictly: missing, unknown or wrongly typed fields raise an error.

Supports dataclasses, tuples, string-keyed dicts, Literal, unions with None and the scalars. Never fills in defaults.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


def parse_json(text: str) -> Json:
    """Parse strict JSON: no NaN or Infinity, repeated keys or lone surrogates. Raises ValueError with the place."""
    try:
        parsed: Json = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if "\\u" in text:
        json.dumps(parsed, ensure_ascii=False).encode()  # raise for a lone surrogate, which cannot be written
    return parsed


def dump_json(value: object) -> str:
    """Return dataclasses and plain values as compact strict JSON text. Raises ValueError on NaN or Infinity."""
    return json.dumps(to_plain(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def to_plain(value: object) -> Json:
    """Convert dataclasses, tuples and mappings to dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def from_plain(kind: type[T], value: object, where: str) -> T:
    """Build `kind` from parsed JSON. Raises ValueError: `where.field: expected ..., found ...`."""
    result: T = _convert(kind, value, where)
    return result


def _convert(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _convert_dataclass(kind, value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _expect(
            value in args and not isinstance(value, bool), value, where, f"one of {', '.join(map(str, args))}"
        )
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin is dict:
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(kind, value, where)


def _convert_dataclass(kind: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    hints = _type_hints(kind)
    missing, unknown = hints.keys() - value.keys(), value.keys() - hints.keys()
    if missing or unknown:
        faults = [f"missing field '{name}'" for name in sorted(missing)]
        faults += [f"unknown field '{name}'" for name in sorted(unknown)]
        raise ValueError(f"{where}: {'; '.join(faults)}")
    fields = {name: _convert(hint, value[name], f"{where}.{name}") for name, hint in hints.items()}
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, where, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(args), value, where, f"a list of {len(args)}")
    return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float:
        _expect(isinstance(value, int | float) and not isinstance(value, bool), value, where, "a finite number")
        try:
            return float(value)
        except OverflowError:
            return _expect(False, value, where, "a finite number")
    if kind in (int, str, bool):
        return _expect(
            type(value) is kind, value, where, {int: "an integer", str: "a text", bool: "true or false"}[kind]
        )
    raise TypeError(f"{where}: no JSON rule for {kind}")


def _expect(condition: bool, value: Any, where: str, expected: str) -> Any:
    if not condition:
        found = repr(value)
        raise ValueError(f"{where}: expected {expected}, found {found if len(found) < 60 else found[:57] + '...'}")
    return value


@cache
def _type_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"repeated field '{next(key for key in keys if keys.count(key) > 1)}'")
    return result


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is out of range")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")
