"""Write the resizing of `tl.runtime` as ONNX nodes before a fixed-size graph, which then takes images of any size.

The nodes repeat `runtime/imaging/geometry.py`: the sizes, offsets and rounding of `place`, the antialiased resize of
Pillow, crop and padding. onnxruntime resizes horizontally first and rounds in between, too. Does not run or verify
graphs (`convert`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tl.errors import ModelFileError
from tl.exporter.adoption.wrap import MIN_OPSET
from tl.exporter.publish import opset_of
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.protobuf import IR_VERSION
from tl.runtime.session import INPUT_NAME

# What the resizing alone outputs: the network's input.
PREPARED = "prepared"
KEYPOINTS = "keypoints"
_PREFIX = "any_size/"
# Source: Pillow's filters. `exclude_outside` gives pixels outside the image no weight, as Pillow does; Keys' cubic with
# a = -0.5 is Pillow's BICUBIC, ONNX's default is -0.75.
_RESIZE: dict[str, dict[str, str | int | float]] = {
    "bilinear": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
}
INTERPOLATIONS = tuple(_RESIZE)


def with_resizing(proto: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the graph with the resizing of `preprocessing` before it, and without its metadata.

    `images` uint8 (N, H, W, 3) then has any H and W. `keypoints`, if there are any, are in pixels of these images.
    Raises `ModelFileError` for a graph in an opset without antialiased resizing.
    """
    if opset_of(proto) < MIN_OPSET:
        raise ModelFileError(
            f"its graph is in opset {opset_of(proto)}, but resizing requires {MIN_OPSET}: export or adopt it again"
        )
    model = ir.from_proto(proto)
    graph = model.graph
    common.RemoveInitializersFromInputsPass()(model)
    (old,) = graph.inputs
    builder = _Builder(preprocessing)
    images = builder.images
    old.name = f"{_PREFIX}{PREPARED}"
    resized = builder.prepare()
    before = list(builder.tape.nodes)
    ir.convenience.replace_all_uses_with(old, resized)
    graph.inputs[:] = [images]
    graph.insert_before(graph[0], before)
    points = next((value for value in graph.outputs if value.name == KEYPOINTS), None)
    if points is not None:
        mapped = builder.to_image(points)
        graph.extend(list(builder.tape.nodes)[len(before) :])
        points.name, mapped.name = f"{_PREFIX}{KEYPOINTS}", KEYPOINTS
        mapped.dtype, mapped.shape = ir.DataType.FLOAT, points.shape
        graph.outputs[:] = [mapped if value is points else value for value in graph.outputs]
    for value in builder.tape.initializers:
        graph.register_initializer(value)
    return _finished(model)


def resizing_alone(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return a graph from `images` uint8 (N, H, W, 3) of any size to `prepared` uint8 (N, input_h, input_w, 3)."""
    builder = _Builder(preprocessing)
    prepared = builder.prepare()
    prepared.name = PREPARED
    graph = ir.Graph(
        [builder.images],
        [prepared],
        nodes=list(builder.tape.nodes),
        initializers=list(builder.tape.initializers),
        opset_imports={"": MIN_OPSET},
        name="resizing",
    )
    return _finished(ir.Model(graph, ir_version=IR_VERSION))


def _finished(model: ir.Model) -> onnx.ModelProto:
    common.NameFixPass()(model)
    common.RemoveUnusedNodesPass()(model)  # places that a mode does not need; onnxruntime warns of their constants
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    return ir.to_proto(model)


@dataclass(frozen=True)
class _Place:
    """The placement of the images in the input, as `geometry.Placement`: int64 (1,) each."""

    resized_h: ir.Value
    resized_w: ir.Value
    left: ir.Value
    top: ir.Value


class _Builder:
    """Nodes from images of any size to the network's input. Constants are named under `any_size/`."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.tape = ir.tape.Tape()
        self.images = ir.val(INPUT_NAME, ir.DataType.UINT8, ["N", "H", "W", 3])
        self._preprocessing = preprocessing
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        op = self.tape.op
        self._count, self._height, self._width = (
            op("Shape", [self.images], {"start": axis, "end": axis + 1}) for axis in range(3)
        )
        self._place = self._placed()

    def prepare(self) -> ir.Value:
        """Resize, then crop or pad: uint8 (N, H, W, 3) -> (N, input_h, input_w, 3)."""
        op, place = self.tape.op, self._place
        sizes = op("Concat", [self._count, place.resized_h, place.resized_w, self._ints(3)], {"axis": 0})
        attributes = {"coordinate_transformation_mode": "half_pixel", **_RESIZE[self._preprocessing.interpolation]}
        value = op("Resize", [self.images, None, None, sizes], attributes)
        if self._preprocessing.resize_mode == "short_side":
            value = self._cropped(value)
        elif self._preprocessing.resize_mode == "letterbox":
            value = self._padded(value)
        # The size is fixed from here on, which onnxruntime cannot derive from the nodes above.
        value = op("Reshape", [value, self._ints(-1, *self._preprocessing.input_shape)])
        value.dtype, value.shape = ir.DataType.UINT8, ir.Shape(["N", *self._preprocessing.input_shape])
        return value

    def to_image(self, points: ir.Value) -> ir.Value:
        """As `Placement.to_image`: points float32 (N, K, 2) in pixels of the input -> pixels of the images."""
        op, place = self.tape.op, self._place
        offset = self._double(op("Concat", [place.left, place.top], {"axis": 0}))
        resized, full = (
            self._double(op("Concat", list(pair), {"axis": 0}))
            for pair in ((place.resized_w, place.resized_h), (self._width, self._height))
        )
        half = self._doubles(0.5)
        moved = op("Add", [op("Sub", [self._double(points), offset]), half])
        scaled = op("Sub", [op("Div", [moved, op("Div", [resized, full])]), half])
        return op("Cast", [scaled], {"to": ir.DataType.FLOAT})

    def _placed(self) -> _Place:
        """As `geometry.place`."""
        op, (input_h, input_w) = self.tape.op, self._preprocessing.input_hw
        if self._preprocessing.resize_mode == "squash":
            return _Place(self._ints(input_h), self._ints(input_w), self._ints(0), self._ints(0))
        if self._preprocessing.short_side is not None:
            short = self._ints(self._preprocessing.short_side)
            longer, shorter = op("Max", [self._height, self._width]), op("Min", [self._height, self._width])
            shorter = op("Max", [shorter, self._ints(1)])  # onnxruntime 1.18 crashes when it divides by 0
            long = op("Max", [short, op("Div", [op("Mul", [short, longer]), shorter])])
            is_tall = op("Less", [self._width, self._height])
            resized_h, resized_w = op("Where", [is_tall, long, short]), op("Where", [is_tall, short, long])
            left, top = (
                op("Neg", [self._half_even(op("Sub", [resized, self._ints(size)]))])
                for resized, size in ((resized_w, input_w), (resized_h, input_h))
            )
            return _Place(resized_h, resized_w, left, top)
        height, width = self._double(self._height), self._double(self._width)
        scale = op("Min", [op("Div", [self._doubles(input_h), height]), op("Div", [self._doubles(input_w), width])])
        resized_h, resized_w = (
            op("Max", [self._ints(1), op("Cast", [op("Round", [op("Mul", [side, scale])])], {"to": ir.DataType.INT64})])
            for side in (height, width)
        )
        left, top = (
            op("Div", [op("Sub", [self._ints(size), resized]), self._ints(2)])
            for resized, size in ((resized_w, input_w), (resized_h, input_h))
        )
        return _Place(resized_h, resized_w, left, top)

    def _half_even(self, doubled: ir.Value) -> ir.Value:
        """Half of a number of at least 0, rounded to the even neighbor as Python's `round`: int64 -> int64."""
        op, two = self.tape.op, self._ints(2)
        half = op("Div", [doubled, two])
        return op("Add", [half, op("Mul", [op("Mod", [doubled, two]), op("Mod", [half, two])])])

    def _cropped(self, value: ir.Value) -> ir.Value:
        op = self.tape.op
        starts = op("Neg", [op("Concat", [self._place.top, self._place.left], {"axis": 0})])
        ends = op("Add", [starts, self._ints(*self._preprocessing.input_hw)])
        return op("Slice", [value, starts, ends, self._ints(1, 2)])

    def _padded(self, value: ir.Value) -> ir.Value:
        op, place = self.tape.op, self._place
        input_h, input_w = self._preprocessing.input_hw
        below, right = (
            op("Sub", [op("Sub", [self._ints(size), resized]), offset])
            for size, resized, offset in (
                (input_h, place.resized_h, place.top),
                (input_w, place.resized_w, place.left),
            )
        )
        pads = op("Concat", [place.top, place.left, below, right], {"axis": 0})
        axes, colors = self._ints(1, 2), self._preprocessing.pad_rgb
        if len(set(colors)) == 1:
            return op("Pad", [value, pads, self._byte(colors[0]), axes])
        channels = self.tape.op_multi_out("Split", [value], {"axis": 3, "num_outputs": 3}, num_outputs=3)
        padded = [op("Pad", [one, pads, self._byte(c), axes]) for one, c in zip(channels, colors, strict=True)]
        return op("Concat", padded, {"axis": 3})

    def _double(self, value: ir.Value) -> ir.Value:
        return self.tape.op("Cast", [value], {"to": ir.DataType.DOUBLE})

    def _ints(self, *values: int) -> ir.Value:
        return self._constant(np.array(values, np.int64))

    def _doubles(self, *values: float) -> ir.Value:
        return self._constant(np.array(values, np.float64))

    def _byte(self, value: int) -> ir.Value:
        return self._constant(np.array(value, np.uint8))

    def _constant(self, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        key = (value.dtype.str, value.tobytes(), value.shape)
        if key not in self._constants:
            name = f"{_PREFIX}constant_{len(self._constants)}"
            self._constants[key] = self.tape.initializer(ir.tensor(value), name)
        return self._constants[key]
