"""Replace the head in a model file's graph: the part that computes `embedding` is unchanged, byte for byte.

Does not run or fit anything, and does not handle contracts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from tl.data.features import SHORTEST
from tl.errors import ModelFileError
from tl.evaluation.ood import OodFit

EMBEDDING = "embedding"


@dataclass(frozen=True)
class NewHead:
    """Logits = embedding @ `weight`.T + `bias`, float32 (C, D) and (C,), divided by `temperature`.

    `with_cam`: also output class activation maps, which requires an embedding that is the average of a map.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    temperature: float
    unknown: OodFit | None
    with_cam: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output names of the graph, the deciding one first."""
        further = ("ood_score",) * (self.unknown is not None) + ("cam",) * self.with_cam
        return ("probabilities", EMBEDDING, *further)

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) -> (N, C), in double precision, before the temperature."""
        return np.asarray(embeddings.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias)

    def probabilities(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) -> (N, C)."""
        logits = self.logits(embeddings) / self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)

    def expected(self, embeddings: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The expected outputs of the new graph, except for the maps."""
        found = {"probabilities": self.probabilities(embeddings), EMBEDDING: embeddings}
        return found if self.unknown is None else {**found, "ood_score": self.unknown.scores(embeddings)}


def replace_head(proto: onnx.ModelProto, head: NewHead) -> onnx.ModelProto:
    """The graph with `head.outputs`. Raises `ModelFileError` for maps where the embedding is not an average of one."""
    model = ir.from_proto(proto)
    graph = model.graph
    embedding = next(value for value in graph.outputs if value.name == EMBEDDING)
    graph.outputs[:] = [embedding]
    common.RemoveUnusedNodesPass()(model)
    tape = ir.tape.Tape()
    builder = _Builder(tape)
    outputs: dict[str, tuple[ir.Value, list[int | None]]] = {
        "probabilities": (builder.probabilities(embedding, head), [len(head.bias)])
    }
    if head.unknown is not None:
        outputs["ood_score"] = (builder.ood_score(embedding, head.unknown), [])
    if head.with_cam:
        outputs["cam"] = (builder.cam(_map_behind(embedding)), [len(head.bias), None, None])
    graph.extend(list(tape.nodes))
    for value in tape.initializers:
        graph.register_initializer(value)
    for name, (value, shape) in outputs.items():
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(["N", *shape])
    graph.outputs[:] = [embedding if name == EMBEDDING else outputs[name][0] for name in head.outputs]
    common.NameFixPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    return ir.to_proto(model)


def _map_behind(embedding: ir.Value) -> ir.Value:
    """The map (N, D, h, w) whose average is the embedding."""
    node = embedding.producer()
    source = node.inputs[0] if node is not None and node.op_type == "ReduceMean" else None
    if source is None:
        raise ModelFileError(
            "the embedding of this graph is not the average of a feature map, which class activation maps require"
        )
    return source


class _Builder:
    """Nodes of a head. Constants are named under `refit/`."""

    def __init__(self, tape: ir.tape.Tape) -> None:
        self._tape = tape

    def probabilities(self, embedding: ir.Value, head: NewHead) -> ir.Value:
        """softmax((embedding @ weight.T + bias) / temperature)."""
        self._weight = self._constant("weight", np.ascontiguousarray(head.weight.T))
        self._bias = self._constant("bias", head.bias)
        logits = self._tape.op("Gemm", [embedding, self._weight, self._bias])
        temperature = self._constant("temperature", np.array(head.temperature, np.float32))
        return self._tape.op("Softmax", [self._tape.op("Div", [logits, temperature])], {"axis": 1})

    def cam(self, last: ir.Value) -> ir.Value:
        """The head at each position of the map, after `probabilities`: (N, D, h, w) -> (N, C, h, w)."""
        op = self._tape.op
        places = op("MatMul", [op("Transpose", [last], {"perm": [0, 2, 3, 1]}), self._weight])
        return op("Transpose", [op("Add", [places, self._bias])], {"perm": [0, 3, 1, 2]})

    def ood_score(self, embedding: ir.Value, fit: OodFit) -> ir.Value:
        """As `OodFit.scores`."""
        op = self._tape.op
        axis = self._constant("axis", np.array([1], np.int64))
        shortest = self._constant("shortest", np.array(SHORTEST, np.float32))
        unit = self._unit(embedding, axis, shortest)
        unit = self._unit(op("Sub", [unit, self._constant("center", fit.center)]), axis, shortest)
        along = op("MatMul", [unit, self._constant("directions", fit.directions)])
        length = op("Sub", [self._squared(unit, axis), self._squared(along, axis)])
        likeness = op("MatMul", [unit, self._constant("templates", 2 * fit.templates)])
        apart = op("Sub", [self._constant("offsets", fit.offsets), likeness])
        squares = op("Add", [length, op("ReduceMin", [apart, axis], {"keepdims": 0})])
        return op("Sqrt", [op("Max", [squares, self._constant("zero", np.array(0, np.float32))])])

    def _unit(self, vectors: ir.Value, axis: ir.Value, shortest: ir.Value) -> ir.Value:
        """(N, D) scaled to length 1, unless it is below `shortest`."""
        length = self._tape.op("ReduceL2", [vectors, axis], {"keepdims": 1})
        return self._tape.op("Div", [vectors, self._tape.op("Max", [length, shortest])])

    def _squared(self, vectors: ir.Value, axis: ir.Value) -> ir.Value:
        """(N, D) -> squared lengths (N,)."""
        return self._tape.op("ReduceSumSquare", [vectors, axis], {"keepdims": 0})

    def _constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        return self._tape.initializer(ir.tensor(value), f"refit/{name}")
