"""Read JSON bodies and query parameters into frozen dataclasses; everything that is not exactly expected is refused."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tl.serving.limits import Limits, Load

Body = TypeVar("Body")
# No request of a local page needs more: lists have at most a few hundred images.
LIMITS = Limits(max_body_mb=1, timeout_s=10, receive_s=20, max_buffer_mb=32, max_connections=128)
_load = Load(LIMITS)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """Return the body of a request as a dataclass. Raises `HTTPException` with 400, 408, 413 or 415.

    Only `application/json` is accepted, which pages of other sites cannot send without being asked for permission.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "a body must have the content type application/json")
    with _load.buffer() as buffer:
        content = await buffer.read(request)
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON ({error})"[:200]) from None
    return cast("Body", parse_value("the body", kind, found))


def read_query(request: Request, kind: type[Body], names: Mapping[str, str] = MappingProxyType({})) -> Body:
    """Return the query parameters of a request, all of them texts, as a dataclass. Raises `HTTPException` with 400.

    `names`: a parameter -> the field that takes it, where these differ.
    """
    pairs = [(names.get(name, name), value) for name, value in request.query_params.multi_items()]
    if len({name for name, _ in pairs}) < len(pairs):
        raise HTTPException(400, "a parameter is given twice")
    return cast("Body", parse_value("the query", kind, dict(pairs)))


def parse_value(place: str, kind: Any, value: Any) -> Any:
    """Return a value of JSON as a `kind`: a dataclass, str, int, bool, Literal, tuple, or any of these or None.

    Fields without a default are required. Raises `HTTPException` with 400 that names the place.
    """
    if dataclasses.is_dataclass(kind):
        return _parse_object(place, cast("type", kind), value)
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (one for one in get_args(kind) if one is not type(None))
        return None if value is None else parse_value(place, inner, value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise HTTPException(400, f"{place} must be one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise HTTPException(400, f"{place} must be a list")
        return tuple(parse_value(f"{place}[{n}]", get_args(kind)[0], one) for n, one in enumerate(value))
    if type(value) is not kind:
        names = {str: "a text", int: "a whole number", bool: "true or false"}
        raise HTTPException(400, f"{place} must be {names[kind]}")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _parse_object(place: str, kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise HTTPException(400, f"{place} must be an object")
    hints, known = _hints(kind), dataclasses.fields(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise HTTPException(400, f"{place} has an unknown field: {unknown[0][:100]}")
    if lacking := [one.name for one in known if one.default is dataclasses.MISSING and one.name not in value]:
        raise HTTPException(400, f"{place} lacks the field {lacking[0]}")
    return kind(**{name: parse_value(f"{place}.{name}", hints[name], one) for name, one in value.items()})
