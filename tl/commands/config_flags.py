"""Generate command-line flags from the fields of `TrainConfig`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Annotated, Any, get_args, get_type_hints

import typer

from tl.commands.requests import parameter
from tl.trainer.config import TrainConfig

# The options that matter most. Help shows them before the panels of the others.
_MAIN = {"out", "method", "backbone", "head", "epochs", "augment", "test", "device"}


def config_parameters(names: Collection[str]) -> list[inspect.Parameter]:
    """Return a keyword parameter for each named option; `data` becomes the positional argument."""
    hints = get_type_hints(TrainConfig)
    parameters = []
    for field in dataclasses.fields(TrainConfig):
        if field.name not in names:
            continue
        default = "" if field.default in (None, "", False) else f" [default: {_shown(field.default)}]"
        help_text = field.metadata["help"] + default
        if field.name == "data":
            info: Any = typer.Argument(help=help_text, show_default=False)
        else:
            flags = ("--out", "-o") if field.name == "out" else ()
            panel = None if field.name in _MAIN else field.metadata["panel"]
            info = typer.Option(*flags, help=help_text, rich_help_panel=panel, show_default=False)
        parameters.append(parameter(field.name, Annotated[_flag_type(hints[field.name]), info]))
    return parameters


def given_values(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, in the form of a config file."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in flags.items() if v is not None}


def _flag_type(hint: Any) -> Any:
    """Return an optional type, so that an absent flag does not override a config file with its default."""
    kinds = {kind for kind in (hint, *get_args(hint)) if kind is not type(None)}
    for item in (int, float, str):
        if tuple[item, ...] in kinds:  # type: ignore[valid-type]  # a variable as a type
            return list[item] | None  # type: ignore[valid-type]
    arguments = [kind for kind in get_args(hint) if kind is not type(None)]
    if len(arguments) > 1 and float in arguments:  # a number or a word; parsed with the config
        return str | None
    return hint if type(None) in get_args(hint) else hint | None


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
