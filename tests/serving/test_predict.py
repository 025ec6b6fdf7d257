"""POST /predict: the results of `tl predict`, a row with the reason for a bad image, and an error for a bad request."""

from __future__ import annotations

import base64
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tl.runtime
from tests.runtime.images import encode_turned
from tests.serving.conftest import BLUE, RED, Running, StartServer, encoded, images, lines, source
from tests.spots import USUAL_XY, spot_image
from tl.runtime.output.writers import JsonLinesWriter
from tl.serving.limits import Limits

BAD = b"\xff\xd8\xff no image"


def written(predictor: tl.runtime.Predictor[Any], contents: list[bytes]) -> list[dict[str, Any]]:
    """What `tl predict -o out.jsonl` writes for the files 0.png, 1.png ..."""
    stream = StringIO()
    writer = JsonLinesWriter(stream)
    for result in predictor.predict_iter(contents):
        writer.write(result)
    return [{**line, "path": f"{n}.png"} for n, line in enumerate(lines(stream.getvalue()))]


def test_predict__as_tl_predict(server: Running, files: dict[str, Path]) -> None:
    turned = encode_turned(np.array(Image.open(BytesIO(RED)))[:, :, :3], 6, "JPEG")
    contents = [RED, BAD, BLUE, turned, encoded((9, 200, 9), "WEBP"), b""]
    answer = server.predict(*contents)
    assert answer.status_code == 200
    with tl.runtime.load(files["color"], device="cpu") as predictor:
        assert answer.json() == {"model": "color", "results": written(predictor, contents)}
    assert [one.get("label", "") for one in answer.json()["results"]] == ["red", "", "blue", "red", "green", ""]


def test_predict__the_other_tasks(server: Running, files: dict[str, Path]) -> None:
    loaders = {"labels": tl.runtime.load_multilabel, "numbers": tl.runtime.load_regression}
    for name, load in loaders.items():
        with load(files[name], device="cpu") as predictor:
            assert server.predict(RED, BAD, model=name).json()["results"] == written(predictor, [RED, BAD])
    buffer = BytesIO()
    Image.fromarray(spot_image(USUAL_XY)).save(buffer, "PNG")
    with tl.runtime.load_landmarks(files["spots"], device="cpu") as points:
        found = server.predict(buffer.getvalue(), model="spots").json()["results"]
        assert found == written(points, [buffer.getvalue()])
    assert found[0]["keypoints"]["green"]["x"] == pytest.approx(60, abs=0.5)


def test_predict__an_ensemble_has_votes(server: Running) -> None:
    (found,) = server.client.post("/predict?model=ensemble", files=images(RED)).json()["results"]
    assert (found["label"], found["votes"], found["agreement"]) == ("red", ["red", "red"], 1.0)


def test_predict__coverage(server: Running, files: dict[str, Path]) -> None:
    gray = encoded((101, 100, 99))
    for name, load, coverage in (
        ("labels", tl.runtime.load_multilabel, 0.9),
        ("numbers", tl.runtime.load_regression, 0.9),
    ):
        with load(files[name], device="cpu", coverage=coverage) as predictor:
            found = server.predict(gray, model=name, coverage=str(coverage)).json()["results"]
            assert found == written(predictor, [gray])
    assert "low" in found[0]["targets"]["red"]
    (found,) = server.predict(gray, model="careful", coverage="0.5").json()["results"]
    assert found["set"][:1] == ["red"]
    assert "set" not in server.predict(gray, model="careful").json()["results"][0]


def test_predict__explains(server: Running) -> None:
    good, bad = server.predict(RED, BAD, model="cam", explain="true").json()["results"]
    kind, _, data = good["overlay"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(data))).size == (30, 20)
    assert list(bad) == ["path", "error"]
    assert "overlay" not in server.predict(RED, model="cam").json()["results"][0]


@pytest.mark.parametrize(
    ("given", "shown"),
    [("C:\\photos\\käfer.png", "käfer.png"), ("../../etc/1.png", "1.png"), ("a b;'c.png", "a b;'c.png"), ("", "")],
)
def test_predict__file_names_without_folders(server: Running, given: str, shown: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="images"; filename="' + given.encode() + b'"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = server.client.post("/predict", content=body + RED + b"\r\n--b--\r\n", headers=headers)
    assert answer.json()["results"][0]["path"] == shown
    assert answer.json()["results"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ({"model": "colour"}, 404, "no model 'colour': this server has color, cam, careful, "),
        (
            {"modle": "color"},
            400,
            "unknown field 'modle' (nearest: 'model'): expected images, model, explain, coverage",
        ),
        ({"explain": "maybe"}, 400, "explain must be true or false, found 'maybe'"),
        ({"explain": "true"}, 400, "model color cannot explain its predictions"),
        ({"model": "ensemble", "explain": "1"}, 400, "model ensemble cannot explain its predictions"),
        ({"model": "spots", "explain": "1"}, 400, "model spots cannot explain its predictions"),
        ({"coverage": "a lot"}, 400, "coverage must be a number between 0 and 1, found 'a lot'"),
        ({"coverage": "nan"}, 400, "coverage must be a number between 0 and 1, found 'nan'"),
        ({"coverage": "1"}, 400, "coverage must be a number between 0 and 1, found '1'"),
        ({"coverage": "0.9"}, 400, "color: contains no scores of held-out images, which coverage requires"),
        ({"model": "careful", "coverage": "0.99"}, 400, "careful: coverage 0.99 requires at least 99 held-out images"),
        ({"model": "ensemble", "coverage": "0.9"}, 400, "model ensemble is an ensemble, which supports no coverage"),
        ({"model": "spots", "coverage": "0.9"}, 400, "coverage does not apply to landmarks"),
    ],
)
def test_predict__bad_options(server: Running, options: dict[str, str], status: int, told: str) -> None:
    text = server.error(status, "POST", "/predict", files=images(RED), data=options)
    assert text.startswith(told)
    assert "/" not in text  # no folder of this machine
    assert server.error(status, "POST", "/predict", files=images(RED), params=options) == text


LONG_FIELD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + 5000 * b"x" + b"\r\n--b--\r\n"
FIELD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ncolor\r\n'
MULTIPART = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "told"),
    [
        (RED, {"content-type": "image/png"}, 415, "expected a body of type multipart/form-data with files named '"),
        (RED, {}, 415, "expected a body of type multipart/form-data with files named"),
        (b"", {"content-type": "multipart/form-data"}, 415, "expected a body of type multipart/form-data"),
        (b"--b--\r\n", MULTIPART, 400, "no images: send files as fields named 'images'"),
        (b"", MULTIPART, 400, "the multipart body ends before its last boundary"),
        (b'--b\r\nContent-Disposition: form-data; name="images"', MULTIPART, 400, "the multipart body ends"),
        (b"--c\r\n\r\n", MULTIPART, 400, "the multipart body is malformed: "),
        (RED, {**MULTIPART, "content-encoding": "gzip"}, 415, "compressed requests are not accepted"),
        (LONG_FIELD, MULTIPART, 400, "field 'model' is too long"),
        (2 * FIELD + b"--b--\r\n", MULTIPART, 400, "field 'model' is there twice"),
    ],
)  # fmt: skip
def test_predict__bad_bodies(server: Running, content: bytes, headers: dict[str, str], status: int, told: str) -> None:
    assert server.error(status, "POST", "/predict", content=content, headers=headers).startswith(told)
    assert server.labels(RED) == ["red"]


def test_predict__too_many_or_too_large_images(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), limits=Limits(max_images=2, max_megapixels=0.001))
    told = running.error(413, "POST", "/predict", files=images(RED, RED, RED))
    assert told == "more than 2 images in one request: send several requests"
    small, large = running.predict(RED, encoded((9, 9, 9), hw=(30, 40))).json()["results"]
    assert small["label"] == "red"
    assert large == {"path": "1.png", "error": "40x30 pixels, but the limit of this server is 0.001 million"}


def test_predict__other_methods_and_paths(server: Running) -> None:
    assert server.error(405, "GET", "/predict") == "GET is not answered at /predict"
    assert server.error(404, "GET", "/nothing").startswith("there is nothing at /nothing: /openapi.json lists")


def test_info__describes_every_model(server: Running) -> None:
    answer = server.client.get("/info").json()
    found = {one["name"]: one for one in answer["models"]}
    assert [*found] == ["color", "cam", "careful", "labels", "numbers", "spots", "ensemble"]
    color, ensemble = found["color"], found["ensemble"]
    assert (color["task"], color["class_names"], color["input_hw"]) == (
        *("classification", ["red", "green", "blue"]),
        [8, 8],
    )
    assert (ensemble["ensemble"], ensemble["member_names"]) == (True, ["color", "other"])
    assert found["numbers"]["targets"][0] == {"name": "red", "unit": "mm"}
    assert found["spots"]["keypoint_names"] == ["red", "green", "blue"]
    assert [name for name, one in found.items() if one["has_explanation"]] == ["cam"]
    assert [name for name, one in found.items() if one["supports_coverage"]] == ["careful", "labels", "numbers"]
    assert answer["limits"]["max_body_mb"] == 64
    assert "/" not in str(answer)


def test_metrics__count(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]))
    running.predict(RED, BAD, BLUE)
    running.client.get("/nothing")
    assert running.metric('tl_images_total{model="color",outcome="predicted"}') == 2
    assert running.metric('tl_images_total{model="color",outcome="unreadable"}') == 1
    assert running.metric('tl_requests_total{endpoint="/predict",status="200"}') == 1
    assert running.metric('tl_request_seconds_count{endpoint="/predict"}') == 1
    assert running.metric('tl_requests_total{endpoint="page",status="404"}') == 1
    assert running.metric('tl_model_loads_total{model="color",outcome="loaded"}') == 1
    assert running.metric("tl_requests_in_flight") == 1  # this one
