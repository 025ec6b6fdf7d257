"""Parse and check a study file: variants, grid, seeds, and the search over ranges.

Depends on YAML, options and Optuna's samplers. Does not run anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tl.errors import ConfigError, MissingExtraError
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import load_config
from tl.trainer.options import nearest

_SEARCHED = ("trials", "method", "factor", "seed", "ranges")
_RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Search:
    """`trials` points drawn from `ranges` with `seed`.

    `factor`: for successive halving, one in `factor` continues, for `factor` times the epochs; None for random search.
    """

    trials: int
    ranges: Mapping[str, Any]
    factor: int | None
    seed: int

    @property
    def method(self) -> Literal["random", "halving"]:
        """The search method."""
        return "random" if self.factor is None else "halving"


def read_search(values: object, faults: list[str]) -> Search | None:
    """The `search` section of a study file, None if absent. Errors are appended to `faults`."""
    if values is None:
        return None
    if not isinstance(values, dict):
        faults.append("search must have trials and ranges")
        return None
    faults += [
        f"search: unknown key '{key}'{nearest(str(key), list(_SEARCHED))}" for key in values if key not in _SEARCHED
    ]
    trials, factor, seed = values.get("trials"), values.get("factor", 3), values.get("seed", 0)
    method, ranges = values.get("method", "random"), values.get("ranges")
    if not isinstance(trials, int) or trials < 1:
        faults.append(f"search: trials must be a whole number of at least 1, found {trials}")
    if method not in ("random", "halving"):
        faults.append(f"search: method must be random or halving, found {method}")
    if not isinstance(factor, int) or factor < 2 or not isinstance(seed, int):
        faults.append("search: factor must be a whole number of at least 2, and seed a whole number")
    if not isinstance(ranges, dict) or not ranges:
        faults.append("search: ranges must be 'option: {low: ..., high: ...}' or 'option: [values]' lines")
        return None
    found = [fault for name, span in ranges.items() for fault in _range_faults(str(name), span)]
    faults += found
    if found or not isinstance(trials, int) or not isinstance(factor, int) or not isinstance(seed, int):
        return None
    return Search(trials, ranges, factor if method == "halving" else None, seed)


def draw_points(search: Search) -> list[dict[str, Any]]:
    """The trials, deterministic in the seed; numbers have three digits. Raises `MissingExtraError` without Optuna."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a search requires an additional package: pip install 'tl-toolkit[search]'") from error
    kinds = optuna.distributions
    spans: dict[str, Any] = {}
    for name, span in search.ranges.items():
        if isinstance(span, list):
            spans[name] = kinds.CategoricalDistribution(range(len(span)))  # indices: values may be lists
            continue
        low, high, is_log, step = span["low"], span["high"], span.get("log", False), span.get("step")
        if isinstance(low, int) and isinstance(high, int):
            spans[name] = kinds.IntDistribution(low, high, log=is_log, step=step or 1)
        else:
            spans[name] = kinds.FloatDistribution(low, high, log=is_log, step=step)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # suppresses a message per study
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(search.seed))
        return [_values(study.ask(spans).params, search.ranges) for _ in range(search.trials)]
    finally:
        optuna.logging.set_verbosity(before)


def rung_epochs(search: Search, epochs: int) -> list[int]:
    """Epochs of each halving round, ending with `epochs`; only `epochs` for random search."""
    if search.factor is None:
        return [epochs]
    rounds = int(math.log(min(search.trials, epochs), search.factor) + 1e-9)
    return [max(1, round(epochs / search.factor**left)) for left in range(rounds, -1, -1)]


def _values(params: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: ranges[name][value] if isinstance(ranges[name], list) else value for name, value in params.items()}
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in named.items()}


def _range_faults(name: str, span: object) -> list[str]:
    where = f"search: range of {name}"
    if isinstance(span, list):
        return [] if span else [f"{where} contains no values"]
    if not isinstance(span, dict) or not {"low", "high"} <= span.keys():
        return [f"{where} must be a list of values or have low and high"]
    unknown = [key for key in span if key not in _RANGE_KEYS]
    faults = [f"{where}: unknown key '{key}'{nearest(str(key), list(_RANGE_KEYS))}" for key in unknown]
    low, high = span["low"], span["high"]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) or not low < high:
        return [*faults, f"{where}: low must be a number below high, found {low} and {high}"]
    if span.get("log") and low <= 0:
        faults.append(f"{where}: on a log scale low must be above 0, found {low}")
    if span.get("log") and span.get("step"):
        faults.append(f"{where}: a log scale cannot have a step")
    return faults


Options = Mapping[str, Any]
_KEYS = ("about", "base", "variants", "grid", "search", "seeds", "apart", "test", "ensemble")


@dataclass(frozen=True)
class Variant:
    """A named variant. `options`: its own options; None removes an option. `grid`: its own axes."""

    name: str
    options: Options
    grid: Options
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A parsed study file. `apart`: axes with a separate selection per value. `test`: evaluate the selected models on
    the test split. `ensemble`: also evaluate them together.
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
    """Read a YAML file. Raises `ConfigError` listing all structural errors."""
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
        faults.append("apart must be a list of options that appear in a grid")
    search = read_search(values.get("search"), faults)
    raise_faults(faults, path)
    if "data" in base:
        base["data"] = os.path.expandvars(str(base["data"]))
    about = str(values.get("about", ""))
    return Plan(path.stem, about, base, grid, variants, search, tuple(apart), switches["test"], switches["ensemble"])


def parse_forced(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` words -> options, with values parsed as YAML. Raises `ConfigError`."""
    import yaml

    known = [field.name for field in fields(TrainConfig)]
    forced = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in known:
            raise ConfigError(f"set {text}: expected an option and its value, as in epochs=3{nearest(name, known)}")
        try:
            forced[name] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError):  # for example a pattern that begins with an asterisk
            forced[name] = value
    return forced


def raise_faults(faults: Sequence[str], path: Path) -> None:
    """Raise `ConfigError` listing all errors, if there are any."""
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
