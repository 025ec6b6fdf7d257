"""The OpenAPI 3.1 description of the server, at /openapi.json. Written by hand: the server needs no schema library."""

from __future__ import annotations

from typing import Any

from tl import __version__
from tl.serving.limits import Limits

_ERRORS = {
    "400": "The request is malformed, or asks for something that the model does not support.",
    "401": "A token is required.",
    "403": "The Host or Origin header names another site.",
    "404": "There is no such model or version.",
    "405": "Another method is required.",
    "408": "The request was not received in time.",
    "413": "The request is too large, or has too many images.",
    "415": "The body has another content type or encoding.",
    "500": "The model or the server failed.",
    "503": "Too many requests are in progress; Retry-After says when to try again.",
    "504": "The prediction did not finish in time.",
}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name of a model.",
    "schema": {"type": "string", "minLength": 1},
}
_VERSION = {**_NAME, "name": "version", "description": "Version of the model, as in its metadata."}
_RESULT = {
    "type": "object",
    "description": "As a line of `tl predict -o out.jsonl`: depends on the model's task. `path` is the file name that "
    "was uploaded. An unreadable image has only `path` and `error`.",
    "properties": {
        "path": {"type": "string"},
        "error": {"type": "string"},
        "label": {"type": "string"},
        "confidence": {"type": "number"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "set": _TEXTS,
        "labels": _TEXTS,
        "targets": {"type": "object"},
        "keypoints": {"type": "object"},
        "overlay": {"type": "string", "description": "Data URL of the photo with the regions that explain its label."},
    },
    "required": ["path"],
}
_MODEL = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "task": {"enum": ["classification", "landmarks", "multilabel", "regression"]},
        "class_names": _TEXTS,
        "keypoint_names": _TEXTS,
        "skeleton": {"type": "array", "items": _TEXTS},
        "targets": {"type": "array", "items": {"type": "object"}},
        "input_hw": {"type": "array", "items": {"type": "integer"}},
        "input_channels": {"type": "integer"},
        "ensemble": {"type": "boolean"},
        "member_names": _TEXTS,
        "has_explanation": {"type": "boolean"},
        "supports_coverage": {"type": "boolean"},
        "ood_limit": {"type": ["number", "null"]},
        "version": {"type": "string"},
        "reload_error": {"type": ["string", "null"]},
    },
    "required": [
        "name",
        "task",
        "input_hw",
        "ensemble",
        "member_names",
        "has_explanation",
        "supports_coverage",
        "version",
    ],
}
_TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}
_INFER_REQUEST = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"$ref": "#/components/schemas/Tensor"}},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                "required": ["name"],
            },
        },
    },
    "required": ["inputs"],
}
_INFER_ANSWER = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
    },
    "required": ["model_name", "outputs"],
}


def describe_api(limits: Limits) -> dict[str, Any]:
    """Return the description as plain values."""
    paths = {
        "/predict": {"post": _predict(limits)},
        "/info": {"get": _get("What the server offers.", _info(), [])},
        "/v2": {"get": _get("Metadata of the server.", _object("name", "version", extensions=_TEXTS), [])},
        "/v2/health/live": {"get": _get("Whether the server runs.", {"type": "object"}, [], is_open=True)},
        "/v2/health/ready": {"get": _get("Whether the models are ready.", {"type": "object"}, [], is_open=True)},
        "/v2/models": {"get": _get("Names of the models.", _object(models=_TEXTS), [])},
        "/metrics": {"get": _get("Metrics of the server.", {"type": "string"}, [], kind="text/plain")},
        "/openapi.json": {"get": _get("This description.", {"type": "object"}, [])},
    }
    for path, parameters in (
        ("/v2/models/{name}", [_NAME]),
        ("/v2/models/{name}/versions/{version}", [_NAME, _VERSION]),
    ):
        paths[path] = {"get": _get("Metadata of a model.", _metadata(), parameters)}
        paths[f"{path}/ready"] = {"get": _get("Whether a model is ready.", {"type": "object"}, parameters)}
        paths[f"{path}/infer"] = {"post": _infer(parameters)}
    schemas = {"Error": _ERROR, "Result": _RESULT, "Model": _MODEL, "Tensor": _TENSOR}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tl serve",
            "version": __version__,
            "description": "Predictions of model files. Paths under /v2 are the Open Inference Protocol.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "InferRequest": _INFER_REQUEST, "InferAnswer": _INFER_ANSWER},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _predict(limits: Limits) -> dict[str, Any]:
    options = {
        "model": {"type": "string", "description": "Name of the model. Default: the first."},
        "explain": {"type": "boolean", "description": "Add `overlay` to each result."},
        "coverage": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "Add sets or intervals.",
        },
    }
    images = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.max_images,
        "items": {"type": "string", "format": "binary"},
    }
    form = {"type": "object", "properties": {"images": images, **options}, "required": ["images"]}
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in options.items()]
    answer = _object("model", results={"type": "array", "items": {"$ref": "#/components/schemas/Result"}})
    described = _get("Predict uploaded images.", answer, query, faults=sorted(_ERRORS))
    return {**described, "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def _infer(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    described = _get("Run inference.", {"$ref": "#/components/schemas/InferAnswer"}, parameters, faults=sorted(_ERRORS))
    described["responses"]["200"]["content"]["application/octet-stream"] = {}
    schema = {"$ref": "#/components/schemas/InferRequest"}
    content = {"application/json": {"schema": schema}, "application/octet-stream": {}}
    return {**described, "requestBody": {"required": True, "content": content}}


def _get(
    summary: str,
    schema: dict[str, Any],
    parameters: list[dict[str, Any]],
    *,
    kind: str = "application/json",
    is_open: bool = False,
    faults: list[str] | None = None,
) -> dict[str, Any]:
    usual = [*([] if is_open else ["401"]), "403", *(["404"] if parameters else [])]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": {kind: {"schema": schema}}}}
    responses |= {code: {"description": _ERRORS[code], "content": error} for code in faults or usual}
    return {"summary": summary, "parameters": parameters, "responses": responses}


def _object(*texts: str, **properties: dict[str, Any]) -> dict[str, Any]:
    found = {**{name: {"type": "string"} for name in texts}, **properties}
    return {"type": "object", "properties": found, "required": list(found)}


def _info() -> dict[str, Any]:
    return _object(
        "tl_version",
        models={"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        limits={"type": "object"},
    )


def _metadata() -> dict[str, Any]:
    tensors = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}}
    return _object("name", "platform", versions=_TEXTS, inputs=tensors, outputs=tensors, parameters={"type": "object"})
