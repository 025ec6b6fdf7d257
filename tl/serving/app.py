"""The routes of the server: one line for each, and the answers that need no computing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from tl import __version__
from tl.serving.access import Access, Gate, http_error, internal_error, json_response
from tl.serving.inference_protocol import described_names, infer, model_metadata, server_metadata
from tl.serving.metrics import CONTENT_TYPE
from tl.serving.models import ServedModel
from tl.serving.openapi import describe_api
from tl.serving.predict import Server, predict
from tl.serving.static import PAGES, mount_page

PAGE = PAGES / "predict"
Handler = Callable[[Server, Request], Awaitable[Response]]


def build_app(server: Server, access: Access, *, reload_s: float | None = 1.0, page: Path = PAGE) -> ASGIApp:
    """Return the ASGI application. `reload_s`: how often replaced model files are looked for, None for never."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if reload_s is not None:
            server.models.watch(reload_s)
        yield
        server.models.close()
        server.workers.close()

    app = Starlette(
        routes=_routes(server, page),
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Gate(app, access, server.metrics, {"/predict": _endpoint(predict, server)})


def _routes(server: Server, page: Path) -> list[BaseRoute]:
    def get(path: str, handler: Handler) -> Route:
        return Route(path, _endpoint(handler, server), methods=["GET"])

    def post(path: str, handler: Handler) -> Route:
        return Route(path, _endpoint(handler, server), methods=["POST"])

    routes: list[BaseRoute] = [post("/predict", predict), get("/info", _info)]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [post(f"{model}/infer", infer), get(model, _metadata), get(f"{model}/ready", _model_ready)]
    routes += [
        get("/v2", _server_metadata),
        get("/v2/health/live", _healthy),
        get("/v2/health/ready", _healthy),
        get("/v2/models", _model_names),
        get("/metrics", _metrics),
        get("/openapi.json", _openapi),
    ]
    if page.is_dir():
        routes.append(mount_page(page))
    return routes


def _endpoint(handler: Handler, server: Server) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(server, request)

    return endpoint


async def _info(server: Server, request: Request) -> Response:
    models = [describe_model(server, model) for model in server.models.all()]
    return json_response({"models": models, "limits": server.load.limits.shown(), "tl_version": __version__})


def describe_model(server: Server, model: ServedModel) -> dict[str, Any]:
    """Return what /info says of a model."""
    height, width, channels = model.contract.preprocessing.input_shape
    return {
        "name": model.name,
        **described_names(model),
        "input_hw": [height, width],
        "input_channels": channels,
        "ensemble": model.source.votes,
        "member_names": list(model.predictor.member_names) if model.source.votes else [],
        "has_explanation": model.has_explanation,
        "supports_coverage": model.supports_coverage,
        "ood_limit": None if model.source.votes or model.contract.ood is None else model.contract.ood.limit,
        "version": model.version,
        "reload_error": server.models.fault(model.name),
    }


async def _server_metadata(server: Server, request: Request) -> Response:
    return json_response(server_metadata())


async def _healthy(server: Server, request: Request) -> Response:
    """Models are open before the server listens, so it is ready as soon as it answers."""
    return json_response({"live": True} if request.url.path.endswith("live") else {"ready": True})


async def _model_names(server: Server, request: Request) -> Response:
    return json_response({"models": [model.name for model in server.models.all()]})


async def _metadata(server: Server, request: Request) -> Response:
    return json_response(model_metadata(_named(server, request)))


async def _model_ready(server: Server, request: Request) -> Response:
    return json_response({"name": _named(server, request).name, "ready": True})


def _named(server: Server, request: Request) -> ServedModel:
    return server.model(request.path_params["name"], request.path_params.get("version", ""))


async def _metrics(server: Server, request: Request) -> Response:
    return Response(server.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def _openapi(server: Server, request: Request) -> Response:
    return json_response(describe_api(server.load.limits))


async def _http_error(request: Request, error: Exception) -> Response:
    return http_error(request, error, request.url.path[:200], ": /openapi.json lists what this server answers")


async def _internal_error(request: Request, error: Exception) -> Response:
    """A fault of this program: its details are in the server's log, which has the traceback, not in the answer."""
    return internal_error()
