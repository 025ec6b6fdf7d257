"""A landmark model that needs no training, and images for it: it finds the centers of red, green and blue spots."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.models import make_contract
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.runtime.landmarks.shapes import mean_shape
from tl.runtime.model_file.contract import METADATA_KEY, Golden, GoldenSample, LandmarkFacts, dump_contract
from tl.runtime.model_file.selftest import encode_golden_png

SPOTS = ("red", "green", "blue")
# Typical positions of the three spots, in pixels of an 80 x 60 image.
USUAL_XY = np.array([[20.0, 15.0], [60.0, 20.0], [30.0, 45.0]])
RADIUS = 4.0


def spot_image(points_xy: NDArray[np.floating], hw: tuple[int, int] = (60, 80), radius: float = RADIUS) -> NDArray[Any]:
    """Smooth red, green and blue spots on black, uint8 (H, W, 3); a NaN point is not drawn."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    image = np.zeros((*hw, 3), np.uint8)
    for channel, (px, py) in enumerate(points_xy):
        if not np.isnan(px):
            light = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (radius / 2) ** 2))
            image[..., channel] = np.rint(255 * light)
    return image


def save_spots(path: Path, points_xy: NDArray[np.floating], hw: tuple[int, int] = (60, 80), **options: Any) -> Path:
    """Write spots as a PNG; `options` are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(spot_image(points_xy, hw)).save(path, **options)
    return path


def make_spot_model(
    path: Path,
    preprocessing: Preprocessing | None = None,
    *,
    shift: float = 0.0,
    names: tuple[str, ...] = SPOTS,
    **facts: Any,
) -> Path:
    """Write the model; it finds every point `shift` input pixels too far right. `facts`: fields of `LandmarkFacts`."""
    preprocessing = preprocessing or build_preprocessing((48, 48), "letterbox")
    height, width = preprocessing.input_hw
    constants = {
        "places": np.array([1, 2], np.int64),
        "last": np.array([2], np.int64),
        "small": np.array(1e-6, np.float32),
        "full": np.array(255, np.float32),
        "columns": (np.arange(width, dtype=np.float32) + shift).reshape(1, 1, -1, 1),
        "rows": np.arange(height, dtype=np.float32).reshape(1, -1, 1, 1),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["light"], to=TensorProto.FLOAT),
        node("ReduceSum", ["light", "places"], ["sums"], keepdims=0),
        node("Add", ["sums", "small"], ["total"]),
        node("Mul", ["light", "columns"], ["light_x"]),
        node("Mul", ["light", "rows"], ["light_y"]),
        node("ReduceSum", ["light_x", "places"], ["sum_x"], keepdims=0),
        node("ReduceSum", ["light_y", "places"], ["sum_y"], keepdims=0),
        node("Div", ["sum_x", "total"], ["flat_x"]),
        node("Div", ["sum_y", "total"], ["flat_y"]),
        node("Unsqueeze", ["flat_x", "last"], ["x"]),
        node("Unsqueeze", ["flat_y", "last"], ["y"]),
        node("Concat", ["x", "y"], ["keypoints"], axis=2),
        node("ReduceMax", ["light", "places"], ["brightest"], keepdims=0),
        node("Div", ["brightest", "full"], ["keypoint_confidence"]),
    ]
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])],
        [
            helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, ["N", 3, 2]),
            helper.make_tensor_value_info("keypoint_confidence", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    known = LandmarkFacts(
        flip_pairs=(),
        skeleton=(("red", "green"),) if names == SPOTS else (),
        mean_shape=tuple((float(x), float(y)) for x, y in mean_shape([USUAL_XY])),
        shape_limit=0.3,
        region="whole",
        region_margin=0.0,
    )
    contract = dataclasses.replace(
        make_contract(preprocessing=preprocessing),
        task="landmarks",
        class_names=(),
        keypoint_names=names,
        landmarks=LandmarkFacts(**{**vars(known), **facts}),
        outputs=("keypoints", "keypoint_confidence"),
        golden=_golden(preprocessing, shift),
    )
    helper.set_model_props(model, {METADATA_KEY: dump_contract(contract)})
    onnx.save(model, path)
    return path


def _golden(preprocessing: Preprocessing, shift: float) -> Golden:
    points = np.array([[0.25, 0.25], [0.75, 0.3], [0.4, 0.7]]) * preprocessing.input_hw[::-1]
    expected = tuple(float(value) for value in (points + np.array([shift, 0.0])).ravel())
    png = encode_golden_png(spot_image(points, preprocessing.input_hw))
    # A spot's intensity is rounded to 255 steps and cut off below half a step.
    return Golden("synthetic", {"fp32": 0.1}, (GoldenSample(png, expected),))
