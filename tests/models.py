"""Small real model files and images for tests, created without torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.runtime.model_file.contract import (
    METADATA_KEY,
    SCHEMA_VERSION,
    Contract,
    Golden,
    GoldenSample,
    Parity,
    Provenance,
    dump_contract,
)
from tl.runtime.model_file.selftest import encode_golden_png

COLORS = ("red", "green", "blue")


def color_probabilities(image: NDArray[np.uint8], gain: float = 0.05) -> NDArray[np.float32]:
    """Reference for the color model: softmax of gain x mean of each channel. (H, W, 3) -> (3,)."""
    logits = gain * image.reshape(-1, 3).astype(np.float64).mean(axis=0)
    powers = np.exp(logits - logits.max())
    return (powers / powers.sum()).astype(np.float32)


def make_contract(
    class_names: Sequence[str] = COLORS,
    preprocessing: Preprocessing | None = None,
    *,
    gain: float = 0.05,
    **changes: Any,
) -> Contract:
    """A complete contract for the color model, with two golden samples."""
    preprocessing = preprocessing or build_preprocessing((8, 8))
    samples = []
    for color in (200, 30, 90), (10, 20, 250):
        image = solid(color, *preprocessing.input_hw)
        order = [COLORS.index(name) for name in class_names] if set(class_names) == set(COLORS) else [0, 1, 2]
        probabilities = color_probabilities(image, gain)[order[: len(class_names)]]
        samples.append(GoldenSample(encode_golden_png(image), tuple(map(float, probabilities))))
    contract = Contract(
        schema_version=SCHEMA_VERSION,
        task="classification",
        precision="fp32",
        class_names=tuple(class_names),
        keypoint_names=(),
        landmarks=None,
        regression=None,
        multilabel=None,
        preprocessing=preprocessing,
        outputs=("probabilities",),
        temperature=1.0,
        ensemble=None,
        conformal=None,
        ood=None,
        taxonomy=None,
        boxes=None,
        provenance=Provenance("none", "none", "test", {}, "", {}, {"onnx": onnx.__version__}, "2026-01-01T00:00:00"),
        parity=Parity(1, (1,), {"probabilities": 0.0}, 0.0, 1.0, 1e-4),
        quantization=None,
        any_size=None,
        golden=Golden("synthetic", {"fp32": 1e-4}, tuple(samples)),
    )
    return dataclasses.replace(contract, **changes)


def make_model(
    path: Path,
    class_names: Sequence[str] = COLORS,
    *,
    preprocessing: Preprocessing | None = None,
    gain: float = 0.05,
    contract: Contract | str | bool | None = True,
) -> Path:
    """Write a model: uint8 NHWC -> mean color -> gain -> softmax; `class_names` reorder the colors.

    `contract`: True for a matching one, None for none, or a contract or text to embed as is.
    """
    preprocessing = preprocessing or build_preprocessing((8, 8))
    matrix = np.zeros((3, len(class_names)), np.float32)
    for column, name in enumerate(class_names):
        matrix[COLORS.index(name) if name in COLORS else column % 3, column] = gain
    height, width = preprocessing.input_hw
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("MatMul", ["means", "matrix"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "color",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(class_names)])],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(matrix, "matrix"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if contract is True:
        contract = make_contract(class_names, preprocessing, gain=gain)
    if contract is not None:
        text = contract if isinstance(contract, str) else dump_contract(contract)  # type: ignore[arg-type]
        helper.set_model_props(model, {METADATA_KEY: text})
    path.write_bytes(model.SerializeToString())
    return path


def make_cam_model(path: Path, *, gain: float = 0.05) -> Path:
    """The color model of 8x8 inputs with class activation maps `cam` (N, 3, 2, 2), whose mean is its logits."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["planes"], ["map"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Mul", ["map", "gain"], ["cam"]),
            helper.make_node("ReduceMean", ["cam", "axes"], ["logits"], keepdims=0),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "cam",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", 3, 2, 2]),
        ],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array(gain, np.float32), "gain"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    contract = make_contract(gain=gain, outputs=("probabilities", "cam"))
    helper.set_model_props(model, {METADATA_KEY: dump_contract(contract)})
    path.write_bytes(model.SerializeToString())
    return path


def assert_same_table(left: Path, right: Path) -> None:
    """Check equal text except for the last digits of numbers, which may depend on the batch size."""
    number = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
    texts = [path.read_text(encoding="utf-8", errors="surrogateescape") for path in (left, right)]
    assert re.sub(number, "#", texts[0]) == re.sub(number, "#", texts[1])
    values = [np.array(re.findall(number, text), float) for text in texts]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-6)  # the tolerance guaranteed for batches


def solid(color: tuple[int, int, int], height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    """An image of one color, uint8 (H, W, 3)."""
    return np.full((height, width, 3), color, np.uint8)
