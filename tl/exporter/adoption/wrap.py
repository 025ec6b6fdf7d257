"""Wrap a foreign graph: `images` uint8 (N, H, W, 3) in, `probabilities` float32 (N, C) out.

Does not run graphs: a network can be written in several ways, and `adopt` takes the first candidate that gives the
same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import version_converter
from onnx_ir.passes import common

from tl.exporter.adoption.foreign import Foreign, Kind
from tl.exporter.adoption.presets import ForeignPreprocessing
from tl.exporter.publish import opset_of
from tl.runtime.model_file.protobuf import IR_VERSION
from tl.runtime.session import INPUT_NAME

# DESIGN: onnxruntime 1.18, the oldest supported version, must load the file.
MIN_OPSET, MAX_OPSET = 18, 20
OLDEST_OPSET = 7  # in older opsets, operators broadcast differently from the nodes written here
OUTPUT_NAME = "probabilities"
# Of logits of one class, or of each label by itself.
Activation = Literal["Softmax", "Sigmoid"]


def wrapped_graphs(
    foreign: Foreign,
    pixel_rules: ForeignPreprocessing,
    kind: Kind,
    input_hw: tuple[int, int],
    num_classes: int,
    activation: Activation = "Softmax",
) -> Iterator[onnx.ModelProto]:
    """Candidates, best first: at our opset or else its own, and then with reshapes freed of a fixed batch size."""
    for model in _opsets(foreign.model):
        for free_batch in (False, True) if foreign.batch is not None else (False,):
            yield _wrap(model, foreign, pixel_rules, kind, input_hw, num_classes, free_batch, activation)


def _opsets(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    opset = opset_of(model)
    target = min(max(opset, MIN_OPSET), MAX_OPSET)
    if opset != target:
        converted = None
        with suppress(Exception):  # the converter raises arbitrary exceptions; then try the next candidate
            converted = version_converter.convert_version(model, target)
        if converted is not None:
            yield converted
    if OLDEST_OPSET <= opset <= MAX_OPSET:
        yield model


def _wrap(
    proto: onnx.ModelProto,
    foreign: Foreign,
    pixel_rules: ForeignPreprocessing,
    kind: Kind,
    input_hw: tuple[int, int],
    num_classes: int,
    free_batch: bool,
    activation: Activation,
) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    graph = model.graph
    common.RemoveInitializersFromInputsPass()(model)
    _forget_shapes(model)
    if free_batch:
        _free_reshapes(graph, foreign.batch or 1)
    (old_input,) = graph.inputs
    output = next(value for value in graph.outputs if value.name == foreign.output_name)
    tape = ir.tape.Tape()
    images = ir.val(INPUT_NAME, ir.DataType.UINT8, ["N", *input_hw, 3])
    ready = _prepare(tape, images, foreign, pixel_rules)
    before = list(tape.nodes)
    ir.convenience.replace_all_uses_with(old_input, ready)
    graph.inputs[:] = [images]
    if before and len(graph):
        graph.insert_before(graph[0], before)
    probabilities = _finish(tape, output, foreign, activation if kind == "logits" else None)
    graph.extend(list(tape.nodes)[len(before) :])
    for value in tape.initializers:
        graph.register_initializer(value)
    probabilities.shape, probabilities.dtype = ir.Shape(["N", num_classes]), ir.DataType.FLOAT
    graph.outputs[:] = [probabilities]
    return _tidy(model, images, probabilities)


def _prepare(tape: ir.tape.Tape, images: ir.Value, foreign: Foreign, pixel_rules: ForeignPreprocessing) -> ir.Value:
    """Pixels -> the network's input: `pixel * gain + bias` in float32, in its layout and dtype."""
    value = images
    if foreign.layout == "nchw":
        value = tape.op("Transpose", [value], {"perm": [0, 3, 1, 2]})
    value = tape.op("Cast", [value], {"to": ir.DataType.FLOAT})
    mean, std = np.array(pixel_rules.mean), np.array(pixel_rules.std)
    value = tape.op("Mul", [value, _channels(tape, "tl_gain", pixel_rules.scale / std, foreign)])
    if mean.any():
        value = tape.op("Add", [value, _channels(tape, "tl_bias", -mean / std, foreign)])
    if foreign.dtype == np.float16:
        value = tape.op("Cast", [value], {"to": ir.DataType.FLOAT16})
    return value


def _channels(tape: ir.tape.Tape, name: str, values: NDArray[np.float64], foreign: Foreign) -> ir.Value:
    shape = (1, 3, 1, 1) if foreign.layout == "nchw" else (1, 1, 1, 3)
    return tape.initializer(ir.tensor(values.astype(np.float32).reshape(shape)), name)


def _finish(tape: ir.tape.Tape, output: ir.Value, foreign: Foreign, activation: Activation | None) -> ir.Value:
    """The network's output, (N, C) or with trailing dimensions of size 1 -> probabilities (N, C)."""
    value = tape.op("Flatten", [output], {"axis": 1})
    if foreign.output_dtype != np.float32:
        value = tape.op("Cast", [value], {"to": ir.DataType.FLOAT})
    if activation is not None:
        value = tape.op(activation, [value], {"axis": 1} if activation == "Softmax" else {})
    return value


def _tidy(model: ir.Model, images: ir.Value, probabilities: ir.Value) -> onnx.ModelProto:
    """Rename input and output to ours and make other names unique; remove unused and private content."""
    for value in _values(model.graph):
        if value.name in (INPUT_NAME, OUTPUT_NAME):
            value.name = f"foreign_{value.name}"
    images.name, probabilities.name = INPUT_NAME, OUTPUT_NAME
    common.NameFixPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.ir_version, model.graph.name = IR_VERSION, "adopted"
    model.doc_string = model.domain = None
    return ir.to_proto(model)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _forget_shapes(model: ir.Model) -> None:
    """Remove inner shapes, which were inferred for the old batch and size."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None


def _free_reshapes(graph: ir.Graph, batch: int) -> None:
    """Make reshapes to a constant shape with a fixed batch size take the first dimension from their input instead."""
    for place, node in enumerate(list(graph.all_nodes())):
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        wanted = ir.convenience.get_const_tensor(node.inputs[1])
        if wanted is None or wanted.numpy().reshape(-1)[:1].tolist() != [batch] or not wanted.numpy().all():
            continue
        shape = wanted.numpy().copy()
        shape[0] = 0
        freed = ir.Value(name=f"tl_any_batch_{place}", const_value=ir.tensor(shape))
        graph.register_initializer(freed)
        node.replace_input_with(1, freed)
        node.attributes.pop("allowzero", None)  # set by torch; it has no effect on a shape without zeros
