"""The Open Inference Protocol, version 2, over HTTP, with the extensions for binary tensors and classification.

Sources: the protocol of KServe ("Open Inference Protocol V2", "Binary Tensor Data Extension") and of Triton
("Classification Extension").
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tl import __version__
from tl.runtime.results import Failure, Multilabel, Result
from tl.serving.access import json_response
from tl.serving.models import ServedModel
from tl.serving.predict import Server, model_errors

HEADER_LENGTH = "inference-header-content-length"
RAW, ENCODED = "images", "encoded_images"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ["binary_tensor_data", "classification"]
# Outputs of model files that results contain already, under the same or another name.
_IN_RESULTS = {
    "probabilities",
    "label",
    "member_probabilities",
    "ood_score",
    "keypoints",
    "keypoint_confidence",
    "values",
}


@dataclass(frozen=True)
class Output:
    """An output that is computed from results. `shape`: of one image; -1 is any size."""

    datatype: str
    shape: tuple[int, ...]
    values: Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Wanted:
    """A requested output. `classes`: the K of the classification extension, 0 for the tensor itself."""

    name: str
    is_binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A parsed request. `sources`: one image per row, a file or an array (H, W, C)."""

    request_id: str | None
    sources: Sequence[bytes | NDArray[np.uint8]]
    is_raw: bool
    outputs: Sequence[Wanted]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def server_metadata() -> dict[str, Any]:
    """Return the answer to GET /v2."""
    return {"name": "tl", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Return the answer to GET /v2/models/NAME; `parameters` adds what names and units the values have."""
    inputs = [{"name": ENCODED, "datatype": "BYTES", "shape": [-1]}]
    if takes_raw(model):
        height, width, channels = model.contract.preprocessing.input_shape
        inputs.insert(0, {"name": RAW, "datatype": "UINT8", "shape": [-1, height, width, channels]})
    outputs = [
        {"name": name, "datatype": one.datatype, "shape": [-1, *one.shape]}
        for name, one in result_outputs(model).items()
    ]
    outputs += [{"name": name, "datatype": "FP32", "shape": [-1, -1]} for name in graph_outputs(model)]
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": outputs,
        "parameters": described_names(model),
    }


def described_names(model: ServedModel) -> dict[str, Any]:
    """Return the task and the names of what a model predicts, in the order of its outputs."""
    predictor, contract = model.predictor, model.contract
    plain: dict[str, Any] = {"task": model.task}
    if predictor.class_names:
        plain["class_names"] = list(predictor.class_names)
    if predictor.keypoint_names:
        plain["keypoint_names"] = list(predictor.keypoint_names)
        plain["skeleton"] = [] if contract.landmarks is None else [list(line) for line in contract.landmarks.skeleton]
    if contract.regression is not None:
        pairs = zip(contract.regression.target_names, contract.regression.units, strict=True)
        plain["targets"] = [{"name": name, "unit": unit} for name, unit in pairs]
    return plain


def takes_raw(model: ServedModel) -> bool:
    """Whether arrays of the input size determine the result: all members have one preprocessing, and no photo."""
    preparer = model.predictor.ensemble.preparer
    return preparer is not None and len(preparer.preprocessings) == 1


def graph_outputs(model: ServedModel) -> list[str]:
    """Return the further outputs of a single model file, such as `embedding`, which are computed on request."""
    alone = not model.source.votes and takes_raw(model)
    return [name for name in model.contract.outputs if name not in _IN_RESULTS] if alone else []


def result_outputs(model: ServedModel) -> dict[str, Output]:
    """Return the outputs that are always computed."""
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
    with server.load.buffer() as buffer:
        body = await buffer.read(request)
        length = request.headers.get(HEADER_LENGTH)
        wanted = await server.parse(
            body, lambda body: parse_request(body, length, model, server.load.limits.max_images)
        )
        del body
        with server.load.place(), model_errors(model):
            ensemble = model.predictor.ensemble
            sources = [
                one if isinstance(one, bytes) else {ensemble.preparer.preprocessings[0]: one[None]}
                for one in wanted.sources
            ]
            results = await server.load.wait([server.workers.predict(model.predictor, one) for one in sources])
            failed = [(n, one.error) for n, one in enumerate(results) if isinstance(one, Failure)]
            server.metrics.count_images(model.name, len(results) - len(failed), len(failed))
            if failed:
                raise HTTPException(400, f"{ENCODED}[{failed[0][0]}]: {failed[0][1]}")
            further = [one.name for one in wanted.outputs if one.name in graph_outputs(model)]
            computed: dict[str, NDArray[Any]] = {}
            if further:
                (arrays,) = await server.load.wait([server.workers.submit(partial(_run, model, sources, further))])
                computed = dict(zip(further, arrays, strict=True))
    return answer(model, wanted, results, computed)


def _run(model: ServedModel, sources: Sequence[Any], names: Sequence[str]) -> list[NDArray[Any]]:
    """Run outputs that results do not contain."""
    ensemble = model.predictor.ensemble
    prepared = [ensemble.prepare(one, "") if isinstance(one, bytes) else one for one in sources]
    (session,) = ensemble.sessions
    return list(session.run(ensemble.stack(prepared)[ensemble.preparer.preprocessings[0]], names))


def parse_request(body: bytes, header_length: str | None, model: ServedModel, max_images: int) -> InferRequest:
    """Parse JSON, and the tensors after its first `header_length` bytes. Raises 400 or 413."""
    size = len(body) if header_length is None else _size(header_length, len(body))
    try:
        plain = orjson.loads(body[:size])
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the request is not JSON: {error}") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("inputs"), list) or len(plain["inputs"]) != 1:
        raise HTTPException(400, f"expected an object whose 'inputs' is a list of one tensor, {_inputs(model)}")
    sources, is_raw = _sources(plain["inputs"][0], memoryview(body)[size:], model, max_images)
    request_id, parameters = plain.get("id"), plain.get("parameters") or {}
    if not isinstance(request_id, str | None) or not isinstance(parameters, dict):
        raise HTTPException(400, "'id' must be a text, and 'parameters' an object")
    return InferRequest(request_id, sources, is_raw, _wanted(plain.get("outputs"), parameters, model))


def _size(text: str, limit: int) -> int:
    if not text.isdecimal() or int(text) > limit:
        raise HTTPException(400, f"Inference-Header-Content-Length is {text[:80]!r}, but the body has {limit} bytes")
    return int(text)


def _inputs(model: ServedModel) -> str:
    named = [f"{one['name']!r} {one['datatype']} {one['shape']}" for one in model_metadata(model)["inputs"]]
    return " or ".join(named)


def _sources(
    tensor: Any, binary: memoryview, model: ServedModel, max_images: int
) -> tuple[Sequence[bytes | NDArray[np.uint8]], bool]:
    """Return the images of an input tensor, and whether they are arrays."""
    if not isinstance(tensor, dict):
        raise HTTPException(400, f"an input must be an object, {_inputs(model)}")
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    known = {one["name"]: one for one in model_metadata(model)["inputs"]}
    if name not in known:
        raise HTTPException(400, f"unknown input {str(name)[:80]!r}: expected {_inputs(model)}")
    expected = known[name]
    if datatype != expected["datatype"]:
        raise HTTPException(400, f"input {name!r} has datatype {str(datatype)[:80]!r}: expected {expected['datatype']}")
    is_shape = isinstance(shape, list) and len(shape) == len(expected["shape"]) and all(type(n) is int for n in shape)
    if not is_shape or shape[1:] != expected["shape"][1:] or shape[0] < 1:
        raise HTTPException(400, f"input {name!r} has shape {str(shape)[:80]}: expected {expected['shape']}")
    if shape[0] > max_images:
        raise HTTPException(413, f"{shape[0]} images in one request: the limit is {max_images}")
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and ("data" in tensor or size != len(binary) or type(size) is not int):
        raise HTTPException(
            400, f"input {name!r} has binary_data_size {size!r}, but {len(binary)} bytes follow the JSON"
        )
    if size is None and len(binary):
        raise HTTPException(400, f"input {name!r} has no binary_data_size, but {len(binary)} bytes follow the JSON")
    if name == ENCODED:
        files = _text_files(tensor.get("data")) if size is None else _binary_files(binary)
        if len(files) != shape[0]:
            raise HTTPException(400, f"input {name!r} has {len(files)} elements for shape {shape}")
        return files, False
    return _pixels(tensor.get("data"), binary if size is not None else None, shape), True


def _pixels(data: Any, binary: memoryview | None, shape: list[int]) -> Sequence[NDArray[np.uint8]]:
    count = int(np.prod(shape))
    if binary is not None:
        values = np.frombuffer(binary, np.uint8)
    else:
        try:
            found = np.array(data)
            values = found.ravel() if found.dtype.kind in "iu" else np.zeros(0)
        except ValueError:  # lists of different lengths
            values = np.zeros(0)
        if not values.size or values.min() < 0 or values.max() > 255:
            raise HTTPException(400, f"the data of input {RAW!r} must be numbers from 0 to 255")
    if values.size != count:
        raise HTTPException(400, f"input {RAW!r} has {values.size} values for shape {shape}")
    return list(values.astype(np.uint8).reshape(shape))


def _text_files(data: Any) -> list[bytes]:
    """Decode files that JSON holds as base64."""
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise HTTPException(400, f"the data of input {ENCODED!r} must be a list of base64 texts, or binary")
    try:
        return [base64.b64decode(one, validate=True) for one in data]
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"the data of input {ENCODED!r} is not base64: {error}") from error


def _binary_files(binary: memoryview) -> list[bytes]:
    """Split a binary tensor of BYTES: before each element, its length as 4 bytes, little-endian."""
    files, at = [], 0
    while at < len(binary):
        if at + 4 > len(binary):
            raise HTTPException(400, f"input {ENCODED!r}: an element ends within its length")
        (length,) = struct.unpack_from("<I", binary, at)
        at += 4
        if at + length > len(binary):
            raise HTTPException(400, f"input {ENCODED!r}: an element of {length} bytes is longer than the rest")
        files.append(bytes(binary[at : at + length]))
        at += length
    return files


def _wanted(given: Any, parameters: Mapping[str, Any], model: ServedModel) -> list[Wanted]:
    known, all_binary = result_outputs(model), bool(parameters.get("binary_data_output", False))
    if given is None or given == []:
        return [Wanted(name, all_binary) for name in known]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise HTTPException(400, "'outputs' must be a list of objects")
    wanted = []
    for one in given:
        name, own = one.get("name"), one.get("parameters") or {}
        if name not in known and name not in graph_outputs(model):
            names = ", ".join([*known, *graph_outputs(model)])
            raise HTTPException(400, f"unknown output {str(name)[:80]!r}: model {model.name} has {names}")
        classes = own.get("classification", 0) if isinstance(own, dict) else -1
        is_class = name == "probabilities" and model.task == "classification"
        if type(classes) is not int or classes < 0 or (classes and not is_class):
            raise HTTPException(
                400, f"output {name!r}: 'classification' must be a number of classes of 'probabilities'"
            )
        wanted.append(Wanted(name, bool(own.get("binary_data", all_binary)), classes))
    return wanted


def answer(
    model: ServedModel, request: InferRequest, results: Sequence[Result], further: Mapping[str, NDArray[Any]]
) -> Response:
    """Return the requested outputs, as JSON, or as JSON and the binary tensors after it."""
    known, outputs, tensors = result_outputs(model), [], []
    for wanted in request.outputs:
        if wanted.classes:
            datatype, values = "BYTES", [_classes(one, wanted.classes) for one in results]
        elif wanted.name in known:
            datatype, values = known[wanted.name].datatype, known[wanted.name].values(results)
        else:
            datatype, values = _typed(further[wanted.name])
        shape = [len(values), len(values[0])] if datatype == "BYTES" else list(values.shape)
        output: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": shape}
        if wanted.is_binary:
            tensors.append(_binary(values) if datatype == "BYTES" else np.ascontiguousarray(values).tobytes())
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
        elif datatype == "BYTES":
            output["data"] = [each.decode() for row in values for each in row]
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    plain = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.request_id is not None:
        plain["id"] = request.request_id
    if not tensors:
        return json_response(plain)
    header = orjson.dumps(plain)
    headers = {HEADER_LENGTH: str(len(header))}
    return Response(b"".join([header, *tensors]), headers=headers, media_type="application/octet-stream")


def _classes(result: Any, count: int) -> list[bytes]:
    """Return `probability:index:name` of the most probable classes. Source: Triton's classification extension."""
    order = np.argsort(-result.probabilities, kind="stable")[:count]
    return [f"{result.probabilities[c]:f}:{c}:{result.class_names[c]}".encode() for c in order]


def _typed(values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Return an array of a graph and its datatype; numbers of other types become FP32."""
    if values.dtype == np.int64:
        return "INT64", values
    return "FP32", values.astype(np.float32, copy=False)


def _binary(rows: Sequence[Sequence[bytes]]) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for row in rows for each in row)
