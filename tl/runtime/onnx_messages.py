"""The ONNX messages that a model file is checked for: field number -> name and kind.

Only fields that are looked at, with the numbers of onnx-ml.proto; a test compares them with the onnx package and finds
other places where a tensor, a graph or a node could be.
"""

from __future__ import annotations

from tl.runtime.wire import FIXED32, FIXED64, VARINT, Message, many, one

MODEL: Message = {7: one("graph"), 14: many("metadata_props"), 20: many("training_info"), 25: many("functions")}
TRAINING: Message = {1: one("initialization"), 2: one("algorithm")}
FUNCTION: Message = {1: one("name"), 7: many("node"), 10: one("domain"), 11: many("attribute_proto")}
GRAPH: Message = {1: many("node"), 5: many("initializer"), 15: many("sparse_initializer")}
NODE: Message = {4: one("op_type"), 5: many("attribute"), 7: one("domain")}
ATTRIBUTE: Message = {
    5: one("t"),
    6: one("g"),
    10: many("tensors"),
    11: many("graphs"),
    22: one("sparse_tensor"),
    23: many("sparse_tensors"),
}
TENSOR: Message = {
    1: many("dims", VARINT),
    2: one("data_type", VARINT),
    4: many("float_data", FIXED32),
    5: many("int32_data", VARINT),
    6: many("string_data"),
    7: many("int64_data", VARINT),
    8: one("name"),
    9: one("raw_data"),
    10: many("double_data", FIXED64),
    11: many("uint64_data", VARINT),
    14: one("data_location", VARINT),
}
SPARSE: Message = {1: one("values"), 2: one("indices"), 3: many("dims", VARINT)}
ENTRY: Message = {1: one("key"), 2: one("value")}
