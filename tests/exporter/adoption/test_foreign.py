from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.exporter.adoption.foreign_models import GAIN, make_foreign, rewrite
from tl.errors import ModelFileError
from tl.exporter.adoption.foreign import ForeignSession, read_foreign, tell_kind

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]], np.float32)
SUMMING = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
BETWEEN = np.array([[0.2, 0.3, 0.1], [0.9, 0.8, 0.7]], np.float32)


@pytest.mark.parametrize(
    ("form", "facts"),
    [
        ({}, ("nchw", None, (32, 32), "MatMul", "fp32")),
        ({"layout": "nhwc", "batch": 2}, ("nhwc", 2, (32, 32), "MatMul", "fp32")),
        ({"hw": ("h", 48), "final": "probabilities"}, ("nchw", None, (None, 48), "Softmax", "fp32")),
        ({"dtype": onnx.TensorProto.FLOAT16}, ("nchw", None, (32, 32), "MatMul", "fp16")),
    ],
)
def test_read_foreign__facts(tmp_path: Path, form: dict[str, Any], facts: tuple[object, ...]) -> None:
    found = read_foreign(make_foreign(tmp_path / "foreign.onnx", **form))
    assert (found.layout, found.batch, found.graph_hw, found.final_op, found.precision) == facts
    assert (found.input_name, found.output_name) == ("x", "y")


def test_read_foreign__quantized(tmp_path: Path) -> None:
    def quantize(model: onnx.ModelProto) -> None:
        step = onnx.numpy_helper.from_array(np.array(0.1, np.float32), "step")
        model.graph.initializer.append(step)
        model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["x", "step"], ["steps"]))

    assert read_foreign(rewrite(make_foreign(tmp_path / "int8.onnx"), quantize)).precision == "int8"


def test_read_foreign__initializers_listed_as_inputs(tmp_path: Path) -> None:
    def list_weights(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3, 3]))

    assert read_foreign(rewrite(make_foreign(tmp_path / "old.onnx", ir_version=3), list_weights)).input_name == "x"


def test_read_foreign__several_inputs(tmp_path: Path) -> None:
    def add_input(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch"]))

    with pytest.raises(ModelFileError, match=r"expected one input, found 2 \(x, mask\): export only the classifier"):
        read_foreign(rewrite(make_foreign(tmp_path / "two.onnx"), add_input))


def test_read_foreign__layout_is_asked_for_where_both_fit(tmp_path: Path) -> None:
    path = make_foreign(tmp_path / "tiny.onnx", hw=(8, 3))
    with pytest.raises(ModelFileError, match="its layout is ambiguous"):
        read_foreign(path)
    assert read_foreign(path, "nchw").graph_hw == (8, 3)
    assert read_foreign(path, "nhwc").graph_hw == (3, 8)


def test_read_foreign__weights_outside_the_file(tmp_path: Path) -> None:
    path = make_foreign(tmp_path / "foreign.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="foreign.onnx.data", size_threshold=0)
    with pytest.raises(ModelFileError, match=r"external data .*onnx.save\(onnx.load\('foreign.onnx'\), 'one.onnx'\)"):
        read_foreign(path)
    onnx.save(onnx.load(path), tmp_path / "one.onnx")
    assert read_foreign(tmp_path / "one.onnx").batch is None


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 a checkpoint"])
def test_read_foreign__no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"net.onnx: "):
        read_foreign(tmp_path / "net.onnx")


def test_read_foreign__invalid_graph(tmp_path: Path) -> None:
    def cut(model: onnx.ModelProto) -> None:
        model.graph.node[-1].input[0] = "nowhere"

    with pytest.raises(ModelFileError, match="not a valid ONNX model"):
        read_foreign(rewrite(make_foreign(tmp_path / "cut.onnx"), cut))


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_foreign_session__any_number_of_images(tmp_path: Path, batch: int | str) -> None:
    session = ForeignSession(read_foreign(make_foreign(tmp_path / "foreign.onnx", batch=batch)))
    pixels = np.random.default_rng(0).random((10, 32, 32, 3)).astype(np.float32)
    wanted = pixels.mean(axis=(1, 2)) @ GAIN
    np.testing.assert_allclose(session.run(pixels), wanted, rtol=0, atol=1e-5)  # sums of 1024 float32 values


def test_foreign_session__a_size_that_the_network_cannot_take(tmp_path: Path) -> None:
    session = ForeignSession(read_foreign(make_foreign(tmp_path / "foreign.onnx")))
    with pytest.raises(ModelFileError, match="cannot run it on input 1x3x16x16"):
        session.run(np.zeros((1, 16, 16, 3), np.float32))


@pytest.mark.parametrize(
    ("final", "rows", "asked", "kind"),
    [
        ("logits", LOGITS, None, "logits"),
        ("probabilities", SUMMING, None, "probabilities"),
        ("logits", SUMMING, None, "probabilities"),  # a softmax written as exp, sum and division
        ("logits", SUMMING, "logits", "logits"),
        ("relu", BETWEEN, "logits", "logits"),
    ],
)
def test_tell_kind(tmp_path: Path, final: str, rows: np.ndarray, asked: Any, kind: str) -> None:
    assert tell_kind(read_foreign(make_foreign(tmp_path / "foreign.onnx", final=final)), rows, asked) == kind


@pytest.mark.parametrize(
    ("final", "rows", "asked", "message"),
    [
        ("relu", BETWEEN, None, "cannot distinguish logits from probabilities"),
        ("probabilities", LOGITS, None, "cannot distinguish logits from probabilities"),
        ("logits", LOGITS, "probabilities", "rows do not sum to 1"),
        ("sigmoid", BETWEEN, None, "classes are not mutually exclusive"),
    ],
)
def test_tell_kind__refused(tmp_path: Path, final: str, rows: np.ndarray, asked: Any, message: str) -> None:
    foreign = read_foreign(make_foreign(tmp_path / "foreign.onnx", final=final))
    with pytest.raises(ModelFileError, match=message):
        tell_kind(foreign, rows, asked)
