from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.models import make_contract, make_model
from tests.runtime.fuzz import EXAMPLES, mutate, mutations
from tests.runtime.protobuf import field, varint
from tl.errors import ModelFileError
from tl.runtime.model_file import safety as model_file
from tl.runtime.model_file.contract import METADATA_KEY, dump_contract
from tl.runtime.model_file.safety import check_model, check_model_file

WEIGHT = numpy_helper.from_array(np.ones(1, np.float32), "w")


def model(
    nodes: list[NodeProto] | None = None,
    tensors: list[TensorProto] | None = None,
    functions: list[FunctionProto] | None = None,
) -> ModelProto:
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [WEIGHT] if tensors is None else tensors,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=functions or [], opset_imports=opsets, ir_version=8)


def fault(data: bytes | ModelProto) -> str:
    if not isinstance(data, bytes):
        data = data.SerializeToString()
    with pytest.raises(ModelFileError) as caught:
        check_model(BytesIO(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def passes(data: bytes | ModelProto) -> None:
    check_model(BytesIO(data if isinstance(data, bytes) else data.SerializeToString()))


def tensor(dims: list[int], data_type: int = TensorProto.FLOAT, **fields: Any) -> ModelProto:
    return model(tensors=[TensorProto(name="w", dims=dims, data_type=data_type, **fields)])


def in_attribute(inner: TensorProto) -> ModelProto:
    return model([helper.make_node("Constant", [], ["y"], value=inner)])


def in_sparse(inner: TensorProto) -> ModelProto:
    sparse = onnx.SparseTensorProto(values=inner, indices=numpy_helper.from_array(np.zeros(1, np.int64)), dims=[9])
    return model([helper.make_node("Constant", [], ["y"], sparse_value=sparse)])


def in_subgraph(inner: TensorProto) -> ModelProto:
    graph = model(tensors=[inner]).graph
    return model([helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)])


def in_function(inner: TensorProto) -> ModelProto:
    constant = helper.make_node("Constant", [], ["y"], value=inner)
    return model(functions=[helper.make_function("own", "f", [], ["y"], [constant], [])])


def in_training(inner: TensorProto) -> ModelProto:
    result = model()
    result.training_info.add().algorithm.CopyFrom(model(tensors=[inner]).graph)
    return result


PLACES = [lambda inner: model(tensors=[inner]), in_attribute, in_sparse, in_subgraph, in_function, in_training]


# --- accepted files


def test_check_model_file__contract(color_model: Path, tmp_path: Path) -> None:
    assert check_model_file(color_model).contract_text == dump_contract(make_contract())
    assert check_model_file(str(color_model)) == check_model_file(color_model)
    assert check_model_file(make_model(tmp_path / "plain.onnx", contract=None)).contract_text is None


@pytest.mark.parametrize("place", PLACES)
def test_check_model__tensors_anywhere(place: Callable[[TensorProto], ModelProto]) -> None:
    passes(place(WEIGHT))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3), np.float32),
        np.float32(3),
        np.ones(5, bool),
        np.ones((2, 3), np.float16),
        np.array([1j], np.complex64),
        np.array(["a", "", "c"], object),
        np.ones((2, 2, 1, 1, 1, 1, 1, 1), np.int8),
    ],
    ids=str,
)
def test_check_model__tensors_of_any_type(value: Any) -> None:
    passes(model(tensors=[numpy_helper.from_array(np.asarray(value), "w")]))


@pytest.mark.parametrize("data_type", [data_type for data_type in TensorProto.DataType.values() if data_type])
def test_check_model__typed_data(data_type: int) -> None:
    values = [b"1"] * 3 if data_type == TensorProto.STRING else [1] * 3
    passes(model(tensors=[helper.make_tensor("w", data_type, [3], values)]))


def test_check_model__no_operator_of_its_functions_is_foreign() -> None:
    double = helper.make_function("own", "Double", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [])
    passes(model([helper.make_node("Double", ["w"], ["y"], domain="own")], functions=[double]))


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"])
def test_check_model__built_in_domains(domain: str) -> None:
    passes(model([helper.make_node("Anything", ["w"], ["y"], domain=domain)]))


def test_check_model__unknown_fields_of_newer_onnx() -> None:
    passes(field(999, "new") + field(998, 3) + model().SerializeToString())


# --- files that are not models


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "an empty file, expected an ONNX model: download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"a git-lfs pointer.*'git lfs pull'"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"\x1f\x8b\x08" + bytes(30), "a gzip archive"),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE html><html></html>", r"a web page or XML.*download it again"),
        (b"not a model" * 20, "not an ONNX model, or a damaged one"),
        (b"\x80\x04\x95" + bytes(30), "not an ONNX model, or a damaged one"),
        (field(1, 8), "it contains no graph"),
        (bytes(1000), "not an ONNX model, or a damaged one"),
    ],
)
def test_check_model__other_files(data: bytes, expected: str) -> None:
    with pytest.raises(ModelFileError, match=expected):
        check_model(BytesIO(data))


def test_check_model_file__places_that_hold_no_file(tmp_path: Path) -> None:
    for path in tmp_path / "missing.onnx", tmp_path:
        with pytest.raises(ModelFileError, match="no such file") as caught:
            check_model_file(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_check_model_file__fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match="no such file"):
        check_model_file(tmp_path / "a.onnx")


def test_check_model_file__two_gib(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.touch()
    os.truncate(path, 1 << 31)
    with pytest.raises(ModelFileError, match=r"a.onnx: 2147483648 bytes, expected less than 2 GiB"):
        check_model_file(path)


def test_check_model__every_truncation(color_model: Path) -> None:
    data = color_model.read_bytes()
    whole = check_model(BytesIO(data))
    # Everything after the graph may be missing: the result is a model without contract, or without opset.
    graph_end = data.index(model_graph := onnx.load(color_model).graph.SerializeToString()) + len(model_graph)
    for size in range(len(data)):
        try:
            found = check_model(BytesIO(data[:size]))
        except ModelFileError:
            continue
        assert size >= graph_end
        assert found.contract_text in (None, whole.contract_text)


# --- tensors


@pytest.mark.parametrize("place", PLACES)
def test_check_model__external_tensor(place: Callable[[TensorProto], ModelProto]) -> None:
    outside = TensorProto(name="secret", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../etc/passwd")
    expected = "tensor 'secret': its data is in another file, expected inside the model file: save it without"
    assert expected in fault(place(outside))


@pytest.mark.parametrize("location", [2, (1 << 32) + 1, (1 << 64) - 1])
def test_check_model__external_tensor_by_other_numbers(location: int) -> None:
    hidden = WEIGHT.SerializeToString() + field(14, location)
    assert "another file" in fault(field(7, field(5, hidden)))


def test_check_model__external_tensor_hidden_by_a_large_field_number() -> None:
    outside = TensorProto(name="w", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    graph = model(tensors=[outside]).graph.SerializeToString()
    for bit in 29, 31, 40:
        assert "expected a message field" in fault(model().SerializeToString() + field(7 | 1 << bit, graph))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tensor([2], raw_data=bytes(4)), r"tensor 'w': 4 bytes do not match its shape \[2\] and type 1: .*download"),
        (tensor([1], raw_data=bytes(5)), "5 bytes do not match"),
        (tensor([1 << 40], raw_data=bytes(4)), "4 bytes do not match"),
        (tensor([1 << 62] * 16, raw_data=bytes(4)), "4 bytes do not match"),
        (tensor([3], TensorProto.INT4, raw_data=bytes(1)), "1 bytes do not match"),
        (tensor([1 << 40], float_data=[1.0]), "4 bytes do not match"),
        (tensor([1000], TensorProto.STRING, string_data=[b"a"]), "1 bytes do not match"),
        (tensor([5], 4711, raw_data=b"1"), "1 bytes do not match"),
        (tensor([2]), "0 bytes do not match"),
        (tensor([-1], raw_data=b""), r"its shape \[-1\] has a negative size"),
        (tensor([-2, -2], raw_data=bytes(16)), "has a negative size"),
        (tensor([1] * 17, raw_data=bytes(4)), "more than 16 dimensions"),
        (tensor([1] * 100_000, raw_data=bytes(4)), "more than 16 dimensions"),
    ],
)
def test_check_model__shapes_that_do_not_fit(data: ModelProto, expected: str) -> None:
    with pytest.raises(ModelFileError, match=expected):
        check_model(BytesIO(data.SerializeToString()))


def test_check_model__sparse_tensors_of_any_size() -> None:
    def sparse(*dims: int) -> ModelProto:
        result = model()
        result.graph.sparse_initializer.add(values=WEIGHT, indices=WEIGHT, dims=dims)
        return result

    passes(sparse(1000, 1000))
    assert "expected at most 2147483648: store them as plain tensors" in fault(sparse(1 << 20, 1 << 20))
    assert "a negative size" in fault(sparse(-1, -1))
    assert "more than 16 dimensions" in fault(sparse(*[1] * 17))
    several = sparse(10_000, 10_000)
    several.graph.sparse_initializer.append(several.graph.sparse_initializer[0])
    assert "may take 3200000000 bytes" in fault(several)


# --- operators


def test_check_model__operators_of_a_library() -> None:
    nodes = [helper.make_node(f"Op{number}", ["w"], ["y"], domain="ai.onnx.contrib") for number in range(5)]
    message = fault(model(nodes))
    assert "'Op0' of 'ai.onnx.contrib', 'Op1' of 'ai.onnx.contrib', 'Op2' of 'ai.onnx.contrib' and 2 more" in message
    assert "expected only operators built into onnxruntime" in message


@pytest.mark.parametrize("wrap", ["subgraph", "function"])
def test_check_model__operators_of_a_library_inside(wrap: str) -> None:
    node = helper.make_node("Op", ["w"], ["y"], domain="evil")
    if wrap == "subgraph":
        data = model([helper.make_node("If", ["c"], ["y"], then_branch=model([node]).graph)])
    else:
        data = model(functions=[helper.make_function("own", "f", ["w"], ["y"], [node], [])])
    assert "'Op' of 'evil'" in fault(data)


def calls(*names: str) -> list[NodeProto]:
    return [helper.make_node(name, ["x"], ["y"], domain="own") for name in names]


def function(name: str, *called: str) -> FunctionProto:
    return helper.make_function("own", name, ["x"], ["y"], calls(*called), [])


def test_check_model__functions_that_call_themselves() -> None:
    for functions in [function("f", "f")], [function("f", "g"), function("g", "f")]:
        assert "nested more than 32 levels deep" in fault(model(calls("f"), functions=functions))


def test_check_model__functions_that_double() -> None:
    chain = [function(f"f{depth}", f"f{depth + 1}", f"f{depth + 1}") for depth in range(30)]
    assert "functions expand to more than 50000 nodes" in fault(model(calls("f0"), functions=[*chain, function("f30")]))
    passes(model(calls("f20"), functions=[*chain, function("f30")]))


def nested(depth: int) -> ModelProto:
    inner = model()
    for _ in range(depth):
        inner = model([helper.make_node("If", ["c"], ["y"], then_branch=inner.graph)])
    return inner


def test_check_model__nesting() -> None:
    passes(nested(12))
    assert "more than 12 nested graphs" in fault(nested(13))


def test_check_model__nesting_without_end() -> None:
    data = b""
    for _ in range(20_000):
        data = field(1, field(5, field(6, data)))
    assert "more than 12 nested graphs" in fault(field(7, data))


# --- fields


def test_check_model__wrong_kinds() -> None:
    assert "the field 'graph' twice, or stored with a different type" in fault(field(7, 5))
    assert "the field 'initializer' twice, or stored with a different type" in fault(field(7, field(5, 5)))
    assert "the field 'data_location' twice, or stored with a different type" in fault(
        field(7, field(5, field(14, "x")))
    )


def test_check_model__two_graphs() -> None:
    data = model().SerializeToString()
    assert "the field 'graph' twice" in fault(data + field(7, b""))


def test_check_model__too_many_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MAX_FIELDS", 1000)
    assert "more than 1000" in fault(field(7, field(1, b"") * 1001))


def test_check_model__long_names() -> None:
    message = fault(model([helper.make_node("A" * 5000, ["w"], ["y"])]))
    assert "an operator name of 5000 bytes, expected at most 4096" in message


# --- contracts


def entry(value: bytes | str, key: str = METADATA_KEY) -> bytes:
    return field(14, field(1, key) + field(2, value))


def test_check_model__contract_twice() -> None:
    data = model().SerializeToString() + entry("{}")
    assert check_model(BytesIO(data)).contract_text == "{}"
    assert check_model(BytesIO(data + entry("{}", "other"))).contract_text == "{}"
    assert f"it has {METADATA_KEY!r} twice, expected one contract" in fault(data + entry("{}"))


def test_check_model__contract_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MAX_CONTRACT_BYTES", 5000)
    passes(model().SerializeToString() + entry("a" * 5000))
    assert "a contract of 5001 bytes, expected at most 5000" in fault(model().SerializeToString() + entry("a" * 5001))


def test_check_model__contract_with_damaged_bytes() -> None:
    assert "a contract that is not UTF-8" in fault(model().SerializeToString() + entry(b"{\xff}"))


def test_check_model__metadata_with_two_values() -> None:
    two = field(14, field(1, METADATA_KEY) + field(2, "{}") + field(2, "[]"))
    assert "the field 'value' twice" in fault(model().SerializeToString() + two)


# --- arbitrary bytes


EXTERNAL = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
SEEDS = {
    "contract": model().SerializeToString() + entry("{}"),
    "subgraph": in_subgraph(WEIGHT).SerializeToString(),
    "function": in_function(WEIGHT).SerializeToString(),
    "sparse": in_sparse(WEIGHT).SerializeToString(),
    "external": model(tensors=[EXTERNAL]).SerializeToString(),
}


def is_refused(data: bytes) -> bool:
    try:
        check_model(BytesIO(data))
    except ModelFileError:
        return True
    return False


@EXAMPLES
@given(st.sampled_from(sorted(SEEDS)), mutations())
@example("external", [])
def test_check_model__mutated(seed: str, changes: list[tuple[int, int, bytes]]) -> None:
    data = mutate(SEEDS[seed], changes)
    if not is_refused(data):
        with suppress(DecodeError):
            assert all(one.data_location == 0 for one in ModelProto.FromString(data).graph.initializer)


@EXAMPLES
@given(st.binary(max_size=200))
@example(b"")
@example(varint(7 << 3 | 2) + varint(1 << 63))
@example(field(7, field(5, field(1, b"\x80" * 30))))
def test_check_model__any_bytes(data: bytes) -> None:
    is_refused(data)
