"""Commands with one typed request: a frozen dataclass whose fields are the command's flags.

A field is declared as for Typer, `Annotated[type, typer.Option(...)] = default`. A field that is itself such a
dataclass contributes its own fields, so commands share groups of flags. Options without `rich_help_panel` are those
that matter most; help shows them first.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, TypeGuard, TypeVar, cast, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from tl.errors import ConfigError

Request = TypeVar("Request")


def from_flags(run: Callable[[Request], None]) -> Callable[..., None]:
    """Turn a function of one request into a function of its flags, for Typer. Use as a decorator."""
    (name,) = inspect.signature(run).parameters
    kind = cast("type[Request]", get_type_hints(run)[name])

    def command(**flags: object) -> None:
        run(_build(kind, flags))

    set_parameters(command, _parameters(kind), run.__doc__ or "")
    return command


def set_parameters(command: Callable[..., None], parameters: Collection[inspect.Parameter], text: str) -> None:
    """Set the flags and the help text that Typer reads from a command."""
    command.__signature__ = inspect.Signature([*parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = text


def parameter(name: str, annotation: object, default: object = None) -> inspect.Parameter:
    """Return a keyword parameter in the form that Typer reads."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def given(flags: object) -> list[str]:
    """Return the options of a group of flags whose values differ from their defaults, as in `["--crop-margin"]`."""
    return [
        _option(name, annotation)
        for name, annotation, default in _fields(type(flags))
        if getattr(flags, name) != default
    ]


def refuse_given(flags: object, why: str) -> None:
    """Raise `ConfigError` if any flag of a group is given: it does not apply and would be ignored."""
    if named := given(flags):
        raise ConfigError(f"{', '.join(named)}: {why}")


def _fields(kind: type) -> Iterator[tuple[str, object, object]]:
    """Yield the name, the annotation and the default of each field."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        yield field.name, hints[field.name], inspect.Parameter.empty if default is dataclasses.MISSING else default


def _parameters(kind: type) -> list[inspect.Parameter]:
    parameters: list[inspect.Parameter] = []
    for name, annotation, default in _fields(kind):
        if _is_group(annotation):
            parameters += _parameters(annotation)
        else:
            parameters.append(parameter(name, annotation, default))
    return parameters


def _build(kind: type[Request], flags: Mapping[str, object]) -> Request:
    values: dict[str, object] = {}
    for name, annotation, _ in _fields(kind):
        values[name] = _build(annotation, flags) if _is_group(annotation) else flags[name]
    return kind(**values)


def _is_group(annotation: object) -> TypeGuard[type]:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _option(name: str, annotation: object) -> str:
    info = get_args(annotation)[1] if get_origin(annotation) is Annotated else None
    # Typer takes the first name of an annotated option for its default.
    names = [info.default, *(info.param_decls or ())] if isinstance(info, OptionInfo) else []
    declared = [word for word in names if isinstance(word, str) and word.startswith("--")]
    return declared[0].split("/")[0] if declared else "--" + name.replace("_", "-")
