"""Biases that make up for what rounding weights to int8 shifts on average.

Each output channel of a rounded convolution is off by the rounding errors times its inputs. The mean of that is known
from a few pictures, and taking it off the bias costs nothing when the file runs; on SqueezeNet it halves the labels
that change.
Knows graphs and sessions. Does not round weights itself, but knows the converter's rule (`_rounding_errors`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tl.runtime.session import Session

_BATCH = 4


def correct_biases(model: onnx.ModelProto, images: NDArray[np.uint8], kept: set[str], folder: Path) -> None:
    """Change in place the biases of all convolutions but those named in `kept`, which stay in float.

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
        and all(name in tensors and uses[name] == 1 for name in node.input[1:])  # a shared one cannot suit both
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
    """Rounded minus given weights (O, I, ...): a scale for each output channel, symmetric, -127 to 127."""
    wide = weights.astype(np.float64)
    largest = np.abs(wide).reshape(len(wide), -1).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0).reshape(-1, *[1] * (wide.ndim - 1))
    errors: NDArray[np.float64] = np.rint(wide / scales) * scales - wide
    return errors


def _channel_means(
    model: onnx.ModelProto, names: list[str], images: NDArray[np.uint8], folder: Path
) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel (C,) of the named tensors (N, C, h, w), over pictures and places."""
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
