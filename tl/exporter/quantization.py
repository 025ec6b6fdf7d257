"""Convert an fp32 graph to fp16, or to int8 with calibrated ranges (QDQ format, per-channel scales) and bias correction
(Nagel et al. 2019).

Depends on onnxruntime's converters, not on runs or image files; quality is measured in `precision`. The first and last
layers stay in float: the first has three input channels, for which int8 kernels are slow, and the head's output should
not be rounded to 256 steps. Together they are a few percent of the computation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common as passes

from tl.errors import PrecisionError
from tl.runtime.model_file.protobuf import IR_VERSION
from tl.runtime.session import INPUT_NAME, Session

_BATCH = 4


def correct_biases(model: onnx.ModelProto, images: NDArray[np.uint8], kept: set[str], folder: Path) -> None:
    """Correct in place the biases of all convolutions except those named in `kept`, which stay in float.

    `images`: uint8 (N, H, W, 3). `folder`: where a temporary graph may be written.
    Source: Nagel, van Baalen, Blankevoort, Welling 2019, section 4.2.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name not in kept
        and len(node.input) == 3
        and all(name in tensors and uses[name] == 1 for name in node.input[1:])  # a shared tensor cannot suit both uses
    ]
    means = _channel_means(model, list(dict.fromkeys(node.input[0] for node in nodes)), images, folder)
    for node in nodes:
        errors = _rounding_errors(numpy_helper.to_array(tensors[node.input[1]]))
        bias = numpy_helper.to_array(tensors[node.input[2]])
        corrected = (bias - _shift(errors, means[node.input[0]])).astype(np.float32)
        tensors[node.input[2]].CopyFrom(numpy_helper.from_array(corrected, node.input[2]))


def _shift(errors: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean shift (O,) of each output channel, for errors (O, I, ...) and input channels' means (groups * I,)."""
    summed = errors.reshape(*errors.shape[:2], -1).sum(axis=2)
    groups = len(means) // summed.shape[1]
    by_group = summed.reshape(groups, -1, summed.shape[1])
    shift: NDArray[np.float64] = np.einsum("goi,gi->go", by_group, means.reshape(groups, -1)).ravel()
    return shift


def _rounding_errors(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rounded minus original weights (O, I, ...): one scale per output channel, symmetric, -127 to 127."""
    wide = weights.astype(np.float64)
    largest = np.abs(wide).reshape(len(wide), -1).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0).reshape(-1, *[1] * (wide.ndim - 1))
    errors: NDArray[np.float64] = np.rint(wide / scales) * scales - wide
    return errors


def _channel_means(
    model: onnx.ModelProto, names: list[str], images: NDArray[np.uint8], folder: Path
) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel (C,) of the named tensors (N, C, h, w), over images and positions."""
    if not names:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "tl_axes"))
    outputs = {f"tl_mean_{number}": name for number, name in enumerate(names)}
    for output, name in outputs.items():
        probe.graph.node.append(helper.make_node("ReduceMean", [name, "tl_axes"], [output], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None]))
    path = folder / "probe.onnx"
    onnx.save(probe, path)
    session = Session(path, device="cpu", require_contract=False)
    sums = {name: np.zeros(1) for name in names}
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        for name, mean in zip(names, session.run(batch, list(outputs)), strict=True):
            sums[name] = sums[name] + mean.astype(np.float64) * len(batch)
    return {name: total / len(images) for name, total in sums.items()}


_WEIGHTED = frozenset(("Conv", "Gemm", "MatMul"))
# Operators that onnxruntime runs in int8 without converting back. Normalization and softmax lose too much accuracy.
_INT8_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Pad", "Resize", "Split"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
# Images per calibration run: histograms keep every intermediate result of one run in memory.
_CALIBRATION_BATCH = 4


@dataclass(frozen=True)
class Way:
    """One method of choosing int8 ranges. `text` is for display, `method` and `options` are onnxruntime.quantization's.

    `float_share`: fraction of the layers with weights, counted from the input, kept in float besides first and last.
    """

    text: str
    method: str
    options: dict[str, Any]
    float_share: float = 0.0


_CUT_TAILS = {"CalibPercentile": 99.999}
# In order of trial: more float layers are closer to fp32 and usually slower.
INT8_WAYS = (
    Way("int8, min-max ranges, corrected biases, first and last layer in float", "MinMax", {}),
    Way(
        "int8, 99.999% ranges, corrected biases, first quarter and last layer in float", "Percentile", _CUT_TAILS, 0.25
    ),
    Way("int8, 99.999% ranges, corrected biases, first half and last layer in float", "Percentile", _CUT_TAILS, 0.5),
)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision inside; `images` stay uint8, outputs float32, and the last layer and what follows stay fp32.

    Raises `PrecisionError` if the converter's result is not a valid model.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = _named(model)
    _, last = _edge_nodes(copy.graph)
    half = convert_float_to_float16(copy, keep_io_types=True, node_block_list=sorted(last))
    return _clean(half)


def to_int8(model: onnx.ModelProto, images: NDArray[np.uint8], way: Way) -> onnx.ModelProto:
    """8-bit inside, with ranges calibrated on `images`, uint8 (N, H, W, 3). Raises as `to_fp16`."""
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationMethod

    with TemporaryDirectory(prefix="tl-") as folder, redirect_stdout(StringIO()):  # the calibrators print to stdout
        given, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "int8"))
        onnx.save(model, given)
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)  # shape inference, constant folding
        plain = _named(onnx.load(prepared))
        first, last = _edge_nodes(plain.graph)
        kept = first | last | _early_nodes(plain.graph, way.float_share)
        correct_biases(plain, images, kept, Path(folder))
        onnx.save(plain, prepared)
        quantize_static(
            str(prepared),
            str(result),
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_INT8_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(kept),
            calibrate_method=CalibrationMethod[way.method],
            extra_options={"CalibStridedMinMax": 1, **way.options},  # one batch at a time, to save memory
        )
        return _clean(onnx.load(result))


class _Batches:
    """Calibration images in onnxruntime.quantization's interface: a list of batches, read in ranges."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches = [images[i : i + _CALIBRATION_BATCH] for i in range(0, len(images), _CALIBRATION_BATCH)]
        self._left: Iterator[NDArray[np.uint8]] = iter(())

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Select the batches to read next."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch, None after the last."""
        batch = next(self._left, None)
        return None if batch is None else {INPUT_NAME: batch}


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name, so that it can be excluded."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"unnamed_{number}"
    return copy


def _edge_nodes(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Names of the layers with weights that precede all others, and of those that follow all others, with the nodes
    after these.
    """
    nodes, layers = list(graph.node), set(_layers(graph))
    behind = _derived(nodes, layers)
    first = {node.name for node in nodes if node.name in layers and behind.isdisjoint(node.input)}
    ahead = _derived([onnx.NodeProto(name=n.name, input=n.output, output=n.input) for n in reversed(nodes)], layers)
    last = {node.name for node in nodes if node.name in layers and ahead.isdisjoint(node.output)}
    after = _derived(nodes, last)
    return first, last | {node.name for node in nodes if not after.isdisjoint(node.input)}


def _early_nodes(graph: onnx.GraphProto, share: float) -> set[str]:
    """Names of all nodes before the point where `share` of the layers with weights are passed."""
    layers = _layers(graph)
    names = [node.name for node in graph.node]
    return set(names[: names.index(layers[int(share * len(layers))])]) if layers else set()


def _layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the layers with weights, in computation order."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in _WEIGHTED and weights.intersection(node.input)]


def _derived(nodes: Sequence[onnx.NodeProto], begin: set[str]) -> set[str]:
    """The tensors that depend on the nodes named in `begin`; `nodes` are in computation order."""
    tensors: set[str] = set()
    for node in nodes:
        if node.name in begin or not tensors.isdisjoint(node.input):
            tensors.update(node.output)
    return tensors - {""}


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sort the graph as this toolkit writes it, and remove the converter's metadata."""
    graph = onnx_ir.from_proto(model)
    passes.TopologicalSortPass()(graph)
    passes.RemoveUnusedNodesPass()(graph)
    passes.RemoveUnusedOpsetsPass()(graph)
    passes.ClearMetadataAndDocStringPass()(graph)
    graph.metadata_props.clear()
    graph.ir_version = IR_VERSION
    clean = onnx_ir.to_proto(graph)
    clean.graph.ClearField("value_info")  # the converters keep the old types
    try:
        onnx.checker.check_model(clean)
    except onnx.checker.ValidationError as error:
        reason = str(error).splitlines()[0]
        raise PrecisionError(f"this network cannot be converted: {reason}", options=["precision=fp32"]) from error
    return clean
