"""Write a model file as a model repository for Triton Inference Server, for its ONNX Runtime backend.

The model file is copied unchanged. Needs onnx, no torch; does not start or contact a server.
Source: Triton's model repository and model configuration pages (model_config.proto).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from tl.errors import ModelFileError
from tl.exporter.publish import load_model
from tl.runtime.model_file.contract import Contract
from tl.runtime.output.files import atomic_path
from tl.runtime.session import Session

# Largest batch that the server may form; it bounds the memory of a run.
MAX_BATCH_SIZE = 64
_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
}


def repository_files(name: str, repository: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Return the files that `write_repository` writes: the configuration, the model and its labels."""
    folder = Path(repository) / name
    return folder / "config.pbtxt", folder / "1" / "model.onnx", folder / "labels.txt"


def write_repository(model: str | os.PathLike[str], repository: str | os.PathLike[str], name: str) -> Path:
    """Write the folder `name` of a model repository and return it: configuration, labels, and the model as version 1.

    Files of fixed input size are batched by the server. A batch has one size, so files of any input size are not.
    Raises `ModelFileError` or `OutputError`.
    """
    session = Session(model, device="cpu")
    contract = session.contract
    if contract is None:
        raise ModelFileError(f"{session.path}: contains no contract")
    config, copy, labels = repository_files(name, repository)
    text = model_config(load_model(model), contract, name)
    with atomic_path(copy) as temporary:
        shutil.copyfile(model, temporary)
    if contract.class_names:
        with atomic_path(labels) as temporary:
            lines = [" ".join(one.split()) for one in contract.class_names]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with atomic_path(config) as temporary:  # last: the server looks for it
        temporary.write_text(text, encoding="utf-8")
    return config.parent


def model_config(model: onnx.ModelProto, contract: Contract, name: str) -> str:
    """Return the text of `config.pbtxt` for a graph with the outputs of a contract. Raises `ModelFileError`."""
    is_batched = not contract.preprocessing.any_size
    (images,) = model.graph.input
    blocks = [_tensor("input", images, is_batched, label_file=None)]
    for value in model.graph.output:
        has_labels = value.name == "probabilities" and bool(contract.class_names)
        blocks.append(_tensor("output", value, is_batched, label_file="labels.txt" if has_labels else None))
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH_SIZE if is_batched else 0}",
        *blocks,
    ]
    if is_batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, value: onnx.ValueInfoProto, is_batched: bool, label_file: str | None) -> str:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _TYPES:
        kind_name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ModelFileError(f"{kind} {value.name} has type {kind_name}, expected one of {', '.join(_TYPES.values())}")
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    # With a maximum batch size, the batch is not part of `dims`; `dims: [ 1 ]` of an output of one number per image is
    # then reshaped to nothing.
    own = sizes[1:] if is_batched else sizes
    lines = [
        f"  name: {_quoted(value.name)}",
        f"  data_type: {_TYPES[tensor.elem_type]}",
        f"  dims: {_list(own or [1])}",
    ]
    if not own:
        lines.append("  reshape { shape: [ ] }")
    if label_file is not None:
        lines.append(f"  label_filename: {_quoted(label_file)}")
    return f"{kind} {{\n" + "\n".join(lines) + "\n}"


def _list(sizes: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, sizes))} ]"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
