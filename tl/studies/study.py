"""A study's runs: every combination that its plan defines, each with consistent training options.

Contains no file access to data and no training; never imports torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl.errors import ConfigError
from tl.studies.plan import Options, Plan, Variant, draw_points, raise_faults, read_plan, rung_epochs
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import config_from_mapping
from tl.trainer.options import resolve

# Options that the study sets itself.
_RESERVED = ("out", "seed", "test")
_MOST_LETTERS = 80


@dataclass(frozen=True)
class Cell:
    """One run of a study. `point`: its coordinates in the grid. `config` is not resolved and has no `out`."""

    variant: str
    point: tuple[tuple[str, Any], ...]
    seed: int
    config: TrainConfig

    @property
    def setting(self) -> str:
        """The description it shares with runs of other seeds."""
        return _in_words(self.variant, self.point)

    @property
    def name(self) -> str:
        """Its folder name: readable, and different whenever any option differs."""
        digest = hashlib.sha256(_key(self.config).encode()).hexdigest()[:6]
        words = re.sub(r"[^\w.=-]+", "-", self.setting)[:_MOST_LETTERS].strip("-.")
        return f"{words}-s{self.seed}-{digest}"

    @property
    def epochs(self) -> int | None:
        """Epochs of the resolved options; None for a head that is solved."""
        return resolve(replace(self.config, out="x")).epochs

    def with_epochs(self, epochs: int) -> Cell:
        """A copy with this number of epochs, which then becomes an axis."""
        point = dict(self.point) | {"epochs": epochs}
        return replace(self, point=tuple(point.items()), config=replace(self.config, epochs=epochs))


@dataclass(frozen=True)
class Study:
    """A plan and its runs, grouped by setting, with seeds innermost.

    `doubled`: descriptions of settings that equal others. `last_epochs`: for a halving search, the epochs of each
    variant's last round; `cells` are those of the first round.
    """

    plan: Plan
    cells: tuple[Cell, ...]
    doubled: tuple[str, ...]
    last_epochs: Mapping[str, int]

    @property
    def axes(self) -> tuple[str, ...]:
        """The options in which settings differ, in order of appearance."""
        return tuple(dict.fromkeys(name for cell in self.cells for name, _ in cell.point))

    @property
    def task(self) -> str:
        """The task of its data: classification or landmarks."""
        return str(resolve(replace(self.cells[0].config, out="x")).task)


def read_study(path: str | Path, forced: Options | None = None) -> Study:
    """Read a YAML file. `forced` options replace those of the file everywhere, including axes.

    Checks the options of every run. Raises `ConfigError` listing all errors.
    """
    plan = read_plan(path)
    faults: list[str] = []
    points = draw_points(plan.search) if plan.search else [{}]
    found = [cell for variant in plan.variants for cell in _cells(plan, variant, points, forced or {}, faults)]
    last_epochs: dict[str, int] = {}
    if plan.search is not None and plan.search.factor is not None:
        faults += [
            f"{cell.setting}: halving requires epochs, but this head is trained without epochs"
            for cell in found
            if not cell.epochs
        ]
        last_epochs = {cell.variant: cell.epochs or 1 for cell in found}
        found = [cell.with_epochs(rung_epochs(plan.search, last_epochs[cell.variant])[0]) for cell in found]
    raise_faults(sorted(set(faults)), Path(path))
    cells: dict[str, Cell] = {}
    doubled = []
    for cell in found:
        first = cells.setdefault(_key(cell.config), cell)
        if first is not cell:
            doubled.append(f"{cell.setting} is identical to {first.setting}")
    return Study(plan, tuple(cells.values()), tuple(dict.fromkeys(doubled)), last_epochs)


def _cells(
    plan: Plan, variant: Variant, points: Sequence[Options], forced: Options, faults: list[str]
) -> Iterator[Cell]:
    """A variant's runs. Errors are appended to `faults`."""
    own = variant.options
    # A variant's own options are not axes of it. None means that it lacks the option, whatever the others have.
    axes = {name: values for name, values in plan.grid.items() if name not in own} | dict(variant.grid)
    axes = {name: values for name, values in axes.items() if name not in forced}
    fixed = {**plan.base, **own, **forced}
    fixed = {name: value for name, value in fixed.items() if own.get(name, value) is not None}
    if wrong := _faults(fixed, axes):
        faults += wrong
        return
    drawn = [{n: v for n, v in each.items() if n not in (*axes, *own, *forced)} for each in points]
    for combined, extra in itertools.product(itertools.product(*axes.values()), drawn):
        point = (*zip(axes, combined, strict=True), *extra.items())
        for seed in variant.seeds:
            try:
                config = config_from_mapping(
                    {"cache": "disk", "refit": False, **fixed, **dict(point), "seed": seed}, "run"
                )
                resolve(replace(config, out="x"))
            except ConfigError as error:
                told = str(error).removeprefix("run: ").removeprefix("options: ")
                faults.append(f"{_in_words(variant.name, point)}: {told}")
                break
            yield Cell(variant.name, point, seed, config)


def _faults(fixed: Options, axes: Options) -> list[str]:
    faults = [
        f"{name}: set by the study; leave it out ('seeds' and 'test' belong next to 'base', at the top level)"
        for name in (*fixed, *axes)
        if name in _RESERVED
    ]
    faults += [
        f"grid: {name} must be a list of values"
        for name, values in axes.items()
        if not isinstance(values, list) or not values
    ]
    data = str(fixed.get("data") or "")
    if not data or not os.path.exists(data):
        faults.append(f"data: '{data}' does not exist: set data to a folder or file in base, or give data")
    return faults


def _key(config: TrainConfig) -> str:
    """Identifies a run by its non-default options, so that adding a new option does not change existing keys."""
    own = {name: value for name, value in vars(config).items() if value != getattr(TrainConfig, name)}
    if own.get("refit") is False:  # the default of a study
        del own["refit"]
    return json.dumps(own, sort_keys=True)


def _in_words(variant: str, point: Sequence[tuple[str, Any]]) -> str:
    shown = " ".join(f"{name}={_shown(value)}" for name, value in point)
    return f"{variant} {shown}".strip() or "base"


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
