"""An ONNX classifier made by another tool: its input, its output, and its unmodified computation.

Depends on onnxruntime, not on presets, images or contracts. Does not modify the graph (`wrap` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from tl.errors import MissingExtraError, ModelFileError, first_line
from tl.runtime.devices import usable_cores
from tl.runtime.model_file.contract import METADATA_KEY, Precision
from tl.runtime.model_file.safety import check_model_file

Layout = Literal["nchw", "nhwc"]
Kind = Literal["logits", "probabilities"]

BATCH = 8
_FLOATS: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}
_QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"}
# Operators allowed between a softmax and the output that leave its rows unchanged.
_PASSING = {"Identity", "Flatten", "Reshape", "Squeeze", "Cast"}
# fp32 and fp16 softmaxes sum to 1 within 1e-6 and 1e-3; logits of several images do not.
_SUM_TOLERANCE = 5e-3
_FATAL_ONLY = 4


@dataclass(frozen=True)
class Foreign:
    """An unmodified classifier. `data`: its file. `graph_hw`: sizes fixed by the graph, None for dynamic ones.

    `batch`: the fixed number of images per run, None if dynamic. `final_op`: the operator that computes the output.
    """

    path: Path
    data: bytes = field(repr=False)
    model: onnx.ModelProto
    input_name: str
    output_name: str
    layout: Layout
    batch: int | None
    graph_hw: tuple[int | None, int | None]
    dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]
    precision: Precision
    final_op: str


def read_foreign(path: Path, layout: Layout | None = None, output_name: str | None = None) -> Foreign:
    """Read a file and find its image input and classifier output. Raises `ModelFileError`."""
    _check_file(path)
    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model)
    except Exception as error:  # onnx, protobuf and the inliner share no base class but Exception
        raise ModelFileError(f"{path}: not a valid ONNX model ({first_line(error)})") from error
    if METADATA_KEY in read_metadata(model):
        raise ModelFileError(f"{path}: already a tl model file, which does not need to be adopted")
    value = _only_input(model, path)
    if value.type.tensor_type.elem_type not in _FLOATS:
        found = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        raise ModelFileError(
            f"{path}: input '{value.name}' is {found}, expected FLOAT or FLOAT16: export the network "
            "without its preprocessing"
        )
    dims = _dims(value)
    layout = _layout(dims, layout, path, value.name)
    height, width = (dims[2], dims[3]) if layout == "nchw" else (dims[1], dims[2])
    output = _output(model, output_name, path)
    return Foreign(
        path=path,
        data=data,
        model=model,
        input_name=value.name,
        output_name=output.name,
        layout=layout,
        batch=dims[0],
        graph_hw=(height, width),
        output_dtype=_FLOATS[output.type.tensor_type.elem_type],
        dtype=_FLOATS[value.type.tensor_type.elem_type],
        precision=_precision(model),
        final_op=_final_op(model.graph, output.name),
    )


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The file's own metadata, key -> value."""
    return {prop.key: prop.value for prop in model.metadata_props}


class ForeignSession:
    """Runs an unmodified foreign classifier with onnxruntime on the CPU."""

    def __init__(self, foreign: Foreign) -> None:
        self._foreign = foreign
        self._session = _open(foreign)

    def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized images (N, H, W, 3) -> the output as float32 (N, C). Raises `ModelFileError`."""
        foreign = self._foreign
        values = pixels.astype(foreign.dtype)
        if foreign.layout == "nchw":
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        rows = [
            self._run(values[i : i + (foreign.batch or BATCH)]) for i in range(0, len(values), foreign.batch or BATCH)
        ]
        return np.concatenate(rows)

    def _run(self, values: NDArray[Any]) -> NDArray[np.float32]:
        foreign, count = self._foreign, len(values)
        if foreign.batch is not None and count < foreign.batch:
            values = np.concatenate([values, np.repeat(values[-1:], foreign.batch - count, axis=0)])
        try:
            (output,) = self._session.run([foreign.output_name], {foreign.input_name: values})
        except Exception as error:  # onnxruntime's exception types share no base class but Exception
            shape = "x".join(map(str, values.shape))
            raise ModelFileError(
                f"{foreign.path}: onnxruntime cannot run it on input {shape}: {first_line(error)}"
            ) from error
        return self._rows(np.asarray(output, np.float32), len(values))[:count]

    def _rows(self, output: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        name, shape = self._foreign.output_name, output.shape
        if output.ndim < 2 or shape[0] != count or output.size != count * shape[1] or shape[1] < 2:
            raise ModelFileError(
                f"{self._foreign.path}: output '{name}' is {[*shape]} for {count} images, "
                f"expected [{count}, classes] with at least two classes"
            )
        if not np.isfinite(output).all():
            raise ModelFileError(f"{self._foreign.path}: output '{name}' contains values that are not finite")
        return output.reshape(count, shape[1])


def tell_kind(foreign: Foreign, rows: NDArray[np.float32], asked: Kind | None, *, is_multilabel: bool = False) -> Kind:
    """Detect whether the output, `rows` (N, C) of N images, is logits or probabilities: of one class, or of each label
    by itself. Raises `ModelFileError`.
    """
    if is_multilabel:
        return _tell_label_kind(foreign, rows, asked)
    where = f"{foreign.path}: output '{foreign.output_name}'"
    looks = bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE).all())
    if asked is not None:
        if asked == "probabilities" and not looks:
            raise ModelFileError(f"{where}: rows do not sum to 1, so they are not probabilities")
        return asked
    if foreign.final_op == "Sigmoid":
        raise ModelFileError(
            f"{where}: ends in a sigmoid per class, so classes are not mutually exclusive: it gives several labels",
            options=["task=multilabel"],
        )
    if looks:
        return "probabilities"
    if foreign.final_op == "Softmax" or (rows.min() >= 0 and rows.max() <= 1):
        raise ModelFileError(
            f"{where}: cannot distinguish logits from probabilities: values are between 0 and 1, but "
            "rows do not sum to 1; declare them as logits if a softmax over classes turns them into probabilities",
            options=["outputs=logits"],
        )
    return "logits"


def _tell_label_kind(foreign: Foreign, rows: NDArray[np.float32], asked: Kind | None) -> Kind:
    where = f"{foreign.path}: output '{foreign.output_name}'"
    are_shares = bool(rows.min() >= 0 and rows.max() <= 1)
    if asked == "probabilities" and not are_shares:
        raise ModelFileError(
            f"{where}: has values from {rows.min():.3g} to {rows.max():.3g}, which are no probabilities"
        )
    if asked is not None:
        return asked
    if foreign.final_op == "Sigmoid":
        return "probabilities"
    if are_shares:
        raise ModelFileError(
            f"{where}: cannot distinguish logits from probabilities: all values are between 0 and 1",
            options=["outputs=logits", "outputs=probabilities"],
        )
    return "logits"


def _check_file(path: Path) -> None:
    try:
        check_model_file(path)
    except ModelFileError as error:
        if not Path(f"{path}.data").is_file():
            raise
        raise ModelFileError(
            f"{error} (torch.onnx.export(..., external_data=False)), or merge the two files: "
            f"python -c \"import onnx; onnx.save(onnx.load('{path.name}'), 'one.onnx')\""
        ) from error


def _only_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}  # old files list them as inputs too
    inputs: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ModelFileError(
            f"{path}: expected one input, found {len(inputs)} "
            f"({', '.join(value.name for value in inputs)}): export only the classifier"
        )
    if len(_dims(inputs[0])) != 4:
        raise ModelFileError(f"{path}: input '{inputs[0].name}' is {_dims(inputs[0])}, expected 4 dimensions")
    return inputs[0]


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes of the dimensions; None for a dynamic one."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _layout(dims: Sequence[int | None], asked: Layout | None, path: Path, name: str) -> Layout:
    channels = {"nchw": dims[1], "nhwc": dims[3]}
    if asked is not None:
        if channels[asked] not in (3, None):
            raise ModelFileError(f"{path}: input '{name}' is {[*dims]}, which is not {asked.upper()} with 3 channels")
        return asked
    fitting = [layout for layout, count in channels.items() if count == 3]
    if len(fitting) == 1:
        return "nchw" if fitting == ["nchw"] else "nhwc"
    if fitting or None in channels.values():
        raise ModelFileError(
            f"{path}: input '{name}' is {[*dims]}: its layout is ambiguous", options=["layout=nchw", "layout=nhwc"]
        )
    raise ModelFileError(
        f"{path}: input '{name}' is {[*dims]}, expected [N, 3, H, W] or [N, H, W, 3]: only classifiers of RGB "
        "images can be adopted"
    )


def _output(model: onnx.ModelProto, asked: str | None, path: Path) -> onnx.ValueInfoProto:
    outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in model.graph.output}
    names = ", ".join(outputs)
    if asked is not None and asked not in outputs:
        raise ModelFileError(f"{path}: no output '{asked}'; its outputs are {names}")
    if asked is None and len(outputs) != 1:
        raise ModelFileError(
            f"{path}: has {len(outputs)} outputs ({names}): choose one of them", options=["output_name=NAME"]
        )
    output = outputs[asked or names]
    if output.type.tensor_type.elem_type not in _FLOATS:
        found = onnx.TensorProto.DataType.Name(output.type.tensor_type.elem_type)
        raise ModelFileError(
            f"{path}: output '{output.name}' is {found}, expected FLOAT or FLOAT16, one value per class"
        )
    return output


def _final_op(graph: onnx.GraphProto, output: str) -> str:
    """The operator that computes an output, skipping operators that leave its rows unchanged; "" if there is none."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in _PASSING:
        node = makers.get(node.input[0])
    return "" if node is None else node.op_type


def _precision(model: onnx.ModelProto) -> Precision:
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def _open(foreign: Foreign) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"onnxruntime cannot be imported ({error}): pip install 'tl-toolkit[cpu]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = _FATAL_ONLY  # errors are raised as exceptions
    try:
        return onnxruntime.InferenceSession(foreign.data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types share no base class but Exception
        raise ModelFileError(f"{foreign.path}: onnxruntime cannot load it: {first_line(error)}") from error
