"""Small photos of three colors, and a model file whose features are their mean color."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.models import COLORS, make_contract
from tl.runtime.model_file.contract import METADATA_KEY, dump_contract

_RGB = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def make_photos(folder: Path, count: int, hw: tuple[int, int] = (12, 16), folders: tuple[str, ...] = ("",)) -> Path:
    """Write `count` noisy photos, red, green, blue, red ...; the color is in the name. `folders`: taken in turn."""
    chance = np.random.default_rng(0)
    for i in range(count):
        color = COLORS[i % 3]
        pixels = np.clip(np.array(_RGB[color]) + chance.normal(0, 20, (*hw, 3)), 0, 255).astype(np.uint8)
        path = folder / folders[i // 3 % len(folders)] / f"{i:04}-{color}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def link_photos(folder: Path, count: int) -> Path:
    """Write `count` tiny photos, most of them as hard links to a few."""
    few = sorted(make_photos(folder / "few", 30).rglob("*.png"))
    for i in range(count - len(few)):
        path = folder / f"{i // 500:03}" / f"{i:06}-{COLORS[i % 3]}.png"
        path.parent.mkdir(exist_ok=True)
        os.link(few[i % 30], path)
    return folder


def color_of(name: str) -> str:
    """The color that the name of a photo says."""
    return Path(name).stem.rpartition("-")[2]


def make_embedding_model(path: Path, scale: float = 0.1) -> Path:
    """The color model of 8x8 inputs with the mean color, times `scale`, as its embedding (N, 3)."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["embedding"]),
            helper.make_node("Mul", ["means", "gain"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "color",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3]),
        ],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.array(scale, np.float32), "scale"),
            numpy_helper.from_array(np.array(0.05, np.float32), "gain"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    contract = make_contract(outputs=("probabilities", "embedding"))
    helper.set_model_props(model, {METADATA_KEY: dump_contract(contract)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
