"""Inspect a model file's graph: the first layer's filters, and feature maps around a non-linearity.

Reads onnx graphs and runs them on one input. Does not draw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tl.errors import ConfigError, ModelFileError
from tl.runtime.session import Session

_NONLINEAR = {"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "Mish", "Tanh"}
_NONLINEAR |= {"Sigmoid", "HardSigmoid", "Softplus", "ThresholdedRelu"}
# x * sigmoid(x) is one non-linearity in two nodes: SiLU, or hard swish.
_GATES = {"Sigmoid", "HardSigmoid"}
_SHOWN = 12


@dataclass(frozen=True)
class Activation:
    """A non-linearity on feature maps. `layer`: computes its input; `before`, `after`: tensors of the graph."""

    number: int
    layer: str
    kind: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.number} {self.kind} after {self.layer}"


def first_filters(path: str | os.PathLike[str]) -> tuple[str, NDArray[np.float32]]:
    """Name and weights (O, I, kh, kw) of the first convolution. Raises `ModelFileError` if there is none."""
    graph = _load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            if node.input[1] not in weights:
                break
            return _layer_name(node.input[1]), numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
    raise ModelFileError(
        f"{os.fspath(path)}: its first layer is not a convolution with plain weights; for int8 files, use the fp32 file"
    )


def list_activations(path: str | os.PathLike[str]) -> list[Activation]:
    """The non-linearities on maps (N, C, h, w), in computation order."""
    return _activations(_load(path))


def choose_activation(found: Sequence[Activation], asked: str) -> Activation:
    """Select by number or by the name of the preceding layer. Raises `ConfigError` that lists the available ones."""
    if not found:
        raise ConfigError(
            "this graph has no supported non-linearity on feature maps: transformers have no feature "
            "maps, and GELU consists of several operators"
        )
    chosen = [each for each in found if asked in (str(each.number), each.layer)]
    if not chosen:
        listed = "; ".join(map(str, found[:_SHOWN])) + (f"; ... {len(found)} in all" if len(found) > _SHOWN else "")
        raise ConfigError(f"layer {asked}: not found; expected one of {listed}")
    return chosen[0]


def run_activation(
    path: str | os.PathLike[str], activation: Activation, image: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maps (C, h, w) before and after the non-linearity, for an input uint8 (H, W, 3)."""
    model = _load(path)
    names = [activation.before, activation.after]
    kinds = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    kept = {output.name for output in model.graph.output}
    model.graph.output.extend(kinds[name] for name in names if name not in kept)
    with TemporaryDirectory(prefix="tl-") as folder:
        tapped = Path(folder) / "tapped.onnx"
        tapped.write_bytes(model.SerializeToString())
        before, after = Session(tapped, device="cpu").run(image[None], names)
    return before[0].astype(np.float32), after[0].astype(np.float32)


def _load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf and onnx share no base class
        raise ModelFileError(f"{os.fspath(path)}: onnx cannot read it ({error})") from error


def _activations(model: onnx.ModelProto) -> list[Activation]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    maps = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 4}
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    found: list[Activation] = []
    for node, before, after in _nonlinearities(graph):
        if before in maps and after in maps:
            maker = makers.get(before)
            layer = next((_layer_name(n) for n in maker.input if n in weights), maker.op_type) if maker else before
            found.append(Activation(len(found) + 1, layer, node.op_type, before, after))
    return found


def _nonlinearities(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, str, str]]:
    """Node, its input and its output; for a gate, the gated tensor."""
    gated = {frozenset(node.input): node.output[0] for node in graph.node if node.op_type == "Mul"}
    for node in graph.node:
        if node.op_type in _NONLINEAR:
            before, after = node.input[0], node.output[0]
            if node.op_type in _GATES:
                after = gated.get(frozenset((before, after)), after)
            yield node, before, after


def _layer_name(weight: str) -> str:
    """A weight's name without the prefix and suffix that all of ours share."""
    member, slash, name = weight.rpartition("/")  # for merged files
    for first in ("network.", "trunk.", "classifier."):
        name = name.removeprefix(first)
    return member + slash + name.removesuffix(".weight").removesuffix(".bias")
