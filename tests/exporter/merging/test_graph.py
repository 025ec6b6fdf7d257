from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tl.exporter.merging.graph import OUTPUTS, Ballot, merge_graphs
from tl.runtime.ensembles.voting import VOTINGS, Voting, vote


def make_reader(pixel: int, *, opset: int = 18, scale: float = 128.0) -> onnx.ModelProto:
    """A member that outputs one pixel of the first row: its color, divided by `scale`."""
    nodes = [
        helper.make_node("Gather", ["images", "row"], ["rows"], axis=1),
        helper.make_node("Gather", ["rows", "pixel"], ["color"], axis=1),
        helper.make_node("Cast", ["color"], ["value"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["value", "scale"], ["probabilities"]),
    ]
    tensors = [
        numpy_helper.from_array(np.array(0, np.int64), "row"),
        numpy_helper.from_array(np.array(pixel, np.int64), "pixel"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 1, 3, 3])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "reader", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images}), strict=True))


# All outputs that three members can give for three classes from 0, 1/2 and 1; most combinations tie.
_SAID = [said for said in itertools.product((0, 64, 128), repeat=3) if any(said)]
TIES = np.array(list(itertools.product(_SAID, repeat=3)), np.uint8)[:, None]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.3, 0.7, 0.1)])
@pytest.mark.parametrize("voting", VOTINGS)
def test_merge_graphs__counts_as_the_runtime_on_every_tie(voting: Voting, weights: tuple[float, ...]) -> None:
    model = merge_graphs([Ballot(make_reader(m), range(3)) for m in range(3)], (1, 3, 3), voting, weights)
    found = run(model, TIES)
    members = (TIES[:, 0] / 128).astype(np.float32)
    wanted = vote(members, voting, weights)
    assert np.array_equal(found["member_probabilities"], members)
    assert np.array_equal(found["label"], wanted.label_ids)
    assert found["label"].dtype == np.int64
    # A sum of three numbers in a different order.
    assert np.abs(found["probabilities"] - wanted.probabilities).max() < 1e-6


def test_merge_graphs__classes_in_another_order() -> None:
    other = [2, 0, 1]  # the ensemble's first class is the member's third
    model = merge_graphs([Ballot(make_reader(0), range(3)), Ballot(make_reader(1), other)], (1, 3, 3), "soft", (1, 1))
    members = (TIES[:, 0] / 128).astype(np.float32)
    assert np.array_equal(run(model, TIES)["member_probabilities"][:, 1], members[:, 1][:, other])


def test_merge_graphs__what_is_equal_is_computed_once() -> None:
    alone = make_reader(0)
    model = merge_graphs(
        [Ballot(make_reader(0, scale=s), range(3)) for s in (128, 64, 32)], (1, 3, 3), "soft", (1, 1, 1)
    )
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("Gather"), kinds.count("Cast")) == (2, 1)  # as in a single member
    assert kinds.count("Div") == 3 + 1  # one per member, and the vote's
    assert len(alone.graph.node) == 4


def test_merge_graphs__members_of_other_opsets() -> None:
    members = [make_reader(0, opset=18), make_reader(1, opset=20)]
    model = merge_graphs([Ballot(member, range(3)) for member in members], (1, 3, 3), "soft", (1, 1))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert np.array_equal(run(model, TIES)["member_probabilities"], (TIES[:, 0, :2] / 128).astype(np.float32))


def test_merge_graphs__many_members_say_nothing_of_where_they_came_from() -> None:
    members = [make_reader(0), make_reader(1)]
    for member in members:
        member.graph.doc_string = "a secret place"
        member.graph.node[0].doc_string = "a secret place"
        helper.set_model_props(member, {"path": "a secret place"})
    model = merge_graphs([Ballot(member, range(3)) for member in members], (1, 3, 3), "soft", (1, 1))
    assert b"secret" not in model.SerializeToString()
