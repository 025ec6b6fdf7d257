from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models import color_probabilities, solid
from tl.exporter import speed_comparison as speed_module
from tl.exporter.speed_comparison import compare_speed, run_all
from tl.progress import Silent
from tl.runtime.devices import usable_cores
from tl.runtime.session import Session


def slowed(path: Path, fast: Path) -> Path:
    """The same model preceded by a hundred 200 x 200 matrix products that do not affect its output."""
    model = onnx.load(fast)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(200, dtype=np.float32), "eye"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((200, 200), np.float32), "product_0"))
    del model.graph.node[-1]
    model.graph.node.append(helper.make_node("ReduceMax", ["logits"], ["top"], keepdims=0))
    model.graph.node.append(helper.make_node("Mul", ["product_0", "top"], ["product_1"]))
    for i in range(1, 101):
        model.graph.node.append(helper.make_node("MatMul", [f"product_{i}", "eye"], [f"product_{i + 1}"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["product_101"], ["zero"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["logits", "zero"], ["same"]))
    model.graph.node.append(helper.make_node("Softmax", ["same"], ["probabilities"], axis=1))
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.stack([solid(color) for color in ((200, 30, 90), (10, 20, 250), (0, 90, 9))])


@pytest.mark.alone
def test_race__says_which_is_faster(
    color_model: Path, tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_module, "_SECONDS_A_ROUND", 0.02)
    slow = slowed(tmp_path / "slow.onnx", color_model)
    slow_one, fast_one = (Session(path, device="cpu", threads=1) for path in (slow, color_model))
    won, lost = (compare_speed(*pair, images, Silent()) for pair in ((slow_one, fast_one), (fast_one, slow_one)))
    assert won.is_faster  # by a factor of about a hundred, on any machine
    assert won.slowest <= won.speedup <= won.fastest
    assert won.speedup > 2 > 1 / 2 > lost.speedup
    assert not lost.is_faster
    assert (won.rounds, won.threads, won.batch_size) == (11, usable_cores(), 1)
    assert won.provider == "CPUExecutionProvider"
    assert won.processor


def test_race__a_file_is_not_faster_than_itself_for_sure(color_model: Path, images: np.ndarray) -> None:
    # Nine of eleven by chance: (C(11,9) + C(11,10) + C(11,11)) / 2**11 = 67 / 2048.
    won = [9, 10, 11]
    assert sum([55, 11, 1]) / 2**11 < 0.05
    assert won[0] == speed_module.WON_ROUNDS


def test_run_all__every_image_in_order(color_model: Path, images: np.ndarray) -> None:
    many = np.concatenate([images] * 7)
    found = run_all(Session(color_model, device="cpu", threads=1), many)
    # float32 sums of 64 pixels in a different order.
    np.testing.assert_allclose(found, [color_probabilities(image) for image in many], rtol=0, atol=1e-5)
