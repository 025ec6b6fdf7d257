"""The Open Inference Protocol, version 2, over HTTP: metadata, and inference with tensors.

Sources: KServe, "Open Inference Protocol V2"; Triton, "Classification Extension". `tensors` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tl import __version__
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.results import Classification, Failure, Multilabel, Result
from tl.serving.access import json_response
from tl.serving.models import ServedModel
from tl.serving.predict import Server, model_errors
from tl.serving.tensors import InputSpec, OutputTensor, Texts, read_input

_MOST_DIGITS = 18
HEADER_LENGTH = "inference-header-content-length"
RAW, ENCODED = "images", "encoded_images"
# Outputs of model files that are computed from results, under the same or another name.
_IN_RESULTS = (
    "probabilities",
    "label",
    "member_probabilities",
    "ood_score",
    "keypoints",
    "keypoint_confidence",
    "values",
)


@dataclass(frozen=True)
class Output:
    """An output that is computed from results. `shape`: of one image."""

    datatype: str
    shape: tuple[int, ...]
    values: Callable[[Sequence[Any]], NDArray[Any] | Texts]


@dataclass(frozen=True)
class Wanted:
    """A requested output. `classes`: the K of the classification extension, 0 for the tensor itself."""

    name: str
    is_binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A parsed request. `sources`: one per image, a file or the prepared pixels."""

    request_id: str | None
    sources: Sequence[bytes | dict[Preprocessing, NDArray[np.uint8]]]
    outputs: Sequence[Wanted]


def server_metadata() -> dict[str, Any]:
    """Return the answer to GET /v2."""
    return {"name": "tl", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Return the answer to GET /v2/models/NAME; `parameters` adds the names and units of the values."""
    outputs = [
        {"name": name, "datatype": one.datatype, "shape": [-1, *one.shape]}
        for name, one in result_outputs(model).items()
    ]
    outputs += [_described(model, name) for name in graph_outputs(model)]
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": [one.plain() for one in model_inputs(model)],
        "outputs": outputs,
        "parameters": described_names(model),
    }


def _described(model: ServedModel, name: str) -> dict[str, Any]:
    kind, shape = model.predictor.ensemble.sessions[0].output(name)
    return {
        "name": name,
        "datatype": "INT64" if kind == "tensor(int64)" else "FP32",
        "shape": [-1 if size is None else size for size in (None, *shape[1:])],
    }


def described_names(model: ServedModel) -> dict[str, Any]:
    """Return the task and the names of what a model predicts, in the order of its outputs."""
    predictor, contract = model.predictor, model.contract
    plain: dict[str, Any] = {"task": model.task}
    if predictor.class_names:
        plain["class_names"] = list(predictor.class_names)
    if contract.landmarks is not None:
        plain["keypoint_names"] = list(predictor.keypoint_names)
        plain["skeleton"] = [list(line) for line in contract.landmarks.skeleton]
    if contract.regression is not None:
        pairs = zip(contract.regression.target_names, contract.regression.units, strict=True)
        plain["targets"] = [{"name": name, "unit": unit} for name, unit in pairs]
    return plain


def model_inputs(model: ServedModel) -> list[InputSpec]:
    """Return the inputs: image files, and pixels of the input size where these determine the result."""
    encoded, shared = InputSpec(ENCODED, "BYTES", (-1,)), shared_preprocessing(model)
    return [encoded] if shared is None else [InputSpec(RAW, "UINT8", (-1, *shared.input_shape)), encoded]


def shared_preprocessing(model: ServedModel) -> Preprocessing | None:
    """Return the only preprocessing of all members; None if there are several, or photos have places in the result."""
    preparer = model.predictor.ensemble.preparer
    return preparer.preprocessings[0] if preparer is not None and len(preparer.preprocessings) == 1 else None


def graph_outputs(model: ServedModel) -> list[str]:
    """Return the further outputs of a single model file, such as `embedding`, which are computed on request."""
    is_alone = not model.source.votes and shared_preprocessing(model) is not None
    return [name for name in model.contract.outputs if name not in _IN_RESULTS] if is_alone else []


def result_outputs(model: ServedModel) -> dict[str, Output]:
    """Return the outputs that every request computes."""
    fields, count = model.predictor.fields, len(model.predictor.class_names)
    if model.task == "landmarks":
        points = len(model.predictor.keypoint_names)
        found = {"keypoints": Output("FP32", (points, 2), partial(_floats, "keypoints_xy"))}
        if getattr(fields, "with_confidence", False):
            found["keypoint_confidence"] = Output("FP32", (points,), partial(_floats, "confidence"))
        return found
    if model.task == "regression":
        return {"values": Output("FP32", (len(model.contract.target_names),), partial(_floats, "values"))}
    found = {"probabilities": Output("FP32", (count,), partial(_floats, "probabilities"))}
    if model.task == "multilabel":
        found["labels"] = Output("BOOL", (count,), _has_labels)
    else:
        found["label"] = Output("BYTES", (1,), lambda results: [[one.label.encode()] for one in results])
        found["confidence"] = Output("FP32", (1,), lambda results: _floats("confidence", results)[:, None])
    if getattr(fields, "with_ood_score", False):
        found["ood_score"] = Output("FP32", (1,), lambda results: _floats("ood_score", results)[:, None])
    return found


def _floats(name: str, results: Sequence[Any]) -> NDArray[np.float32]:
    return np.array([getattr(one, name) for one in results], np.float32)


def _has_labels(results: Sequence[Multilabel]) -> NDArray[np.bool_]:
    return np.array([[name in one.labels for name in one.class_names] for one in results], np.bool_)


async def infer(server: Server, request: Request) -> Response:
    """Answer POST /v2/models/NAME/infer."""
    model = server.model(request.path_params["name"], request.path_params.get("version", ""))
    length, most = request.headers.get(HEADER_LENGTH), server.load.limits.max_images
    with server.load.buffer() as buffer:
        body = await buffer.read(request)
        wanted = await server.parse(request, body, lambda body: parse_request(body, length, model, most))
        del body
        with server.load.place(), model_errors(model):
            sources = wanted.sources
            names = [one.name for one in wanted.outputs if one.name in graph_outputs(model)]
            if names:  # both runs take the same prepared images
                sources = await server.load.wait(request, server.workers.prepare(model.predictor, sources))
                _refuse_unread(server, model, sources)
            results = await server.load.wait(request, server.workers.predict(model.predictor, sources))
            _refuse_unread(server, model, results)
            server.metrics.count_images(model.name, len(results), 0)
            further: dict[str, NDArray[Any]] = {}
            if names:
                (further,) = await server.load.wait(request, server.workers.run([partial(_run, model, sources, names)]))
    return answer(model, wanted, results, further)


def _refuse_unread(server: Server, model: ServedModel, found: Sequence[Any]) -> None:
    """Raise 400 for the first image that could not be read."""
    failed = [(n, one.error) for n, one in enumerate(found) if isinstance(one, Failure)]
    if failed:
        server.metrics.count_images(model.name, len(found) - len(failed), len(failed))
        raise HTTPException(400, f"{ENCODED}[{failed[0][0]}]: {failed[0][1]}")


def _run(model: ServedModel, prepared: Sequence[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Run outputs that results do not contain."""
    ensemble, shared = model.predictor.ensemble, shared_preprocessing(model)
    (session,) = ensemble.sessions
    return dict(zip(names, session.run(ensemble.stack(prepared)[shared], names), strict=True))


def parse_request(body: bytes, header_length: str | None, model: ServedModel, max_images: int) -> InferRequest:
    """Parse JSON, and the tensors after its first `header_length` bytes. Raises 400 or 413."""
    size = len(body) if header_length is None else _size(header_length, len(body))
    try:
        plain = orjson.loads(body[:size])
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the request is not JSON: {error}") from error
    known = model_inputs(model)
    if not isinstance(plain, dict) or not isinstance(plain.get("inputs"), list) or len(plain["inputs"]) != 1:
        expected = " or ".join(map(str, known))
        raise HTTPException(400, f"expected an object whose 'inputs' is a list of one tensor, {expected}")
    request_id, parameters = plain.get("id"), plain.get("parameters") or {}
    if not isinstance(request_id, str | None) or not isinstance(parameters, dict):
        raise HTTPException(400, "'id' must be a text, and 'parameters' an object")
    tensor = read_input(plain["inputs"][0], memoryview(body)[size:], known)
    if tensor.shape[0] > max_images:
        raise HTTPException(413, f"{tensor.shape[0]} images in one request: the limit is {max_images}")
    shared = shared_preprocessing(model)
    is_raw = tensor.spec.name == RAW and shared is not None
    sources: list[Any] = [{shared: one[None]} for one in tensor.pixels()] if is_raw else list(tensor.files())
    return InferRequest(request_id, sources, _wanted(plain.get("outputs"), parameters, model))


def _size(text: str, limit: int) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) > limit:
        raise HTTPException(400, f"Inference-Header-Content-Length is {text[:80]!r}, but the body has {limit} bytes")
    return int(text)


def _wanted(given: Any, parameters: Mapping[str, Any], model: ServedModel) -> list[Wanted]:
    known, further = result_outputs(model), graph_outputs(model)
    all_binary = bool(parameters.get("binary_data_output", False))
    if given is None or given == []:
        return [Wanted(name, all_binary) for name in known]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise HTTPException(400, "'outputs' must be a list of objects")
    wanted = []
    for one in given:
        name, own = one.get("name"), one.get("parameters") or {}
        if name not in [*known, *further]:
            names = ", ".join([*known, *further])
            raise HTTPException(400, f"unknown output {str(name)[:80]!r}: model {model.name} has {names}")
        classes = own.get("classification", 0) if isinstance(own, dict) else -1
        is_allowed = name == "probabilities" and model.task == "classification"
        if type(classes) is not int or classes < 0 or (classes and not is_allowed):
            raise HTTPException(
                400, f"output {name!r}: 'classification' must be a number of classes, for the output 'probabilities'"
            )
        wanted.append(Wanted(name, bool(own.get("binary_data", all_binary)), classes))
    return wanted


def answer(
    model: ServedModel, request: InferRequest, results: Sequence[Result], further: Mapping[str, NDArray[Any]]
) -> Response:
    """Return the requested outputs, as JSON, or as JSON and the binary tensors after it."""
    outputs, contents = [], []
    for wanted in request.outputs:
        tensor = _tensor(model, wanted, results, further)
        if wanted.is_binary:
            plain, content = tensor.binary()
            contents.append(content)
        else:
            plain = tensor.plain()
        outputs.append(plain)
    answered: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.request_id is not None:
        answered["id"] = request.request_id
    if not contents:
        return json_response(answered)
    header = orjson.dumps(answered)
    headers = {HEADER_LENGTH: str(len(header))}
    return Response(b"".join([header, *contents]), headers=headers, media_type="application/octet-stream")


def _tensor(
    model: ServedModel, wanted: Wanted, results: Sequence[Any], further: Mapping[str, NDArray[Any]]
) -> OutputTensor:
    if wanted.classes:
        return OutputTensor(wanted.name, "BYTES", [_classes(one, wanted.classes) for one in results])
    if wanted.name in further:
        values = further[wanted.name]
        if values.dtype == np.int64:
            return OutputTensor(wanted.name, "INT64", values)
        return OutputTensor(wanted.name, "FP32", values.astype(np.float32, copy=False))
    output = result_outputs(model)[wanted.name]
    return OutputTensor(wanted.name, output.datatype, output.values(results))


def _classes(result: Classification, count: int) -> list[bytes]:
    """Return `probability:index:name` of the most probable classes. Source: Triton's classification extension."""
    order = np.argsort(-result.probabilities, kind="stable")[:count]
    return [f"{result.probabilities[c]:f}:{c}:{result.class_names[c]}".encode() for c in order]
