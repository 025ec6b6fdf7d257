"""A study as its file says it: base options, variants, grid, search, seeds. Checked for form, not yet multiplied out.

Knows YAML and the keys of a study. Does not know whether options of training fit together (`study`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tl.errors import ConfigError
from tl.studies.search import Search, read_search
from tl.trainer.config import TrainConfig
from tl.trainer.options import load_config, nearest

Options = Mapping[str, Any]
_KEYS = ("about", "base", "variants", "grid", "search", "seeds", "apart", "test", "ensemble")


@dataclass(frozen=True)
class Variant:
    """A named way. `options`: what it says itself, None taking an option away. `grid`: axes of its own."""

    name: str
    options: Options
    grid: Options
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A study's file. `apart`: axes of which each value has a selection of its own. `test`: whether what is selected is
    judged by the test split, `ensemble`: also together.
    """

    name: str
    about: str
    base: Options
    grid: Options
    variants: tuple[Variant, ...]
    search: Search | None
    apart: tuple[str, ...]
    test: bool
    ensemble: bool


def read_plan(path: str | Path) -> Plan:
    """Read a YAML file. Raises `ConfigError` with all faults of form."""
    path = Path(path)
    values = load_config(path)
    faults = [f"unknown key '{key}'{nearest(str(key), list(_KEYS))}" for key in values if key not in _KEYS]
    base, grid = _mapping(values, "base", "", faults), _mapping(values, "grid", "", faults)
    seeds = _seeds(values, [0], "", faults)
    named = _mapping(values, "variants", "", faults) or {"": {}}
    variants = tuple(_variant(str(name), own, seeds, faults) for name, own in named.items())
    switches = {key: values.get(key, default) for key, default in (("test", True), ("ensemble", False))}
    faults += [f"{key} must be true or false" for key, value in switches.items() if not isinstance(value, bool)]
    apart = values.get("apart", [])
    if not isinstance(apart, list):
        faults.append("apart must be a list of options that stand in a grid")
    search = read_search(values.get("search"), faults)
    raise_faults(faults, path)
    if "data" in base:
        base["data"] = os.path.expandvars(str(base["data"]))
    about = str(values.get("about", ""))
    return Plan(path.stem, about, base, grid, variants, search, tuple(apart), switches["test"], switches["ensemble"])


def parse_forced(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` words -> options, values read as YAML. Raises `ConfigError`."""
    import yaml

    known = [field.name for field in fields(TrainConfig)]
    forced = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in known:
            raise ConfigError(f"--set {text}: expected an option and its value, as in epochs=3{nearest(name, known)}")
        try:
            forced[name] = yaml.safe_load(value)
        except yaml.YAMLError:  # such as a pattern that begins with a star
            forced[name] = value
    return forced


def raise_faults(faults: Sequence[str], path: Path) -> None:
    """Raise `ConfigError` with all faults, if there are some."""
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults))


def _variant(name: str, own: object, seeds: tuple[int, ...], faults: list[str]) -> Variant:
    if not isinstance(own, dict):
        faults.append(f"variant '{name}' must be a list of options and their values")
        return Variant(name, {}, {}, seeds)
    where = f"variant '{name}': "
    options = {str(key): value for key, value in own.items() if key not in ("grid", "seeds")}
    return Variant(name, options, _mapping(own, "grid", where, faults), _seeds(own, seeds, where, faults))


def _seeds(values: Options, default: Sequence[int], where: str, faults: list[str]) -> tuple[int, ...]:
    seeds = values.get("seeds", list(default))
    if isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds):
        return tuple(seeds)
    faults.append(f"{where}seeds must be a list of whole numbers, found {seeds}")
    return (0,)


def _mapping(values: Options, key: str, where: str, faults: list[str]) -> dict[str, Any]:
    found = values.get(key) or {}
    if isinstance(found, dict):
        return dict(found)
    faults.append(f"{where}{key} must be 'option: value' lines")
    return {}
