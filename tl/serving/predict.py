"""POST /predict: uploaded images -> the results that `tl predict` writes, as JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tl.errors import TlError
from tl.runtime.ensembles.selective import REJECTED
from tl.runtime.explain.drawing import draw_evidence
from tl.runtime.explain.explanation import explain
from tl.runtime.predictor import Predictor
from tl.runtime.results import Classification, Failure, Result
from tl.serving.access import json_response
from tl.serving.limits import Load
from tl.serving.metrics import Metrics
from tl.serving.models import ModelStore, ServedModel
from tl.serving.multipart import Upload, parse_form
from tl.serving.workers import Workers

Answer = TypeVar("Answer")
FIELD = "images"
# A larger body is parsed in a worker: it would keep all other clients waiting.
_SMALL = 1 << 20
_FLAGS = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


@dataclass(frozen=True)
class Server:
    """The parts that requests are answered with."""

    models: ModelStore
    workers: Workers
    load: Load
    metrics: Metrics

    def model(self, name: str | None, version: str = "") -> ServedModel:
        """Return a model. Raises 404."""
        try:
            return self.models.get(name, version)
        except KeyError as error:
            raise HTTPException(404, error.args[0]) from error

    async def parse(self, request: Request, body: bytes, parse: Callable[[bytes], Answer]) -> Answer:
        """Parse a body, a large one outside of the event loop."""
        if len(body) <= _SMALL:
            return parse(body)
        (parsed,) = await self.load.wait(request, self.workers.run([lambda: parse(body)]))
        return parsed


@dataclass(frozen=True)
class Options:
    """What a request asks for besides its images."""

    model: str | None = None
    explain: bool = False
    coverage: float | None = None


def parse_options(given: Mapping[str, str]) -> Options:
    """Read options from the query and the form. Raises 400 for an unknown or invalid one."""
    known = ("model", "explain", "coverage")
    for name in given:
        if name not in known:
            near = get_close_matches(name, [*known, FIELD], n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise HTTPException(400, f"unknown field {name[:80]!r}{hint}: expected {FIELD}, {', '.join(known)}")
    flag = given.get("explain", "false").lower()
    if flag not in _FLAGS:
        raise HTTPException(400, f"explain must be true or false, found {flag[:80]!r}")
    coverage = given.get("coverage", "")
    try:
        share = float(coverage) if coverage else None
    except ValueError:
        share = 0.0
    if share is not None and not 0 < share < 1:
        raise HTTPException(400, f"coverage must be a number between 0 and 1, found {coverage[:80]!r}")
    return Options(given.get("model") or None, _FLAGS[flag], share)


async def predict(server: Server, request: Request) -> Response:
    """Answer a request."""
    with server.load.buffer() as buffer:
        body = await buffer.read(request)
        content_type, most = request.headers.get("content-type", ""), server.load.limits.max_images
        form = await server.parse(request, body, lambda body: parse_form(content_type, body, FIELD, most))
        del body  # the uploads are copies
        query = {name: value for name, value in request.query_params.items() if name != "token"}
        options = parse_options({**query, **form.fields})
        model = server.model(options.model)
        uploads = form.files.get(FIELD, [])
        if not uploads:
            raise HTTPException(400, f"no images: send files as fields named {FIELD!r}")
        predictor = chosen_predictor(model, options)
        with server.load.place(), model_errors(model):
            results = await server.load.wait(
                request, server.workers.predict(predictor, [one.content for one in uploads])
            )
            plain = [{**each.as_dict(), "path": one.filename} for each, one in zip(results, uploads, strict=True)]
            if options.explain:
                jobs = [partial(_overlay, model, *pair) for pair in zip(uploads, results, strict=True)]
                for one, overlay in zip(plain, await server.load.wait(request, server.workers.run(jobs)), strict=True):
                    one |= overlay
    failed = sum(isinstance(each, Failure) for each in results)
    server.metrics.count_images(model.name, len(results) - failed, failed)
    return json_response({"model": model.name, "results": plain})


def chosen_predictor(model: ServedModel, options: Options) -> Predictor[Any]:
    """Return the predictor for some options. Raises 400 if the model does not support them."""
    if options.explain and not model.has_explanation:
        raise HTTPException(
            400, f"model {model.name} cannot explain its predictions: that needs a single classifier that was exported "
            "with class activation maps"
        )  # fmt: skip
    if options.coverage is None:
        return model.predictor
    if model.source.votes:
        raise HTTPException(400, f"model {model.name} is an ensemble, which supports no coverage: ask a single model")
    try:
        return model.with_coverage(options.coverage)
    except TlError as error:
        raise HTTPException(400, model.without_paths(str(error))) from error


class model_errors:  # noqa: N801  # a context manager
    """Turns a failure of a model file into 500, without the folders of this machine."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise 500 for an error of a model."""
        if isinstance(error, TlError):
            raise HTTPException(500, self._model.without_paths(str(error))) from error


def _overlay(model: ServedModel, upload: Upload, result: Result) -> dict[str, str]:
    """Return the photo with the regions that explain its label, as a data URL; nothing for an unreadable image."""
    if not isinstance(result, Classification):
        return {}
    label = None if result.label == REJECTED else result.label
    found = explain(model.predictor, upload.content, label)
    buffer = BytesIO()
    draw_evidence(upload.content, found, model.contract.preprocessing).save(buffer, "JPEG", quality=85)
    return {"overlay": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
