"""Tensors that constants of a model ask for are bounded before onnxruntime makes them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.runtime.model_file.test_safety import fault, model, passes

TOO_MANY = 1 << 29


def constant(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def scalar(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


HUGE = {
    "ConstantOfShape": ([constant("a", 1 << 15, 1 << 14)], ["a"]),
    "Expand": ([constant("a", 1), constant("b", 1 << 15, 1 << 14)], ["a", "b"]),
    "Tile": ([constant("a", 1, 2, 3, 4), constant("b", 1 << 27)], ["a", "b"]),
    "Range": ([scalar("a", 0), scalar("b", TOO_MANY), scalar("c", 1)], ["a", "b", "c"]),
    "Pad": ([constant("a", 1), constant("b", 0, TOO_MANY)], ["a", "b"]),
    "Resize": ([constant("a", 1), constant("b", 1, 1, 1 << 15, 1 << 14)], ["a", "", "", "b"]),
    "OneHot": ([constant("a", 1), constant("b", TOO_MANY)], ["a", "b", "a"]),
}


@pytest.mark.parametrize("operator", HUGE)
def test_check_model__a_huge_tensor_of_constants(operator: str) -> None:
    tensors, inputs = HUGE[operator]
    node = helper.make_node(operator, inputs, ["y"])
    assert f"its operator '{operator}' makes a tensor of {TOO_MANY} elements, expected at most" in fault(
        model([node], tensors)
    )


@pytest.mark.parametrize("operator", HUGE)
def test_check_model__sizes_that_are_not_in_the_file(operator: str) -> None:
    passes(model([helper.make_node(operator, ["w", "x", "x", "x"], ["y"])]))
    passes(model([helper.make_node(operator, ["w"], ["y"])]))


def chained(*nodes: NodeProto) -> onnx.ModelProto:
    return model(list(nodes), [constant("a", 1000), constant("b", 1000)])


def test_check_model__sizes_multiply_along_a_chain() -> None:
    made = helper.make_node("ConstantOfShape", ["a"], ["c"])
    once, twice = (helper.make_node("Tile", [x, "b"], [y]) for x, y in (("c", "d"), ("d", "e")))
    passes(chained(made, once))
    assert "'Tile' makes a tensor of 1000000000 elements" in fault(chained(made, once, twice))


def test_check_model__a_shape_in_a_constant_node_a_subgraph_or_a_function() -> None:
    shape = helper.make_node("Constant", [], ["s"], value=constant("", TOO_MANY))
    made = helper.make_node("ConstantOfShape", ["s"], ["y"])
    assert "'ConstantOfShape'" in fault(model([shape, made]))
    inner = model([made]).graph
    assert "'ConstantOfShape'" in fault(model([shape, helper.make_node("If", ["c"], ["z"], then_branch=inner)]))
    function = helper.make_function("own", "f", [], ["y"], [shape, made], [])
    assert "'ConstantOfShape'" in fault(model(functions=[function]))


def test_check_model__names_of_a_function_are_its_own() -> None:
    made = helper.make_node("ConstantOfShape", ["s"], ["y"])
    function = helper.make_function("own", "f", ["s"], ["y"], [made], [])
    passes(model(tensors=[constant("s", TOO_MANY)], functions=[function]))


def test_check_model__integers_stored_as_varints() -> None:
    shape = TensorProto(name="s", dims=[2], data_type=TensorProto.INT64, int64_data=[1 << 15, 1 << 14])
    assert str(TOO_MANY) in fault(model([helper.make_node("ConstantOfShape", ["s"], ["y"])], [shape]))
    negative = TensorProto(name="s", dims=[2], data_type=TensorProto.INT64, int64_data=[-TOO_MANY, -TOO_MANY])
    passes(model([helper.make_node("ConstantOfShape", ["s"], ["y"])], [negative]))
