"""The page that runs a model file, in headless Chromium with onnxruntime-web, against `tl.runtime`."""

from __future__ import annotations

import csv
import dataclasses
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.models import make_contract, make_model, solid
from tests.serving.web_driver import drive
from tl.errors import ConfigError, ModelFileError
from tl.runtime import load, load_landmarks
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.model_file.contract import (
    METADATA_KEY,
    Conformal,
    Contract,
    Golden,
    GoldenSample,
    LandmarkFacts,
    OodFacts,
    dump_contract,
)
from tl.runtime.model_file.selftest import encode_golden_png
from tl.serving.web_folder import find_ort_web, write_web_folder

NAMES = ("ant", "bee", "<b>fly</b>")
SIZE = 24
# Both sides compute the same graph on the same pixels, in float32 with sums in another order.
SAME_PIXELS = 1e-5
# Alpha over white: canvas and Pillow round to neighboring gray levels, which this model turns into at most this.
NEXT_LEVEL = 0.01


def _weights(rows: int) -> NDArray[np.float32]:
    """A different weight for each value of the input, so that any wrong pixel changes the result; no label is sure."""
    weights = np.random.default_rng(0).normal(0, 1.5 / rows, (rows, len(NAMES)))
    return (weights - weights.mean(axis=0)).astype(np.float32)


def _save(
    path: Path, nodes: list[Any], outputs: dict[str, list[Any]], tensors: dict[str, Any], shape: list[Any]
) -> None:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *shape, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _embed(path: Path, text: str) -> Path:
    model = onnx.load(path)
    helper.set_model_props(model, {METADATA_KEY: text})
    path.write_bytes(model.SerializeToString())
    return path


def _golden(path: Path, output: str) -> Golden:
    """Golden samples from what the graph gives for two images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = [_photo(SIZE, SIZE, seed) for seed in (5, 6)]
    found = [session.run([output], {"images": image[None]})[0].ravel() for image in images]
    samples = (GoldenSample(encode_golden_png(i), tuple(map(float, f))) for i, f in zip(images, found, strict=True))
    return Golden("synthetic", {"fp32": 1e-3}, tuple(samples))


def _photo(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Smooth colors with noise, as of a photo."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.integers(-30, 30, (height, width, 3))
    return np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8)


def make_classifier(path: Path, mode: str = "squash", interpolation: str = "bicubic") -> Path:
    """Flatten -> random weights -> softmax, with an OOD score (its first logit) and conformal scores."""
    flat = SIZE * SIZE * 3
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Slice", ["logits", "zero", "one", "one"], ["first"]),
        helper.make_node("Squeeze", ["first", "one"], ["ood_score"]),
    ]
    tensors = {"weights": _weights(flat), "zero": np.array([0]), "one": np.array([1])}
    _save(path, nodes, {"probabilities": ["N", 3], "ood_score": ["N"]}, tensors, [SIZE, SIZE])
    contract = make_contract(
        NAMES,
        build_preprocessing((SIZE, SIZE), mode, interpolation=interpolation, pad_rgb=(9, 99, 199)),  # type: ignore[arg-type]
        outputs=("probabilities", "ood_score"),
        conformal=Conformal(tuple(np.linspace(0.1, 0.95, 40).tolist()), "test images"),
        ood=OodFacts(10, 1, 0.0, 0.05, 10),
        golden=_golden(path, "probabilities"),
    )
    return _embed(path, dump_contract(contract))


def make_any_size_classifier(path: Path) -> Path:
    """The same weights behind a Resize in the graph, which takes images of any size."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "sizes"], ["resized"], mode="linear", antialias=1, axes=[2, 3]),
        helper.make_node("Flatten", ["resized"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    tensors = {"weights": _weights(SIZE * SIZE * 3), "sizes": np.array([SIZE, SIZE])}
    _save(path, nodes, {"probabilities": ["N", 3]}, tensors, ["H", "W"])
    contract = json.loads(dump_contract(make_contract(NAMES, golden=_golden(path, "probabilities"))))
    contract["preprocessing"] |= {"resized_by": "graph", "jpeg_scale": "full"}
    return _embed(path, json.dumps(contract))


def make_pointer(path: Path) -> Path:
    """Two points that depend on all pixels."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["numbers"]),
        helper.make_node("Reshape", ["numbers", "shape"], ["keypoints"]),
    ]
    weights = np.random.default_rng(3).uniform(0, 2e-4, (SIZE * SIZE * 3, 4)).astype(np.float32)
    tensors = {"weights": weights, "shape": np.array([-1, 2, 2])}
    _save(path, nodes, {"keypoints": ["N", 2, 2]}, tensors, [SIZE, SIZE])
    contract = dataclasses.replace(
        make_contract(preprocessing=build_preprocessing((SIZE, SIZE), "letterbox")),
        class_names=(),
        task="landmarks",
        keypoint_names=("tip", "base"),
        landmarks=LandmarkFacts((), (("tip", "base"),), None, 0.0, "whole", 0.0),
        outputs=("keypoints",),
        golden=_golden(path, "keypoints"),
    )
    return _embed(path, dump_contract(contract))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    shapes = [(40, 60), (333, 100), (SIZE, SIZE), (10, 90), (300, 401)]
    for number, (height, width) in enumerate(shapes):
        Image.fromarray(_photo(height, width, number)).save(folder / f"photo {number} #1.png")
    Image.fromarray(_photo(30, 50, 9)).convert("P").save(folder / "palette.png")
    Image.fromarray(_photo(30, 50, 9)).convert("L").save(folder / "gray.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(solid((200, 30, 90), 16, 32)).save(folder / "turned.jpg", quality=95, exif=exif)
    return sorted(folder.iterdir())


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def serve_folder(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def site(npm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    model = make_classifier(tmp_path_factory.mktemp("model") / "insects #1.onnx")
    write_web_folder(model, folder / "web", npm)
    yield from serve_folder(folder / "web")


def read_rows(text: str) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in csv.DictReader(StringIO(text))}


@pytest.mark.slow
def test_page__predicts_as_the_runtime(site: str, npm: Path, photos: list[Path], tmp_path: Path) -> None:
    """Fixed size in three resize modes, any size, and points; one browser, which opens each file in turn."""
    modes = {"squash": "bicubic", "letterbox": "bilinear", "short_side": "lanczos"}
    models = {mode: make_classifier(tmp_path / f"{mode}.onnx", mode, kind) for mode, kind in modes.items()}
    any_size, pointer = make_any_size_classifier(tmp_path / "any.onnx"), make_pointer(tmp_path / "points.onnx")
    alpha = tmp_path / "alpha.png"
    Image.fromarray(np.dstack([_photo(40, 40, 1), _photo(40, 40, 2)[:, :, 0]])).save(alpha)
    names = [str(path) for path in [*photos, alpha]]
    steps: list[dict[str, Any]] = []
    for path in [*models.values(), any_size, pointer]:
        steps += [{"do": "open", "name": str(path)}, {"do": "files", "names": names}, {"do": "csv"}]
    driven = drive(npm, site, steps, tmp_path)
    assert driven.errors == []
    assert all(url.startswith((site, "blob:", "data:")) for url in driven.requests)
    tables = [read_rows(text) for text in driven.outputs[2::3]]
    for path, rows in zip(models.values(), tables, strict=False):
        with load(path, device="cpu") as predictor:
            for name in names:
                wanted, row = predictor.predict(name), rows[Path(name).name]
                shares = [float(row[f"p:{label}"]) for label in NAMES]
                limit = NEXT_LEVEL if name == str(alpha) else SAME_PIXELS
                np.testing.assert_allclose(shares, wanted.probabilities, rtol=0, atol=limit, err_msg=f"{path} {name}")
                assert row["error"] == ""
    session = onnxruntime.InferenceSession(any_size, providers=["CPUExecutionProvider"])
    for photo in photos:
        if photo.suffix == ".png":
            image = np.asarray(Image.open(photo).convert("RGB"))
            shares = [float(tables[3][photo.name][f"p:{label}"]) for label in NAMES]
            wanted_shares = session.run(["probabilities"], {"images": image[None]})[0][0]
            np.testing.assert_allclose(shares, wanted_shares, rtol=0, atol=SAME_PIXELS)
    with load_landmarks(pointer, device="cpu") as finder:
        for photo in photos:
            row = tables[4][photo.name]
            points = [[float(row[f"{axis}_{name}"]) for axis in "xy"] for name in ("tip", "base")]
            # Pixels of the photo: up to 17 for each of the input; JPEG decoders may differ by a gray level.
            np.testing.assert_allclose(points, finder.predict(photo).keypoints_xy, rtol=0, atol=5e-3)


@pytest.mark.slow
def test_page__decides_and_explains_itself(site: str, npm: Path, photos: list[Path], tmp_path: Path) -> None:
    cut, text, deep = tmp_path / "cut.png", tmp_path / "<img src=x onerror=alert(1)>.jpg", tmp_path / "deep.png"
    cut.write_bytes(photos[0].read_bytes()[:-40])
    text.write_text("no image", encoding="utf-8")
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(deep)
    foreign = make_model(tmp_path / "foreign.onnx", contract=None)
    names = [str(path) for path in [*photos, cut, text, deep]]
    steps: list[dict[str, Any]] = [
        {"do": "text", "selector": "#foot"},
        {"do": "text", "selector": "#title"},
        {"do": "drop", "names": names},
        {"do": "select", "selector": "#coverage", "value": "0.9"},
        {"do": "check", "selector": "#reject"},
        {"do": "csv"},
        {"do": "texts", "selector": ".card.failed .file"},
        {"do": "click", "selector": "#as-table"},
        {"do": "click", "selector": "thead th:nth-child(3) button"},
        {"do": "texts", "selector": "tbody td:nth-child(3)"},
        {"do": "click", "selector": "tbody tr:first-child button"},
        {"do": "press", "key": "ArrowRight"},
        {"do": "text", "selector": "#detail-name"},
        {"do": "press", "key": "Escape"},
        {"do": "open", "name": str(foreign)},
        {"do": "text", "selector": "#notice"},
    ]
    driven = drive(npm, site, steps, tmp_path)
    assert driven.errors == []
    foot, title, *_ = driven.outputs
    assert title == "insects #1"
    assert "self-test passed with 2 golden samples" in foot
    rows = read_rows(driven.outputs[5])
    assert {name: row["error"].split(":")[0] for name, row in rows.items() if row["error"]} == {
        "cut.png": "the file is cut off",
        text.name: "this browser cannot decode the file",
        "deep.png": "a PNG of 16 bits, which browsers round in their own way",
    }
    model = make_classifier(tmp_path / "insects.onnx")
    with load(model, device="cpu", selective=SelectivePrediction(coverage=0.9, reject_unknown=True)) as predictor:
        for photo in photos:
            wanted, row = predictor.predict(photo), rows[photo.name]
            assert row["label"] == wanted.label
            assert row["set"] == "|".join(wanted.class_set or ())
            assert row["reason"] == wanted.reason
    answered = [row["label"] for row in rows.values() if row["label"] not in ("", "?")]
    assert 0 < len(answered) < len(photos), "the images must show both cases"
    assert sorted(driven.outputs[6]) == sorted([cut.name, text.name, deep.name])
    shown = [float(cell.strip("<>%")) for cell in driven.outputs[9] if cell]
    assert shown == sorted(shown, reverse=True)
    assert driven.outputs[12] in [Path(name).name for name in names]
    assert "tl adopt" in driven.outputs[15]


@pytest.mark.slow
def test_page__is_accessible(site: str, npm: Path, photos: list[Path], tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [{"do": "axe"}, {"do": "files", "names": [str(one) for one in photos]}, {"do": "axe"}]
    steps += [{"do": "click", "selector": "#as-table"}, {"do": "click", "selector": "summary"}, {"do": "axe"}]
    steps += [{"do": "click", "selector": "tbody tr button"}, {"do": "axe"}]
    driven = drive(npm, site, steps, tmp_path, width=390)
    assert driven.errors == []
    assert [driven.outputs[place] for place in (0, 2, 5, 7)] == [[]] * 4


@pytest.mark.slow
def test_page__refuses_a_browser_that_changes_pixels(npm: Path, tmp_path: Path) -> None:
    contract = make_contract()
    wrong = tuple(GoldenSample(one.png, (0.1, 0.2, 0.7)) for one in contract.golden.samples)
    golden = Golden("synthetic", {"fp32": 1e-4}, wrong)
    model = make_model(tmp_path / "m.onnx", contract=make_contract(golden=golden))
    write_web_folder(model, tmp_path / "web", npm)
    for site in serve_folder(tmp_path / "web"):
        driven = drive(npm, site, [{"do": "text", "selector": "#notice"}], tmp_path, ready="#notice.bad")
    assert "The self-test failed" in driven.outputs[0]


def _fake_ort(folder: Path) -> Path:
    dist = folder / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (dist / name).write_bytes(name.encode())
    return dist


def test_find_ort_web__in_each_usual_place(tmp_path: Path) -> None:
    dist = _fake_ort(tmp_path)
    places = [tmp_path, tmp_path / "node_modules", dist.parent, dist]
    assert [find_ort_web(place)[0] for place in places] == [dist / "ort.wasm.min.mjs"] * 4
    with pytest.raises(ConfigError, match="npm install onnxruntime-web@") as raised:
        find_ort_web(tmp_path / "nowhere")
    assert raised.value.options == ("ort_web=FOLDER",)


def test_write_web_folder__holds_everything_and_replaces_only_its_own(color_model: Path, tmp_path: Path) -> None:
    _fake_ort(tmp_path)
    page = write_web_folder(color_model, tmp_path / "web", tmp_path)
    names = {str(path.relative_to(tmp_path / "web")) for path in (tmp_path / "web").rglob("*") if path.is_file()}
    assert {"index.html", "app.js", "worker.js", "ort/ort.wasm.min.js", "settings.json", color_model.name} <= names
    assert "server.js" not in names
    assert "LocalModel" in page.with_name("app.js").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="already exists"):
        write_web_folder(color_model, tmp_path / "web", tmp_path)
    write_web_folder(color_model, tmp_path / "web", tmp_path, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="new or empty folder"):
        write_web_folder(color_model, tmp_path / "mine", tmp_path, overwrite=True)


def test_write_web_folder__refuses_what_browsers_cannot_do(tmp_path: Path) -> None:
    def refused(name: str, contract: Contract) -> str:
        model = make_model(tmp_path / f"{name}.onnx", contract=contract)
        with pytest.raises(ModelFileError) as raised:
            write_web_folder(model, tmp_path / "web", tmp_path)
        return str(raised.value)

    assert "box" in refused("boxes", make_contract(boxes=BoxCrop(0.1, True)))
    stack = build_preprocessing((8, 8), channels=("0", "1", "2"))
    assert "channels" in refused("stack", make_contract(preprocessing=stack))
