"""The Open Inference Protocol, by Triton's own client and by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.models import color_probabilities, solid
from tests.serving.conftest import BLUE, RED, Running, StartServer, source
from tl.serving.limits import Limits

PIXELS = np.stack([solid((200, 10, 10)), solid((10, 60, 50))])
REFERENCE = np.stack([color_probabilities(image) for image in PIXELS])


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url) as client:
        yield client


def pixel_input(pixels: np.ndarray[Any, Any] = PIXELS, *, binary: bool = True) -> triton.InferInput:
    found = triton.InferInput("images", list(pixels.shape), "UINT8")
    found.set_data_from_numpy(pixels, binary_data=binary)
    return found


def file_input(*contents: bytes) -> triton.InferInput:
    found = triton.InferInput("encoded_images", [len(contents)], "BYTES")
    found.set_data_from_numpy(np.array(contents, object))
    return found


def test_metadata_and_health(client: triton.InferenceServerClient, server: Running) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    metadata = client.get_model_metadata("color")
    assert metadata["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
    assert metadata["inputs"][1] == {"name": "encoded_images", "datatype": "BYTES", "shape": [-1]}
    assert metadata["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    assert metadata["parameters"]["class_names"] == ["red", "green", "blue"]
    (version,) = metadata["versions"]
    assert client.is_model_ready("color")
    assert client.is_model_ready("color", version)
    assert client.get_model_metadata("color", version) == metadata
    assert not client.is_model_ready("colour")
    assert not client.is_model_ready("color", "older")
    assert server.client.get("/v2/models").json()["models"][:2] == ["color", "cam"]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_infer__pixels(client: triton.InferenceServerClient, binary_input: bool, binary_output: bool) -> None:
    names = ("label", "probabilities", "confidence")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in names]
    found = client.infer("color", [pixel_input(binary=binary_input)], outputs=outputs, request_id="7")
    np.testing.assert_allclose(found.as_numpy("probabilities"), REFERENCE, atol=1e-6)
    np.testing.assert_allclose(found.as_numpy("confidence")[:, 0], REFERENCE.max(axis=1), atol=1e-6)
    labels = found.as_numpy("label")[:, 0].tolist()
    assert [one if isinstance(one, str) else one.decode() for one in labels] == ["red", "green"]
    assert found.get_response()["id"] == "7"
    assert [one["name"] for one in found.get_response()["outputs"]] == list(names)


def test_infer__all_outputs_by_default(client: triton.InferenceServerClient) -> None:
    found = client.infer("color", [pixel_input()])
    np.testing.assert_allclose(found.as_numpy("probabilities"), REFERENCE, atol=1e-6)
    assert found.as_numpy("label").shape == (2, 1)


def test_infer__image_files_as_predict(client: triton.InferenceServerClient, server: Running) -> None:
    for name in ("color", "ensemble"):
        found = client.infer(name, [file_input(RED, BLUE)]).as_numpy("probabilities")
        results = server.predict(RED, BLUE, model=name).json()["results"]
        np.testing.assert_array_equal(
            found, np.array([[*one["probabilities"].values()] for one in results], np.float32)
        )


def test_infer__json_files_are_base64(server: Running) -> None:
    tensor = {"name": "encoded_images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(BLUE).decode()]}
    answer = server.client.post("/v2/models/color/infer", json={"inputs": [tensor]}).json()
    assert answer["model_name"] == "color"
    assert {one["name"]: one["data"] for one in answer["outputs"]}["label"] == ["blue"]


def test_infer__classification_extension(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    found = client.infer("color", [pixel_input()], outputs=outputs).as_numpy("probabilities")
    first, second = (one.decode().split(":") for one in found[0])
    assert (first[1:], second[1:]) == (["0", "red"], ["1", "green"])
    assert float(first[0]) == pytest.approx(REFERENCE[0].max(), abs=1e-5)


def test_infer__further_outputs_of_the_file(client: triton.InferenceServerClient, files: dict[str, Path]) -> None:
    outputs = [triton.InferRequestedOutput("cam")]
    found = client.infer("cam", [pixel_input()], outputs=outputs).as_numpy("cam")
    (told,) = [one for one in client.get_model_metadata("cam")["outputs"] if one["name"] == "cam"]
    assert (told["datatype"], told["shape"]) == ("FP32", [-1, *found.shape[1:]])
    session = onnxruntime.InferenceSession(files["cam"], providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(found, session.run(["cam"], {"images": PIXELS})[0], atol=1e-6)


def test_infer__the_other_tasks(client: triton.InferenceServerClient) -> None:
    found = client.infer("numbers", [pixel_input()]).as_numpy("values")
    np.testing.assert_allclose(found, REFERENCE, atol=1e-6)
    found = client.infer("labels", [pixel_input()])
    np.testing.assert_array_equal(found.as_numpy("labels"), REFERENCE >= 0.3)
    assert client.infer("spots", [file_input(RED)]).as_numpy("keypoints").shape == (1, 3, 2)
    assert [one["name"] for one in client.get_model_metadata("spots")["inputs"]] == ["encoded_images"]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [7] * 192, **changes}


def files_tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "encoded_images", "datatype": "BYTES", "shape": [1], "data": ["AAAA"], **changes}


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([], "expected an object whose 'inputs' is a list of one tensor, 'images' UINT8 [-1, 8, 8, 3] or"),
        ([tensor(), tensor()], "expected an object whose 'inputs' is a list of one tensor"),
        ([7], "an input must be an object"),
        ([tensor(name="pixels")], "unknown input 'pixels': expected 'images' UINT8 [-1, 8, 8, 3] or 'encoded_images'"),
        ([tensor(datatype="FP32")], "input 'images' has datatype 'FP32': expected UINT8"),
        ([tensor(shape=[1, 3, 8, 8])], "input 'images' has shape [1, 3, 8, 8]: expected [-1, 8, 8, 3]"),
        ([tensor(shape=[0, 8, 8, 3])], "input 'images' has shape [0, 8, 8, 3]"),
        ([tensor(shape=[True, 8, 8, 3])], "input 'images' has shape [True, 8, 8, 3]"),
        ([tensor(shape="all")], "input 'images' has shape all"),
        ([tensor(data=[7] * 191)], "input 'images' has 191 values for shape [1, 8, 8, 3]"),
        ([tensor(data=[256] * 192)], "the data of input 'images' must be whole numbers from 0 to 255"),
        ([tensor(data=[0.5] * 192)], "the data of input 'images' must be whole numbers"),
        ([tensor(data=[[1], [2, 3]])], "the data of input 'images' must be whole numbers"),
        ([tensor(data="AAAA")], "the data of input 'images' must be whole numbers"),
        ([tensor(data=None)], "the data of input 'images' must be whole numbers"),
        ([tensor(data=[2**70] * 192)], "the data of input 'images' must be whole numbers"),
        ([tensor(parameters={"binary_data_size": 192})], "input 'images' has binary_data_size 192, but 0 bytes follow"),
        ([files_tensor(data=["?"])], "the data of input 'encoded_images' is not base64"),
        ([files_tensor(data=[7])], "the data of input 'encoded_images' must be a list of base64 texts, or binary"),
        ([files_tensor(shape=[2])], "input 'encoded_images' has 1 elements for shape [2]"),
        ([files_tensor()], "encoded_images[0]: not an image of a supported format"),
    ],
)  # fmt: skip
def test_infer__bad_tensors(server: Running, inputs: list[Any], told: str) -> None:
    text = server.error(400, "POST", "/v2/models/color/infer", json={"inputs": inputs})
    assert text.startswith(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outputs": 7}, "'outputs' must be a list of objects"),
        (
            {"outputs": [{"name": "logits"}]},
            "unknown output 'logits': model color has probabilities, label, confidence",
        ),
        (
            {"outputs": [{"name": "label", "parameters": {"classification": 2}}]},
            "output 'label': 'classification' must",
        ),
        ({"outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]}, "output 'probabilities'"),
        ({"id": 7}, "'id' must be a text, and 'parameters' an object"),
        ({"parameters": [7]}, "'id' must be a text, and 'parameters' an object"),
    ],
)
def test_infer__bad_requests(server: Running, changes: dict[str, Any], told: str) -> None:
    body = {"inputs": [tensor()], **changes}
    assert server.error(400, "POST", "/v2/models/color/infer", json=body).startswith(told)


@pytest.mark.parametrize(
    ("body", "length", "told"),
    [
        (b"{", None, "the request is not JSON"),
        (b"[]", None, "expected an object whose 'inputs'"),
        (b"{}", "9", "Inference-Header-Content-Length is '9', but the body has 2 bytes"),
        (b"{}", 5000 * "9", "Inference-Header-Content-Length is '999"),
        (b"{}", "-1", "Inference-Header-Content-Length is '-1'"),
        (b"\xff\xfe", None, "the request is not JSON"),
    ],
)
def test_infer__bad_bodies(server: Running, body: bytes, length: str | None, told: str) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    text = server.error(400, "POST", "/v2/models/color/infer", content=body, headers=headers)
    assert text.startswith(told)


def test_infer__binary_data_that_does_not_fit(server: Running) -> None:
    for given, rest, told in (
        (tensor(data=[]), b"1", "input 'images' has no binary_data_size, but 1 bytes follow the JSON"),
        (tensor(parameters={"binary_data_size": 5}), b"1234", "input 'images' has binary_data_size 5, but 4 bytes"),
        (tensor(parameters={"binary_data_size": 4}), b"1234", "input 'images' has 4 values for shape [1, 8, 8, 3]"),
        (files_tensor(parameters={"binary_data_size": 3}), b"123", "input 'encoded_images': element 0 is longer"),
        (files_tensor(parameters={"binary_data_size": 5}), b"\7\0\0\0a", "input 'encoded_images': element 0 is longer"),
    ):
        head = json.dumps({"inputs": [given]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        text = server.error(400, "POST", "/v2/models/color/infer", content=head + rest, headers=headers)
        assert text.startswith(told)


def test_infer__unknown_models_and_too_many_images(
    start: StartServer, files: dict[str, Path], client: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException, match="no model 'none': this server has color"):
        client.infer("none", [pixel_input()])
    with pytest.raises(InferenceServerException, match="no version 'x' of model color"):
        client.infer("color", [pixel_input()], model_version="x")
    running = start(source(files["color"]), limits=Limits(max_images=1))
    with triton.InferenceServerClient(running.url) as other:
        with pytest.raises(InferenceServerException, match="2 images in one request: the limit is 1"):
            other.infer("color", [pixel_input()])
        assert other.infer("color", [pixel_input(PIXELS[:1])]).as_numpy("label").shape == (1, 1)
