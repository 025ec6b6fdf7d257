from __future__ import annotations

from io import BytesIO

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.protobuf import FIXED32, FIXED64, GROUP, LEN, field, varint
from tl.runtime.model_file import protobuf as onnx_messages
from tl.runtime.model_file.protobuf import VARINT, Wire, WireError, many, one

ANY = {1: one("number", VARINT), 2: one("text"), 3: many("list", VARINT), 4: many("floats", FIXED32, FIXED64)}
# Descriptor kinds by wire kind, from https://protobuf.dev/programming-guides/encoding/
KINDS = {
    FieldDescriptor.TYPE_INT64: VARINT,
    FieldDescriptor.TYPE_INT32: VARINT,
    FieldDescriptor.TYPE_UINT64: VARINT,
    FieldDescriptor.TYPE_ENUM: VARINT,
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_STRING: LEN,
    FieldDescriptor.TYPE_BYTES: LEN,
    FieldDescriptor.TYPE_MESSAGE: LEN,
}
MESSAGES = {
    "ModelProto": onnx_messages.MODEL,
    "TrainingInfoProto": onnx_messages.TRAINING,
    "FunctionProto": onnx_messages.FUNCTION,
    "GraphProto": onnx_messages.GRAPH,
    "NodeProto": onnx_messages.NODE,
    "AttributeProto": onnx_messages.ATTRIBUTE,
    "TensorProto": onnx_messages.TENSOR,
    "SparseTensorProto": onnx_messages.SPARSE,
    "StringStringEntryProto": onnx_messages.ENTRY,
}


def walk(data: bytes) -> list[tuple[str, int, int]]:
    return list(Wire(BytesIO(data), 100).fields(0, len(data), ANY))


def fault(data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        walk(data)
    return str(caught.value)


def descriptor(name: str) -> Descriptor:
    result: Descriptor = getattr(onnx, name).DESCRIPTOR
    return result


# --- the walker


def test_fields__by_hand() -> None:
    data = field(1, 300) + field(9, "passed over") + field(2, "abc") + field(3, 7) + field(3, b"\x01\x02")
    text = data.index(b"abc")
    assert walk(data) == [
        ("number", 300, -1),
        ("text", text, text + 3),
        ("list", 7, -1),
        ("list", len(data) - 2, len(data)),
    ]


def test_fields__fixed_kinds_and_no_bytes() -> None:
    data = (
        varint(4 << 3 | FIXED32) + bytes(4) + varint(4 << 3 | FIXED64) + bytes(8) + varint(99 << 3 | FIXED64) + bytes(8)
    )
    assert walk(data) == [("floats", 1, 5), ("floats", 6, 14)]
    assert walk(b"") == []
    assert walk(field(2, b"")) == [("text", 2, 2)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (varint(2 << 3 | GROUP), "expected a message field at byte 0"),
        (varint(2 << 3 | 4), "expected a message field"),
        (varint(2 << 3 | 6), "expected a message field"),
        (varint(0 << 3 | LEN) + b"\0", "expected a message field"),
        (field(1 << 29 | 2, "x"), "expected a message field"),  # onnxruntime's parser reads it as field 2
        (varint(1 << 70 | 2 << 3 | LEN) + b"\0", "an unterminated number at byte 0"),
        (b"\x08" + b"\xff" * 11, "an unterminated number at byte 1"),
        (b"\x08", "an unterminated number at byte 1"),
        (field(2, "abc")[:-1], "beyond the end of its message"),
        (varint(2 << 3 | LEN) + varint(1 << 63), "beyond the end of its message"),
        (varint(4 << 3 | FIXED64) + bytes(7), "beyond the end of its message"),
        (field(1, b"abc"), "the field 'number' twice, or stored with a different type, at byte 0"),
        (field(2, 5), "the field 'text' twice, or stored with a different type"),
        (field(2, "a") + field(2, "b"), "the field 'text' twice, or stored with a different type, at byte 3"),
        (field(7, 1) * 101, "more than 100"),
    ],
)
def test_fields__refused(data: bytes, expected: str) -> None:
    assert expected in fault(data)


def test_fields__inner_message_past_its_outer_one() -> None:
    outer = field(2, varint(2 << 3 | LEN) + varint(5)) + b"abcde"
    wire = Wire(BytesIO(outer), 100)
    (_, start, stop), *_ = wire.fields(0, 4, ANY)
    with pytest.raises(WireError, match="beyond the end of its message"):
        list(wire.fields(start, stop, ANY))


def test_fields__file_cut_short_while_it_is_read() -> None:
    data = field(7, bytes(70_000)) + field(1, 300)
    wire = Wire(BytesIO(data[:70_004]), 100)
    with pytest.raises(WireError, match="an unterminated number"):
        list(wire.fields(0, len(data), ANY))


@given(st.lists(st.integers(0, 70_000), max_size=8))
def test_fields__whatever_the_size(sizes: list[int]) -> None:
    data = b"".join(field(3, bytes(size)) + field(7, size) for size in sizes)
    wire = Wire(BytesIO(data), 100)
    assert [stop - start for _, start, stop in wire.fields(0, len(data), ANY)] == sizes


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 4))
def test_varint__any_length(value: int, more: int) -> None:
    data = varint(value)
    longer = data[:-1] + bytes([data[-1] | 128]) + b"\x80" * (more - 1) + b"\0" if more else data
    wire = Wire(BytesIO(b"\xff" + longer), 1)
    if len(longer) <= 10:
        assert wire.varint(1, 1 + len(longer)) == (value, 1 + len(longer))
    else:
        with pytest.raises(WireError, match="an unterminated number"):
            wire.varint(1, 1 + len(longer))


def test_numbers__alone_and_packed() -> None:
    wire = Wire(BytesIO(varint(5) + varint((1 << 64) - 2) + varint(300)), 1)
    assert list(wire.numbers(0, 13)) == [5, -2, 300]
    assert list(wire.numbers((1 << 64) - 7, -1)) == [-7]
    assert list(wire.numbers(3, 3)) == []


def test_text__refused() -> None:
    wire = Wire(BytesIO(b"\xc3\xa4\xff" + bytes(5000)), 1)
    assert wire.text(None, "a name") == ""
    assert wire.text((0, 2), "a name") == "ä"
    with pytest.raises(WireError, match="a name that is not UTF-8, at byte 1"):
        wire.text((1, 3), "a name")
    with pytest.raises(WireError, match="a name of 4097 bytes, expected at most 4096"):
        wire.text((3, 4100), "a name")


# --- against protobuf


def test_fields__tensor_as_the_onnx_package_reads_it() -> None:
    tensor = numpy_helper.from_array(np.arange(300_000, dtype=np.float32).reshape(300, 1000), "weights")
    tensor.doc_string = "passed over"
    data = tensor.SerializeToString()
    wire = Wire(BytesIO(data), 100)
    found = list(wire.fields(0, len(data), onnx_messages.TENSOR))
    places = {name: (start, stop) for name, start, stop in found}
    assert [size for name, *place in found if name == "dims" for size in wire.numbers(*place)] == [300, 1000]
    assert places["data_type"] == (TensorProto.FLOAT, -1)
    assert wire.text(places["name"], "a name") == "weights"
    start, stop = places["raw_data"]
    assert data[start:stop] == tensor.raw_data


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.FLOAT, [1.0, 2.0]),
        (TensorProto.DOUBLE, [1.0]),
        (TensorProto.INT64, [-1, 1 << 40]),
        (TensorProto.INT32, [-1]),
        (TensorProto.UINT64, [1]),
        (TensorProto.STRING, [b"a", b""]),
    ],
)
def test_fields__typed_data(kind: int, values: list[object]) -> None:
    data = helper.make_tensor("t", kind, [len(values)], values).SerializeToString()
    names = [name for name, _, _ in Wire(BytesIO(data), 100).fields(0, len(data), onnx_messages.TENSOR)]
    assert len([name for name in names if name.endswith("_data")]) in (1, len(values))


@pytest.mark.parametrize("name", MESSAGES)
def test_messages__numbers_and_kinds_of_the_onnx_package(name: str) -> None:
    for number, wanted in MESSAGES[name].items():
        real = descriptor(name).fields_by_number[number]
        assert real.name == wanted.name
        assert KINDS[real.type] in wanted.kinds
        assert wanted.once == real.has_presence  # repeated fields have no presence


def test_messages__miss_no_place_of_a_tensor_graph_or_node() -> None:
    for name, message in MESSAGES.items():
        for real in descriptor(name).fields:
            if real.message_type is not None and real.message_type.name in MESSAGES and real.number not in message:
                assert real.name in (
                    "metadata_props",
                    "external_data",
                    "initialization_binding",
                    "update_binding",
                    "quantization_annotation",
                ), f"{name}.{real.name}"
