"""Small ONNX classifiers in the form that other tools export, built by hand: mean color, gain, optional softmax."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.models import COLORS

HW = (32, 32)
GAIN = np.eye(3, dtype=np.float32) * 2
PROCESSOR = {
    "image_processor_type": "MobileNetV2ImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.25, 0.125],
}


@dataclass(frozen=True)
class Form:
    """How a tool writes the classifier. `tail`: flatten, reshape (to a fixed batch), stubborn (cannot be made dynamic).

    `first`: a node applied to the input before all others, with its own `constant`.
    """

    layout: str = "nchw"
    batch: int | str = "batch"
    hw: tuple[int | str, int | str] = HW
    channels: int | str = 3
    final: str = "logits"
    tail: str = "flatten"
    opset: int = 17
    ir_version: int = 8
    input_name: str = "x"
    output_name: str = "y"
    dtype: int = TensorProto.FLOAT
    metadata: Mapping[str, str] | None = None
    gain: NDArray[np.float32] | None = None
    first: onnx.NodeProto | None = None
    constant: onnx.TensorProto | None = None


def make_foreign(path: Path, **changes: Any) -> Path:
    """Write the classifier in a `Form` with `changes`."""
    form = Form(**changes)
    gain = GAIN if form.gain is None else form.gain
    sizes = [form.channels, *form.hw] if form.layout == "nchw" else [*form.hw, form.channels]
    nodes, constants = _head(form), [_constant("w", gain.astype(helper.tensor_dtype_to_np_dtype(form.dtype)))]
    if form.tail != "flatten":
        constants.append(_constant("rows", np.array([form.batch, 3])))
    if form.tail == "stubborn":
        constants.append(_constant("line", np.array([3])))
    if form.constant is not None:
        constants.append(form.constant)
    final = {"logits": "Identity", "probabilities": "Softmax", "sigmoid": "Sigmoid", "relu": "Relu"}[form.final]
    axis = {"axis": 1} if final == "Softmax" else {}
    nodes += [
        helper.make_node("MatMul", ["means", "w"], ["scores"]),
        helper.make_node(
            final, ["scores"], [form.output_name], name="last", doc_string="/somewhere/someone/net.py", **axis
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info(form.input_name, form.dtype, [form.batch, *sizes])],
        [helper.make_tensor_value_info(form.output_name, form.dtype, [form.batch, gain.shape[1]])],
        constants,
    )
    opsets = [helper.make_opsetid("", form.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=form.ir_version, producer_name="pytorch")
    model.doc_string = "/somewhere/someone/train.py"
    helper.set_model_props(model, dict(form.metadata or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def make_ultralytics(path: Path, names: Sequence[str] = COLORS, **changes: Any) -> Path:
    """A classifier exported by Ultralytics: probabilities, input `images`, output `output0`, metadata as Python."""
    metadata = {"task": "classify", "imgsz": str([*HW]), "names": str(dict(enumerate(names))), "batch": "1"}
    metadata |= changes.pop("metadata", {})
    form = {"input_name": "images", "output_name": "output0", "final": "probabilities", "batch": 1} | changes
    return make_foreign(path, metadata=metadata, **form)


def make_huggingface(
    folder: Path, names: Sequence[str] = COLORS, processor: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """A folder as exported by optimum. None in `processor` deletes a field."""
    make_foreign(folder / "model.onnx", **{"input_name": "pixel_values", "output_name": "logits"} | changes)
    config = {"id2label": {str(i): name for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    fields = {name: value for name, value in (PROCESSOR | dict(processor or {})).items() if value is not None}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def expected(
    inputs: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    scale: float = 1 / 255,
    gain: NDArray[np.float32] = GAIN,
) -> NDArray[np.float64]:
    """Reference computation: softmax of the mean normalized color times `gain`. (N, H, W, 3) -> (N, C)."""
    means = ((inputs.astype(np.float64) * scale - mean) / std).mean(axis=(1, 2))
    powers = np.exp(means @ gain.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def rewrite(path: Path, change: Any) -> Path:
    """Load a model file, modify it with `change`, and write it back."""
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _head(form: Form) -> list[onnx.NodeProto]:
    """Image -> its mean color, (N, 3)."""
    nodes = []
    value = form.input_name
    if form.first is not None:
        nodes.append(form.first)
        value = form.first.output[0]
    if form.layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [value], ["turned"], perm=[0, 3, 1, 2]))
        value = "turned"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    if form.tail == "flatten":
        nodes.append(helper.make_node("Flatten", ["pooled"], ["means"], axis=1))
    elif form.tail == "reshape":
        allow_zero = {"allowzero": 1} if form.opset >= 14 else {}  # as written by torch
        nodes.append(helper.make_node("Reshape", ["pooled", "rows"], ["means"], **allow_zero))
    else:
        nodes.append(helper.make_node("Reshape", ["pooled", "line"], ["flat"]))
        nodes.append(helper.make_node("Reshape", ["flat", "rows"], ["means"]))
    return nodes


def _constant(name: str, values: NDArray[Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(values if values.dtype.kind == "f" else values.astype(np.int64), name)
