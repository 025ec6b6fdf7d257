"""Model files with an embedding, photos and features for tests, created without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.models import make_contract
from tl.runtime.model_file.contract import METADATA_KEY, dump_contract


def make_embedding_model(path: Path) -> Path:
    """The color model for 8x8 images with `embedding` (N, 3): the mean of each channel, 0 to 255."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
            helper.make_node("Mul", ["embedding", "gain"], ["logits"]),
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
            numpy_helper.from_array(np.array(0.05, np.float32), "gain"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    contract = make_contract(outputs=("probabilities", "embedding"))
    helper.set_model_props(model, {METADATA_KEY: dump_contract(contract)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def write_photos(folder: Path, count: int) -> tuple[list[str], NDArray[np.float32]]:
    """PNG files of one random color each, 8x8 pixels, and these colors float32 (N, 3)."""
    colors = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, color in enumerate(colors):
        path = folder / f"{i:03d}.png"
        Image.fromarray(np.broadcast_to(color, (8, 8, 3)).copy()).save(path)
        paths.append(str(path))
    return paths, colors.astype(np.float32)


def make_clouds(
    classes: int, count: int, *, width: int = 32, apart: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (N, D) of clouds around class centers, with entries of different scales, and class ids (N,) in turn."""
    rng = np.random.default_rng(seed)
    ids = np.arange(count) % classes
    centers, sizes = rng.normal(size=(classes, width)), rng.uniform(0.5, 3, width)
    features = sizes * (apart * centers[ids] + rng.normal(size=(count, width))) + 5
    return features.astype(np.float32), ids.astype(np.int64)
