from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.exporter.test_export import FORBIDDEN
from tests.trainer.make import make_noise, plain_text
from tl.exporter.export import Exported, export_run
from tl.exporter.export_source import ExtraOutputs
from tl.exporter.quantization import INT8_WAYS, Way, _Batches, _early_nodes, _edge_nodes, to_fp16, to_int8
from tl.progress import Silent
from tl.runtime.session import Session
from tl.trainer.run_folder.run import Run


@pytest.fixture(scope="session")
def exported(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run as a model file without `ood_score`, as `reduce_precision` makes it before it converts it; read only."""
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    return export_run(finished_run, path, Silent(), further=ExtraOutputs(unknown=False))


IMAGES = np.stack([make_noise(i, (40 * i, 200 - 30 * i, 128), (32, 32)) for i in range(6)])


def tensor_types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(model: onnx.ModelProto, folder: Path) -> list[np.ndarray]:
    """Probabilities and embedding of `IMAGES`, individually and in one batch."""
    path = folder / "lower.onnx"
    path.write_bytes(model.SerializeToString())
    session = Session(path, device="cpu", threads=1, require_contract=False)
    together = session.run(IMAGES, ["probabilities", "embedding"])
    alone = session.run(IMAGES[:1], ["probabilities", "embedding"])
    for one, many in zip(alone, together, strict=True):
        # In a batch, an image may be rounded differently, by one step of the last layers' values.
        np.testing.assert_allclose(one[0], many[0], rtol=0.05, atol=1e-2)
    return together


def assert_fit_to_publish(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version == 10
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    content = plain_text(model)
    for word in FORBIDDEN:
        assert word not in content, word
    images, probabilities = model.graph.input[0].type.tensor_type, model.graph.output[0].type.tensor_type
    assert (images.elem_type, probabilities.elem_type) == (TensorProto.UINT8, TensorProto.FLOAT)
    assert images.shape.dim[0].dim_param  # any number of images


def test_to_fp16__half_inside_and_the_same_outside(exported: Exported, tmp_path: Path) -> None:
    plain = onnx.load(exported.path)
    lower = to_fp16(plain)
    assert_fit_to_publish(lower)
    assert tensor_types(lower)["FLOAT16"] > tensor_types(lower)["FLOAT"] > 0  # the last layer's tensors remain
    assert tensor_types(plain)["FLOAT16"] == 0  # a copy was converted
    for found, wanted in zip(run(lower, tmp_path), run(plain, tmp_path), strict=True):
        assert found.dtype == np.float32
        # An 11-bit mantissa, through a few layers.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-2 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("way", INT8_WAYS, ids=["minmax", "quarter", "half"])
def test_to_int8__eight_bits_inside_and_nearly_the_same_outside(
    exported: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str], way: Way
) -> None:
    plain = onnx.load(exported.path)
    lower = to_int8(plain, IMAGES, way)
    assert capfd.readouterr().out == ""  # stdout is reserved for data
    assert_fit_to_publish(lower)
    assert tensor_types(lower)["INT8"] > 0
    assert operators(lower)["QuantizeLinear"] > 0
    assert {"QLinearConv", "ConvInteger"}.isdisjoint(operators(lower))
    for found, wanted in zip(run(lower, tmp_path), run(plain, tmp_path), strict=True):
        # 256 steps per layer, through a few layers.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.2 * max(1.0, np.abs(wanted).max()))


def test_to_int8__a_scale_for_each_channel_and_the_edges_in_float(exported: Exported) -> None:
    lower = to_int8(onnx.load(exported.path), IMAGES, INT8_WAYS[0])
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in lower.graph.initializer}
    makers = {output: node for node in lower.graph.node for output in node.output}
    convolutions = [node for node in lower.graph.node if node.op_type == "Conv"]
    assert convolutions[0].input[1] in values  # the first layer's weights are not the output of a DequantizeLinear
    for node in convolutions[1:]:
        weights = makers[node.input[1]]
        assert weights.op_type == "DequantizeLinear"
        assert values[weights.input[0]].dtype == np.int8
        assert values[weights.input[1]].shape == (len(values[weights.input[0]]),)
    (softmax,) = (node for node in lower.graph.node if node.op_type == "Softmax")
    assert makers[softmax.input[0]].op_type != "DequantizeLinear"
    assert list(softmax.output) == ["probabilities"]


def chain() -> onnx.GraphProto:
    """images -> c1 -> relu -> c2 -> + <- c3 <- relu, then head -> softmax, and a second output beside the head."""
    node = helper.make_node
    return helper.make_graph(
        [
            node("Conv", ["x", "w1"], ["a"], "c1"),
            node("Relu", ["a"], ["b"], "relu"),
            node("Conv", ["b", "w2"], ["c"], "c2"),
            node("Conv", ["b", "w3"], ["d"], "c3"),
            node("Add", ["c", "d"], ["e"], "sum"),
            node("Gemm", ["e", "w4"], ["f"], "head"),
            node("Softmax", ["f"], ["p"], "softmax"),
            node("Relu", ["e"], ["g"], "embedding"),
        ],
        "chain",
        [],
        [],
        [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in ("w1", "w2", "w3", "w4")],
    )


def test_edge_nodes__by_hand() -> None:
    assert _edge_nodes(chain()) == ({"c1"}, {"head", "softmax"})


@pytest.mark.parametrize(("share", "wanted"), [(0, set()), (0.25, {"c1", "relu"}), (0.6, {"c1", "relu", "c2"})])
def test_early_nodes__by_hand(share: float, wanted: set[str]) -> None:
    assert _early_nodes(chain(), share) == wanted


def test_edge_nodes__products_of_two_results_are_no_layers() -> None:
    graph = chain()
    graph.node.append(helper.make_node("MatMul", ["p", "g"], ["h"], "attention"))
    assert _edge_nodes(graph) == ({"c1"}, {"head", "softmax", "attention"})


def test_batches__are_read_by_parts() -> None:
    batches = _Batches(IMAGES)
    assert len(batches) == 2
    assert batches.get_next() is None
    batches.set_range(1, 2)
    (part,) = batches.get_next().values()  # type: ignore[union-attr]
    np.testing.assert_array_equal(part, IMAGES[4:])
    assert batches.get_next() is None
