"""A study as a file: what all runs share, what differs, and the runs that follow from it.

Knows options of training as names and values. Does not train, and imports no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tl.errors import ConfigError
from tl.studies.search import Search, draw_points, read_search, rung_epochs
from tl.trainer.config import TrainConfig
from tl.trainer.options import config_from_mapping, load_config, nearest, resolve

Options = Mapping[str, Any]
_KEYS = ("about", "base", "variants", "grid", "search", "seeds", "apart", "test", "ensemble")
# What a study decides by itself.
_RESERVED = ("out", "seed", "test")
_MOST_LETTERS = 80


@dataclass(frozen=True)
class Cell:
    """One run of a study. `point`: its place in the grid. `config` is not resolved and has no `out`."""

    variant: str
    point: tuple[tuple[str, Any], ...]
    seed: int
    config: TrainConfig

    @property
    def setting(self) -> str:
        """What it shares with the runs of other seeds, in words."""
        shown = " ".join(f"{name}={_shown(value)}" for name, value in self.point)
        return f"{self.variant} {shown}".strip() or "base"

    @property
    def name(self) -> str:
        """Its folder: readable, and another one whenever any option is another."""
        digest = hashlib.sha256(json.dumps(vars(self.config), sort_keys=True).encode()).hexdigest()[:6]
        words = re.sub(r"[^\w.=-]+", "-", self.setting)[:_MOST_LETTERS].strip("-.")
        return f"{words}-s{self.seed}-{digest}"


@dataclass(frozen=True)
class Study:
    """`variants`: name -> options, of which `grid` may hold axes of its own. `test`: whether what is selected is judged
    by the test split. `ensemble`: whether it is also judged as an ensemble. `apart`: axes of which each value has a
    selection of its own. `cells`: all runs, settings one after the other, seeds within. `doubled`: settings that equal
    others, in words. `search`: of a study that draws its settings; more cells follow those of the first round where it
    halves, up to `epochs` of each variant.
    """

    name: str
    about: str
    test: bool
    ensemble: bool
    apart: tuple[str, ...]
    cells: tuple[Cell, ...]
    doubled: tuple[str, ...] = field(default=())
    search: Search | None = None
    epochs: Mapping[str, int] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[str, ...]:
        """The grid's options, in order of appearance."""
        return tuple(dict.fromkeys(name for cell in self.cells for name, _ in cell.point))

    @property
    def task(self) -> str:
        """What its data are for: classification or landmarks."""
        return str(resolve(replace(self.cells[0].config, out="x")).task)


def read_study(path: str | Path, forced: Options | None = None) -> Study:
    """Read a YAML file; `forced` options replace those of the file wherever they stand, and their axes.

    Every run's options are checked now. Raises `ConfigError` with all faults.
    """
    path, forced = Path(path), dict(forced or {})
    values = load_config(path)
    faults = [f"unknown key '{key}'{nearest(str(key), list(_KEYS))}" for key in values if key not in _KEYS]
    base, grid = _mapping(values, "base", faults), _mapping(values, "grid", faults)
    variants = _mapping(values, "variants", faults) or {"": {}}
    seeds = values.get("seeds", [0])
    faults += _seed_faults(seeds, "")
    switches = {key: values[key] for key in ("test", "ensemble") if key in values}
    faults += [f"{key} must be true or false" for key, value in switches.items() if not isinstance(value, bool)]
    if not isinstance(values.get("apart", []), list):
        faults.append("apart must be a list of options that stand in a grid")
    for name, options in variants.items():
        if not isinstance(options, dict):
            faults.append(f"variant '{name}' must be a list of options and their values")
        else:
            faults += _seed_faults(options.get("seeds", [0]), f"variant '{name}': ")
            if not isinstance(options.get("grid", {}), dict):
                faults.append(f"variant '{name}': grid must be 'option: list of values' lines")
    _raise(faults, path)
    if "data" in base:
        base["data"] = os.path.expandvars(str(base["data"]))
    cells: dict[str, Cell] = {}
    doubled = []
    search = read_search(values.get("search"), faults)
    _raise(faults, path)
    points = draw_points(search) if search else [{}]
    epochs: dict[str, int] = {}
    for cell in _cells(base, variants, grid, seeds, forced, faults, points):
        if search is not None and search.factor is not None:
            whole = resolve(replace(cell.config, out="x")).epochs
            if whole is None:
                faults.append(f"{cell.setting}: search by halving needs epochs, and this head is solved without")
                break
            epochs[cell.variant] = whole
            cell = _first_round(cell, rung_epochs(search, whole)[0])
        same = json.dumps(vars(cell.config), sort_keys=True)
        if same in cells:
            doubled.append(f"{cell.setting} is {cells[same].setting}")
        else:
            cells[same] = cell
    _raise(sorted(set(faults)), path)
    return Study(
        name=path.stem,
        about=str(values.get("about", "")),
        test=values.get("test", True),
        ensemble=values.get("ensemble", False),
        apart=tuple(values.get("apart", ())),
        cells=tuple(cells.values()),
        doubled=tuple(dict.fromkeys(doubled)),
        search=search,
        epochs=epochs,
    )


def _first_round(cell: Cell, epochs: int) -> Cell:
    return replace(cell, point=(*cell.point, ("epochs", epochs)), config=replace(cell.config, epochs=epochs))


def _cells(
    base: Options,
    variants: Mapping[str, Options],
    grid: Options,
    seeds: Sequence[int],
    forced: Options,
    faults: list[str],
    points: Sequence[Options],
) -> list[Cell]:
    cells = []
    for variant, own in variants.items():
        named = {name: value for name, value in own.items() if name not in ("grid", "seeds")}
        # What a variant says itself is no axis of it; null says that it has no such option, whatever others are given.
        axes = {name: values for name, values in grid.items() if name not in named} | dict(own.get("grid", {}))
        axes = {name: values for name, values in axes.items() if name not in forced}
        fixed = {**base, **named, **forced}
        fixed = {name: value for name, value in fixed.items() if not (name in named and named[name] is None)}
        if wrong := [name for name in (*fixed, *axes) if name in _RESERVED]:
            faults.append(f"{wrong[0]}: the study decides it; leave it out ('seeds' and 'test' stand beside 'base')")
            continue
        if wrong := [name for name, values in axes.items() if not isinstance(values, list) or not values]:
            faults.append(f"grid: {wrong[0]} must be a list of values")
            continue
        if not fixed.get("data") or not os.path.exists(str(fixed["data"])):
            faults.append(f"data: '{fixed.get('data', '')}' is not there: name a folder or file in base, or by --data")
            continue
        drawn = [{n: v for n, v in each.items() if n not in (*axes, *named, *forced)} for each in points]
        for combined, extra in itertools.product(itertools.product(*axes.values()), drawn):
            point = (*zip(axes, combined, strict=True), *extra.items())
            for seed in own.get("seeds", seeds):
                options = {"cache": "disk", **fixed, **dict(point), "seed": seed}
                try:
                    config = config_from_mapping(options, "run")
                    resolve(replace(config, out="x"))
                except ConfigError as error:
                    setting = Cell(str(variant), point, seed, TrainConfig("")).setting
                    faults.append(f"{setting}: {str(error).removeprefix('run: ').removeprefix('options: ')}")
                    break
                cells.append(Cell(str(variant), point, seed, config))
    return cells


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


def _seed_faults(seeds: object, where: str) -> list[str]:
    if isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds):
        return []
    return [f"{where}seeds must be a list of whole numbers, found {seeds}"]


def _mapping(values: Options, key: str, faults: list[str]) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        faults.append(f"{key} must be 'option: value' lines")
        return {}
    return dict(found)


def _raise(faults: Sequence[str], path: Path) -> None:
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults))


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
