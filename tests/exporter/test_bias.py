from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.images import noise
from tl.exporter.quantization import correct_biases


def make_conv(groups: int) -> onnx.ModelProto:
    """uint8 (N, 8, 8, 3) -> one named 2x2 convolution of the float channels."""
    weights = np.random.default_rng(0).normal(0, 1, (6, 3 // groups, 2, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["images"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["first"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["pixels", "weight", "bias"], ["out"], name="conv", group=groups),
        ],
        "conv",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 6, 7, 7])],
        [numpy_helper.from_array(weights, "weight"), numpy_helper.from_array(np.zeros(6, np.float32), "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}


@pytest.mark.parametrize("groups", [1, 3])
def test_correct_biases__rounding_shifts_no_channel_on_average(tmp_path: Path, groups: int) -> None:
    model, images = make_conv(groups), np.stack([noise(8, 8) for _ in range(6)])
    correct_biases(model, images, set(), tmp_path)
    weight, bias = tensors(model)["weight"], tensors(model)["bias"]
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    rounded = np.rint(weight / scale) * scale
    means = images.mean(axis=(0, 1, 2)).astype(np.float64)
    inputs = means if groups == 1 else np.repeat(means, 2)[:, None]
    shift = ((rounded - weight).sum(axis=(2, 3)) * inputs).sum(axis=1)
    assert np.abs(shift).max() > 1e-3  # otherwise there would be nothing to correct
    # A float32 mean of pixels up to 255, times errors of 1/254 of a weight.
    np.testing.assert_allclose(bias, -shift, atol=1e-4)


def test_correct_biases__kept_convolutions_are_left_alone(tmp_path: Path) -> None:
    model = make_conv(1)
    correct_biases(model, np.stack([noise(8, 8)]), {"conv"}, tmp_path)
    assert not tensors(model)["bias"].any()
