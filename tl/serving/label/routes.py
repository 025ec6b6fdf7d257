"""The routes of `tl label`: requests are checked, handed to the session, and its answer is written as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tl.annotation.model_making import Method
from tl.annotation.page_requests import Seen
from tl.annotation.session import ClassDo, Do, Done, LabelSession
from tl.annotation.views import Asked, View
from tl.serving.access import json_response
from tl.serving.local.access import LocalAccess
from tl.serving.local.app import RevisionStream, build_local_app, get, in_thread, post
from tl.serving.local.bodies import read_body, read_query
from tl.serving.local.images import image_routes, parse_id
from tl.serving.local.thumbnails import Thumbnails
from tl.serving.static import PAGES

FOLDERS = (PAGES / "label", PAGES / "images")


@dataclass(frozen=True)
class _StateQuery:
    window: str = ""


@dataclass(frozen=True, kw_only=True)
class _ListQuery:
    """`like`: numbers of images, separated by commas. The query's `class` is `name` here."""

    view: View
    name: str | None = None
    like: str = ""
    status: str | None = None
    search: str = ""
    window: str = ""
    kept: str = ""


@dataclass(frozen=True)
class _RecordsBody:
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _LabelBody:
    window: str
    images: tuple[Seen, ...]
    do: Do
    label: str | None = None
    confirmed: bool = False


@dataclass(frozen=True, kw_only=True)
class _NoteBody:
    window: str
    id: int
    version: int
    text: str


@dataclass(frozen=True)
class _WindowBody:
    window: str


@dataclass(frozen=True, kw_only=True)
class _ClassBody:
    window: str
    do: ClassDo
    name: str
    new_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class _ModelBody:
    method: Method
    name: str


def build_label_app(
    session: LabelSession, thumbnails: Thumbnails, stream: RevisionStream, access: LocalAccess
) -> ASGIApp:
    """Return the application of a session. `stream`: of its revisions."""
    return build_local_app(label_routes(session, thumbnails, stream), FOLDERS, access)


def label_routes(session: LabelSession, thumbnails: Thumbnails, stream: RevisionStream) -> Sequence[Route]:
    """Return the routes of a session."""

    def on(handler: Callable[[LabelSession, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        return partial(handler, session)

    return [
        get("/api/state", on(_state)),
        get("/api/list", on(_list)),
        post("/api/records", on(_records)),
        post("/api/label", on(_label)),
        post("/api/note", on(_note)),
        post("/api/undo", on(_undo)),
        post("/api/redo", on(_redo)),
        post("/api/classes", on(_classes)),
        post("/api/model", on(_model)),
        post("/api/model/cancel", on(_cancel_model)),
        get("/api/events", stream.answer),
        get("/api/image/{id}/info", on(_info)),
        *image_routes(thumbnails, len(session.photos)),
    ]


async def _state(session: LabelSession, request: Request) -> Response:
    asked = read_query(request, _StateQuery)
    return json_response(await in_thread(session.state, asked.window))


async def _list(session: LabelSession, request: Request) -> Response:
    asked = read_query(request, _ListQuery, {"class": "name"})
    like, kept = (
        tuple(parse_id(text, len(session.photos)) for text in texts.split(",") if text)
        for texts in (asked.like, asked.kept)
    )
    view = Asked(asked.view, asked.name, like, asked.status, asked.search, asked.window, kept)
    revision, ids = await in_thread(session.list_images, view)
    return json_response({"revision": revision, "view": asked.view, "ids": ids})


async def _records(session: LabelSession, request: Request) -> Response:
    body = await read_body(request, _RecordsBody)
    return json_response({"records": await in_thread(session.records, body.ids)})


async def _label(session: LabelSession, request: Request) -> Response:
    body = await read_body(request, _LabelBody)
    act = partial(session.act, body.window, body.images, body.do, label=body.label, confirmed=body.confirmed)
    return _done(await in_thread(act))


async def _note(session: LabelSession, request: Request) -> Response:
    body = await read_body(request, _NoteBody)
    return _done(await in_thread(session.note, body.window, Seen(body.id, body.version), body.text))


async def _undo(session: LabelSession, request: Request) -> Response:
    return _done(await in_thread(session.undo, (await read_body(request, _WindowBody)).window))


async def _redo(session: LabelSession, request: Request) -> Response:
    return _done(await in_thread(session.redo, (await read_body(request, _WindowBody)).window))


async def _classes(session: LabelSession, request: Request) -> Response:
    body = await read_body(request, _ClassBody)
    return _done(await in_thread(session.change_class, body.window, body.do, body.name, body.new_name))


async def _model(session: LabelSession, request: Request) -> Response:
    body = await read_body(request, _ModelBody)
    await in_thread(session.make_model, body.method, body.name)
    return json_response({"revision": session.revision})


async def _cancel_model(session: LabelSession, request: Request) -> Response:
    await in_thread(session.cancel_model)
    return json_response({"revision": session.revision})


async def _info(session: LabelSession, request: Request) -> Response:
    image = parse_id(request.path_params["id"], len(session.photos))
    return json_response(await in_thread(session.info, image))


def _done(done: Done) -> Response:
    """The answer to an action: {revision, event, records, conflicts}."""
    return json_response(
        {"revision": done.revision, "event": done.event, "records": done.records, "conflicts": done.conflicts}
    )
