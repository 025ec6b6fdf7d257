"""The configuration is read by protobuf's text parser, with those messages and fields of Triton's model_config.proto
that it uses. Source: triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from tests.models import COLORS, make_cam_model, make_contract, make_model
from tests.spots import make_spot_model
from tl.errors import ModelFileError
from tl.exporter.any_size.convert import to_any_size
from tl.exporter.merging.merge import merge
from tl.exporter.triton import model_config, write_repository
from tl.progress import Silent

_FIELD = descriptor_pb2.FieldDescriptorProto
# Message -> field name, number, type, whether repeated, and the name of a message or enum.
_MESSAGES: dict[str, list[tuple[str, int, int, bool, str]]] = {
    "ModelTensorReshape": [("shape", 1, _FIELD.TYPE_INT64, True, "")],
    "ModelInput": [
        ("name", 1, _FIELD.TYPE_STRING, False, ""),
        ("data_type", 2, _FIELD.TYPE_ENUM, False, "DataType"),
        ("dims", 4, _FIELD.TYPE_INT64, True, ""),
        ("reshape", 5, _FIELD.TYPE_MESSAGE, False, "ModelTensorReshape"),
    ],
    "ModelOutput": [
        ("name", 1, _FIELD.TYPE_STRING, False, ""),
        ("data_type", 2, _FIELD.TYPE_ENUM, False, "DataType"),
        ("dims", 3, _FIELD.TYPE_INT64, True, ""),
        ("label_filename", 4, _FIELD.TYPE_STRING, False, ""),
        ("reshape", 5, _FIELD.TYPE_MESSAGE, False, "ModelTensorReshape"),
    ],
    "ModelDynamicBatching": [("max_queue_delay_microseconds", 2, _FIELD.TYPE_UINT64, False, "")],
    "ModelConfig": [
        ("name", 1, _FIELD.TYPE_STRING, False, ""),
        ("backend", 17, _FIELD.TYPE_STRING, False, ""),
        ("max_batch_size", 4, _FIELD.TYPE_INT32, False, ""),
        ("input", 5, _FIELD.TYPE_MESSAGE, True, "ModelInput"),
        ("output", 6, _FIELD.TYPE_MESSAGE, True, "ModelOutput"),
        ("dynamic_batching", 11, _FIELD.TYPE_MESSAGE, False, "ModelDynamicBatching"),
    ],
}
_DATA_TYPES = {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11}


def parse(text: str) -> Any:
    """The configuration as a message; raises for a field, type or value that Triton does not know."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for name, number in _DATA_TYPES.items():
        enum.value.add(name=name, number=number)
    for message, fields in _MESSAGES.items():
        kind = file.message_type.add(name=message)
        for name, number, type_, is_repeated, of in fields:
            label = _FIELD.LABEL_REPEATED if is_repeated else _FIELD.LABEL_OPTIONAL
            field = kind.field.add(name=name, number=number, type=type_, label=label)
            if of:
                field.type_name = f".inference.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    return text_format.Parse(text, config)


def shown(tensors: Any) -> list[tuple[str, str, list[int]]]:
    names = {number: name for name, number in _DATA_TYPES.items()}
    return [(one.name, names[one.data_type], list(one.dims)) for one in tensors]


def test_write_repository__of_a_classifier(tmp_path: Path) -> None:
    model = make_model(tmp_path / "colors.onnx")
    folder = write_repository(model, tmp_path / "repository", "colors")
    assert folder == tmp_path / "repository" / "colors"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (folder / "labels.txt").read_text().split() == list(COLORS)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, folder / "1" / "model.onnx")]
    assert hashes[0] == hashes[1]
    config = parse((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("colors", "onnxruntime", 64)
    assert shown(config.input) == [("images", "TYPE_UINT8", [8, 8, 3])]
    assert shown(config.output) == [("probabilities", "TYPE_FP32", [3])]
    assert config.output[0].label_filename == "labels.txt"
    assert config.HasField("dynamic_batching")


def test_write_repository__images_of_any_size_are_not_batched(tmp_path: Path) -> None:
    fixed = make_model(tmp_path / "fixed.onnx")
    from PIL import Image

    from tests.exporter.any_size.test_graph import photo

    Image.fromarray(photo((40, 60), 0)).save(tmp_path / "photo.png")
    made = to_any_size(fixed, tmp_path / "any.onnx", [str(tmp_path / "photo.png")], Silent())
    config = parse((write_repository(made.path, tmp_path, "any") / "config.pbtxt").read_text())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert shown(config.input) == [("images", "TYPE_UINT8", [-1, -1, -1, 3])]
    assert shown(config.output) == [("probabilities", "TYPE_FP32", [-1, 3])]


def test_write_repository__every_output_of_a_merged_file(tmp_path: Path) -> None:
    members = [make_model(tmp_path / f"{gain}.onnx", gain=gain) for gain in (0.05, 0.02)]
    merged = merge(members, tmp_path / "merged.onnx", Silent())
    config = parse((write_repository(merged.path, tmp_path, "merged") / "config.pbtxt").read_text())
    found = {name: (kind, dims) for name, kind, dims in shown(config.output)}
    assert found["label"] == ("TYPE_INT64", [1])
    assert found["member_probabilities"] == ("TYPE_FP32", [2, 3])
    label = next(one for one in config.output if one.name == "label")
    assert label.HasField("reshape")
    assert list(label.reshape.shape) == []


def test_write_repository__of_points_has_no_labels(tmp_path: Path) -> None:
    folder = write_repository(make_spot_model(tmp_path / "spots.onnx"), tmp_path, "spots")
    assert not (folder / "labels.txt").exists()
    config = parse((folder / "config.pbtxt").read_text())
    assert shown(config.output)[0] == ("keypoints", "TYPE_FP32", [3, 2])
    assert [one.label_filename for one in config.output] == ["", ""]


def test_write_repository__of_class_activation_maps(tmp_path: Path) -> None:
    folder = write_repository(make_cam_model(tmp_path / "cam.onnx"), tmp_path, "cam")
    assert shown(parse((folder / "config.pbtxt").read_text()).output)[1] == ("cam", "TYPE_FP32", [3, 2, 2])


def test_model_config__quotes_names(tmp_path: Path) -> None:
    model = onnx.load(make_model(tmp_path / "colors.onnx"))
    assert parse(model_config(model, make_contract(), 'a "b" \\ c')).name == 'a "b" \\ c'


def test_model_config__refuses_other_types(tmp_path: Path) -> None:
    model = onnx.load(make_model(tmp_path / "colors.onnx"))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(ModelFileError, match="output probabilities has type DOUBLE"):
        model_config(model, make_contract(), "colors")


def test_parse__would_notice_an_unknown_field() -> None:
    with pytest.raises(text_format.ParseError, match="no field named"):
        parse('platfrom: "onnxruntime"')
