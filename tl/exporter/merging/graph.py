"""Join graphs of several classifiers into one voting graph; equal weights and equal nodes are kept once.

Implements the voting rules of `tl.runtime.ensembles.voting` with the same float32 arithmetic in the same order. Does
not run anything, and does not handle contracts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import compose, version_converter
from onnx_ir.passes import common

from tl.exporter.publish import opset_of
from tl.runtime.ensembles.voting import Voting
from tl.runtime.model_file.protobuf import IR_VERSION
from tl.runtime.session import INPUT_NAME

OUTPUTS = ("probabilities", "label", "member_probabilities")
UNKNOWN = "ood_score"


@dataclass(frozen=True)
class Ballot:
    """A member's graph. `columns`: for each class of the ensemble, its column in the member's probabilities."""

    model: onnx.ModelProto
    columns: Sequence[int]


def merge_graphs(
    ballots: Sequence[Ballot],
    input_shape: tuple[int, int, int],
    voting: Voting,
    weights: Sequence[float],
    temperature: float = 1.0,
    *,
    with_ood_score: bool = False,
) -> onnx.ModelProto:
    """`images` uint8 (N, H, W, C) -> probabilities float32 (N, C), label int64 (N,), member_probabilities (N, M, C).

    Computations that members share, on the same values, run once. `temperature` softens the voted probabilities as
    `voting.soften` does; it changes no label. `with_ood_score`: also output ood_score (N,), the mean over members.
    """
    opset = max(opset_of(ballot.model) for ballot in ballots)
    images = ir.val(INPUT_NAME, ir.DataType.UINT8, ["N", *input_shape])
    graph = ir.Graph([images], [], nodes=[], opset_imports={"": opset}, name="ensemble")
    wanted = ("probabilities", UNKNOWN) if with_ood_score else ("probabilities",)
    members = [_add_member(graph, images, ballot, number, opset, wanted) for number, ballot in enumerate(ballots)]
    tape = ir.tape.Tape()
    ordered = [_in_order(tape, found[0], ballot.columns) for found, ballot in zip(members, ballots, strict=True)]
    count = _Count(tape, ordered, len(ballots[0].columns))
    outputs = count.outputs(voting, weights, temperature)
    if with_ood_score:
        outputs = (*outputs, count.mean([found[1] for found in members]))
    graph.extend(list(tape.nodes))
    for value in tape.initializers:
        graph.register_initializer(value)
    for name, value in zip((*OUTPUTS, UNKNOWN)[: len(outputs)], outputs, strict=True):
        value.name = name
    graph.outputs.extend(outputs)
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tl")
    _share(model)
    return ir.to_proto(model)


def _add_member(
    graph: ir.Graph, images: ir.Value, ballot: Ballot, number: int, opset: int, outputs: Sequence[str]
) -> list[ir.Value]:
    """Move a member's nodes and tensors into `graph`. Returns its `outputs`."""
    proto = ballot.model
    if opset_of(proto) != opset:
        proto = version_converter.convert_version(proto, opset)
    model = ir.from_proto(compose.add_prefix(proto, f"member{number}/"))
    common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    own = model.graph
    (old_input,) = own.inputs
    found = {value.name: value for value in own.outputs}
    own.outputs.clear()
    ir.convenience.replace_all_uses_with(old_input, images)
    tensors = list(own.initializers.values())
    own.initializers.clear()
    nodes = list(own)
    own.remove(nodes)
    for value in tensors:
        graph.register_initializer(value)
    graph.extend(nodes)
    for domain, version in own.opset_imports.items():
        graph.opset_imports.setdefault(domain, version)
    return [found[f"member{number}/{name}"] for name in outputs]


def _in_order(tape: ir.tape.Tape, probabilities: ir.Value, columns: Sequence[int]) -> ir.Value:
    """A member's probabilities in the ensemble's class order."""
    if list(columns) == list(range(len(columns))):
        return probabilities
    places = tape.initializer(ir.tensor(np.array(columns, np.int64)), f"places_{probabilities.name}")
    return tape.op("Gather", [probabilities, places], {"axis": 1})


class _Count:
    """Vote counting as graph nodes: the steps of `voting.vote`, with its variable names."""

    def __init__(self, tape: ir.tape.Tape, members: Sequence[ir.Value], num_classes: int) -> None:
        self._tape, self._members, self._num_classes = tape, members, num_classes
        self._constants: dict[str, ir.Value] = {}

    def outputs(self, voting: Voting, weights: Sequence[float], temperature: float) -> tuple[ir.Value, ...]:
        """Probabilities, label, and each member's output."""
        op = self._tape.op
        weighted = [self._times(member, weight) for member, weight in zip(self._members, weights, strict=True)]
        weighted_sum = self._sum(weighted)
        if voting == "soft":
            scores = weighted_sum
        elif voting == "hard":
            marks = [self._times(self._one_hot(member), w) for member, w in zip(self._members, weights, strict=True)]
            scores = self._sum(marks)
        else:
            scores = op("Max", weighted)
        classes = self._constant("class_axis", np.array([1], np.int64))
        probabilities = op("Div", [scores, op("ReduceSum", [scores, classes], {"keepdims": 1})])
        if temperature != 1:
            power = self._constant("power", np.array(1 / temperature, np.float32))
            softened = op("Pow", [probabilities, power])
            probabilities = op("Div", [softened, op("ReduceSum", [softened, classes], {"keepdims": 1})])
        winners = op("Equal", [scores, op("ReduceMax", [scores, classes], {"keepdims": 1})])
        lost = self._constant("lost", np.array(-1, np.float32))
        label = op("ArgMax", [op("Where", [winners, weighted_sum, lost])], {"axis": 1, "keepdims": 0})
        alone = [op("Unsqueeze", [member, classes]) for member in self._members]
        together = op("Concat", alone, {"axis": 1})
        for value, kind, shape in (
            (probabilities, ir.DataType.FLOAT, [self._num_classes]),
            (label, ir.DataType.INT64, []),
            (together, ir.DataType.FLOAT, [len(alone), self._num_classes]),
        ):
            value.dtype, value.shape = kind, ir.Shape(["N", *shape])
        return probabilities, label, together

    def mean(self, values: Sequence[ir.Value]) -> ir.Value:
        """The mean of tensors (N,) each, as `tl.runtime.ensembles.ensemble.mean_ood_score`."""
        count = self._constant("members", np.array(len(values), np.float32))
        mean = self._tape.op("Div", [self._sum(values), count])
        mean.dtype, mean.shape = ir.DataType.FLOAT, ir.Shape(["N"])
        return mean

    def _times(self, value: ir.Value, weight: float) -> ir.Value:
        if weight == 1:
            return value
        return self._tape.op("Mul", [value, self._constant(f"weight_{weight!r}", np.array(weight, np.float32))])

    def _sum(self, terms: Sequence[ir.Value]) -> ir.Value:
        """Sum in member order, because float addition depends on the order."""
        total = terms[0]
        for term in terms[1:]:
            total = self._tape.op("Add", [total, term])
        return total

    def _one_hot(self, probabilities: ir.Value) -> ir.Value:
        label = self._tape.op("ArgMax", [probabilities], {"axis": 1, "keepdims": 1})
        numbers = self._constant("class_ids", np.arange(self._num_classes, dtype=np.int64))
        return self._tape.op("Cast", [self._tape.op("Equal", [label, numbers])], {"to": ir.DataType.FLOAT})

    def _constant(self, name: str, value: np.ndarray) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = self._tape.initializer(ir.tensor(value), f"vote/{name}")
        return self._constants[name]


def _share(model: ir.Model) -> None:
    """Keep equal tensors and equal nodes once; remove unused and private content."""
    for value in _values(model.graph):
        value.shape = value.shape if value.is_graph_output() or value.is_graph_input() else None
    common.DeduplicateHashedInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph.all_nodes():
        yield from node.outputs
