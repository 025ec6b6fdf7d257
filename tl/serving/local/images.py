"""The routes of small images: /thumb/{id} and /view/{id}, with the headers that let browsers keep them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tl.errors import ImageReadError
from tl.serving.access import error_response
from tl.serving.limits import CONNECTION, Connection
from tl.serving.local.app import get
from tl.serving.local.thumbnails import THUMB_PX, VIEW_PX, Thumbnails
from tl.text import encodable

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,8})", re.ASCII)
# The number of an image names another photo when the command is started anew, so that a browser must ask each time
# whether what it has is still right, which costs no image.
_CACHE_CONTROL = "private, no-cache"


def parse_id(text: str, count: int) -> int:
    """Return the number of an image, 0..count-1, in its usual spelling. Raises `HTTPException` with 404."""
    if not _NUMBER.fullmatch(text) or int(text) >= count:
        raise HTTPException(404, "there is no such image")
    return int(text)


def image_routes(thumbnails: Thumbnails, count: int) -> Sequence[Route]:
    """Return the routes of the small images of `count` images."""

    async def thumb(request: Request) -> Response:
        return await _answer(request, thumbnails, count, THUMB_PX)

    async def view(request: Request) -> Response:
        return await _answer(request, thumbnails, count, VIEW_PX)

    return [get("/thumb/{id}", thumb), get("/view/{id}", view)]


async def _answer(request: Request, thumbnails: Thumbnails, count: int, longest: int) -> Response:
    """Answer with an image, 304 if the browser has it, or 422 with the reason why it cannot be shown."""
    future = thumbnails.ask(parse_id(request.path_params["id"], count), longest)
    connection = request.scope.get(CONNECTION) or Connection()
    connection.when_lost(future.cancel)  # scrolled past
    try:
        small = await asyncio.wrap_future(future)
    except ImageReadError as error:
        return error_response(422, encodable(error.reason))
    except asyncio.CancelledError:
        return error_response(503, "this image is not needed any more, or the server stops")
    headers = {"etag": f'"{small.tag}"', "cache-control": _CACHE_CONTROL}
    if headers["etag"] in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(small.content, headers=headers, media_type="image/jpeg")
