"""The routes of the page of a review: JSON in, one call of the review, JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tl.annotation.page_requests import Seen, check_window
from tl.annotation.review import Outcome, Review
from tl.annotation.reviewed import CHANGE_COLUMNS
from tl.errors import ImageReadError
from tl.serving.access import json_response
from tl.serving.local.access import LocalAccess
from tl.serving.local.app import RevisionStream, build_local_app, get, in_thread, post
from tl.serving.local.bodies import read_body, read_query
from tl.serving.local.images import image_routes, parse_id
from tl.serving.local.thumbnails import Thumbnails
from tl.serving.static import PAGES
from tl.text import encodable

_FOLDERS = (PAGES / "review", PAGES / "images")
# Of one request for records, and of one decision, which one undo takes back.
_MAX_IDS, _MAX_DECIDED = 400, 5000


@dataclass(frozen=True)
class _State:
    window: str = ""


@dataclass(frozen=True)
class _List:
    kind: str = ""
    status: Literal["open", "decided", "all"] = "open"


@dataclass(frozen=True)
class _Records:
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Decide:
    window: str
    images: tuple[Seen, ...]
    do: Literal["keep", "accept", "relabel", "drop", "duplicate", "group"]
    label: str | None = None
    of: int | None = None


@dataclass(frozen=True)
class _Note:
    window: str
    id: int
    version: int
    text: str


@dataclass(frozen=True)
class _Turn:
    window: str


class ReviewApi:
    """Answers the requests of the page. `commands`: what to run with the output, one line each."""

    def __init__(self, review: Review, commands: Sequence[str] = ()) -> None:
        self._review, self._commands = review, list(commands)
        self.stream = RevisionStream(lambda: review.revision)

    def routes(self) -> list[Route]:
        """Return the routes below /api."""
        return [
            get("/api/state", self._state),
            get("/api/list", self._list),
            get("/api/changes", self._changes),
            get("/api/events", self.stream.answer),
            post("/api/records", self._records),
            post("/api/decide", self._decide),
            post("/api/note", self._note),
            post("/api/undo", self._undo),
            post("/api/redo", self._redo),
        ]

    async def _state(self, request: Request) -> Response:
        asked = read_query(request, _State)
        state = await in_thread(self._review.state, asked.window)
        return json_response(_shown(state | {"commands": self._commands}))

    async def _list(self, request: Request) -> Response:
        asked = read_query(request, _List)
        if asked.kind and asked.kind not in self._review.items.kinds:
            raise HTTPException(404, "there are no problems of this kind")
        places = await in_thread(self._review.list_places, asked.kind or None, asked.status)
        return json_response({"revision": self._review.revision, "kind": asked.kind, "ids": places})

    async def _changes(self, request: Request) -> Response:
        changes = await in_thread(self._review.changes)
        rows = [dict(zip(CHANGE_COLUMNS, change.cells, strict=True)) for change in changes]
        places = self._review.places
        told = [row | {"id": places.get(row["path"])} for row in rows]
        return json_response(_shown({"revision": self._review.revision, "changes": told}))

    async def _records(self, request: Request) -> Response:
        asked = await read_body(request, _Records)
        return await self._answer(self._check_ids(asked.ids))

    async def _decide(self, request: Request) -> Response:
        asked = await read_body(request, _Decide)
        if not asked.images:
            raise HTTPException(400, "names no image")
        if (asked.do == "relabel") != (asked.label is not None):
            raise HTTPException(400, "a label belongs to relabel, and only to it")
        self._check_ids([one.id for one in asked.images], _MAX_DECIDED)
        if asked.of is not None:
            self._check_ids([asked.of])
        label = asked.label or ""
        return await self._act(self._review.decide, check_window(asked.window), asked.images, asked.do, label, asked.of)

    async def _note(self, request: Request) -> Response:
        asked = await read_body(request, _Note)
        self._check_ids([asked.id])
        seen = Seen(asked.id, asked.version)
        return await self._act(self._review.write_note, check_window(asked.window), seen, asked.text)

    async def _undo(self, request: Request) -> Response:
        return await self._turn(request, "undo")

    async def _redo(self, request: Request) -> Response:
        return await self._turn(request, "redo")

    async def _turn(self, request: Request, do: str) -> Response:
        asked = await read_body(request, _Turn)
        return await self._act(self._review.turn, check_window(asked.window), do)

    async def _act(self, act: Callable[..., Outcome], *args: Any) -> Response:
        outcome = await in_thread(act, *args)
        return await self._answer(outcome.changed, outcome.conflicts)

    async def _answer(self, ids: Sequence[int], conflicts: Sequence[int] = ()) -> Response:
        """Answer with the records as they are now."""
        records = await in_thread(self._review.records, [*ids, *conflicts])
        told = {"revision": self._review.revision, "records": records[: len(ids)], "conflicts": records[len(ids) :]}
        return json_response(_shown(told))

    def _check_ids(self, ids: Sequence[int], most: int = _MAX_IDS) -> Sequence[int]:
        if len(ids) > most or len(set(ids)) < len(ids):
            raise HTTPException(400, f"a request has at most {most:,} images, each once")
        for one in ids:
            parse_id(str(one), len(self._review.items.images))
        return ids


def _shown(value: Any) -> Any:
    """A value of JSON whose texts may be names that are not UTF-8."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {key: _shown(one) for key, one in value.items()}
    return [_shown(one) for one in value] if isinstance(value, list | tuple) else value


def build_review_app(api: ReviewApi, review: Review, thumbnails: Thumbnails, access: LocalAccess) -> ASGIApp:
    """Return the application of the page."""
    routes = [*api.routes(), *image_routes(thumbnails, len(review.items.images))]
    return build_local_app(routes, _FOLDERS, access)


def open_thumbnails(review: Review) -> Thumbnails:
    """Return what makes the small images. Only those with a problem, and what is shown with them, are needed."""
    images = review.items.images

    def locate(place: int) -> str:
        path = images[place].path
        if not Path(path).is_file():
            raise ImageReadError(path, "no such file")
        return path

    return Thumbnails(locate, len(images), fills=False)
