"""Read and write training options: YAML and flags to a config, and a config to YAML and to the user's own choices.

Does not know which options can be combined (`options`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tl.errors import ConfigError, MissingExtraError
from tl.trainer.config import PRESETS, TrainConfig
from tl.trainer.defaults import FROM_SOLVED_HEAD
from tl.trainer.options import nearest, raise_faults, resolve

# Options from versions before 0.1.
_OLD_NAMES = {"normalise": "normalize", "head_start": "head_init"}


def config_from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A config from parsed YAML or flags. Raises `ConfigError` naming unknown keys and wrong types, with the fix."""
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:  # pydantic is installed with albumentations
        raise MissingExtraError("training requires additional packages: pip install 'tl-toolkit[train]'") from error
    values = {_OLD_NAMES.get(key, key): value for key, value in values.items()}
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    faults = [_unknown_fault(key, names) for key in values if key not in names]
    try:
        plain = {key: value for key, value in values.items() if key in names}
        if isinstance(plain.get("freeze"), int):
            plain["freeze"] = str(plain["freeze"])  # YAML parses a number of stages as an integer
        plain |= {key: _as_text(plain[key]) for key in ("channels", "project") if key in plain}
        config = TypeAdapter(TrainConfig).validate_python(plain)
    except ValidationError as error:
        faults += _type_faults(error.errors())
        raise_faults(faults, where)
        raise
    raise_faults(faults, where)
    return config


def _as_text(value: Any) -> Any:
    """A number or a list of numbers and names, as YAML has them, in the form of a flag."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if type(value) is int else value


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML config file into a mapping. Raises `ConfigError`."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("config files require additional packages: pip install 'tl-toolkit[train]'") from error
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a config file (nested too deeply)") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not UTF-8, numbers of 4300 digits
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'option: value' lines")
    return values


def dump_config(config: TrainConfig) -> str:
    """The config as YAML text that `load_config` can read."""
    import yaml

    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config with absolute paths, so that the run can be resumed, repeated and exported from any folder."""
    words = {"none", "imagenet", "names", *PRESETS}  # keywords, kept even if a folder of the same name exists
    paths = {
        name: getattr(config, name)
        for name in ("data", "unlabeled", "images", "weights", "augment", "taxonomy", "boxes")
    }
    absolute = {
        name: os.path.abspath(path)
        for name, path in paths.items()
        if path is not None and path not in words and os.path.exists(path)
    }
    return dataclasses.replace(config, **absolute)


def own_choices(config: TrainConfig) -> dict[str, Any]:
    """The smallest set of options that resolves to the same config: the user's choices without derived values."""
    chosen = vars(config).copy()
    # Fine-tuning from a solved head follows from an open optimizer, so its options are opened together; otherwise the
    # optimizer is opened late and the method last, because other defaults depend on them.
    together = [(*FROM_SOLVED_HEAD, "lr", "layer_lr_decay", "interpolate", "drop_epochs", "monitor")]
    late = ("optimizer", "method")
    order = [*(name for name in _may_be_open() if name not in late), *late]
    for names in [*together, *((name,) for name in order)]:
        shorter = {**chosen, **dict.fromkeys(names)}
        with suppress(ConfigError):
            if resolve(TrainConfig(**shorter)) == config:
                chosen = shorter
    return {name: value for name, value in chosen.items() if value is not None}


def _may_be_open() -> list[str]:
    return [field.name for field in dataclasses.fields(TrainConfig) if field.default is None]


def _unknown_fault(key: object, names: list[str]) -> str:
    return f"unknown option '{key}'{nearest(str(key), names)}"


def _type_faults(errors: Sequence[Any]) -> list[str]:
    """One error per option, however many types pydantic tried for it."""
    by_place: dict[str, list[str]] = {}
    for error in errors:
        name, *within = error["loc"]
        place = ".".join(str(part) for part in (name, *(part for part in within if isinstance(part, int))))
        found = by_place.setdefault(f"{place}: ", [f"{error['input']!r}"])
        found.append(f"{error['msg'][0].lower()}{error['msg'][1:]}")
    return [f"{place}{' or '.join(messages)}, found {found}" for place, (found, *messages) in by_place.items()]
