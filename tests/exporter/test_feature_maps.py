from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.models import make_model
from tests.runtime.images import noise
from tl.errors import ConfigError, ModelFileError
from tl.exporter.export import Exported
from tl.exporter.feature_maps import choose_activation, first_filters, list_activations, run_activation
from tl.runtime.explain.drawing import draw_filters, draw_maps
from tl.trainer.models.build import load_network
from tl.trainer.run_folder.run import Run


def test_first_filters__are_the_trained_ones(exported: Exported, finished_run: Run) -> None:
    """smallcnn's first block is a convolution with batch norm, which export folds into it."""
    name, weights = first_filters(exported.path)
    network, _, _ = load_network(finished_run)
    first = next(module for module in network.trunk.modules() if isinstance(module, torch.nn.Conv2d))
    trained = first.weight.detach().numpy()
    assert name
    assert weights.shape == trained.shape
    for own, wanted in zip(weights, trained, strict=True):  # folding scales each filter
        assert np.abs(np.corrcoef(own.ravel(), wanted.ravel())[0, 1]) > 1 - 1e-6


def test_first_filters__a_file_without(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="its first layer is not a convolution"):
        first_filters(make_model(tmp_path / "m.onnx"))


def test_run_activation__is_torchs(exported: Exported, finished_run: Run) -> None:
    found = list_activations(exported.path)
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    chosen = choose_activation(found, "2")
    image = noise(32, 32)
    before, after = run_activation(exported.path, chosen, image)
    network, _, _ = load_network(finished_run)
    seen: list[torch.Tensor] = []
    relus = [module for module in network.trunk.modules() if isinstance(module, torch.nn.ReLU)]
    for relu in relus:
        relu.inplace = False
        relu.register_forward_hook(lambda module, given, gave: seen.extend((given[0][0], gave[0])))
    with torch.no_grad():
        network(torch.from_numpy(image[None]))
    np.testing.assert_allclose(before, seen[2].numpy(), rtol=0, atol=1e-4)  # float32 sums in a different order
    np.testing.assert_allclose(after, seen[3].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(after, np.maximum(before, 0))


def test_choose_activation__by_layer_or_refused(exported: Exported) -> None:
    found = list_activations(exported.path)
    assert choose_activation(found, found[1].layer) == found[1]
    with pytest.raises(ConfigError, match=r"layer 77: not found; expected one of 1 Relu after "):
        choose_activation(found, "77")
    with pytest.raises(ConfigError, match="this graph has no supported non-linearity on feature maps"):
        choose_activation([], "1")


def test_list_activations__a_gate_is_one(tmp_path: Path) -> None:
    """SiLU is written as x * sigmoid(x)."""
    nodes = [
        helper.make_node("Conv", ["x", "layer4.weight"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "layer4.weight")
    shapes = {"x": ["N", 3, 5, 5], "z": ["N", 4, 5, 5]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]))
    onnx.save(model, tmp_path / "m.onnx")
    (silu,) = [each for each in list_activations(tmp_path / "m.onnx") if each.kind == "Sigmoid"]
    assert (silu.layer, silu.before, silu.after) == ("layer4", "c", "y")


def test_draw_filters__gray_is_zero_and_the_largest_is_full() -> None:
    weights = np.zeros((5, 3, 2, 2), np.float32)
    weights[0, 0, 0, 0], weights[1, 2, 1, 1] = 4, -0.5
    drawn = np.asarray(draw_filters(weights)).astype(int)
    side = 42
    assert drawn.shape == (2 * side + 3, 3 * side + 6, 3)  # three and two, 3 px apart
    assert tuple(drawn[0, 0]) == (255, 128, 128)
    assert tuple(drawn[side - 1, 2 * side + 2]) == (128, 128, 0)
    assert tuple(drawn[10, side + 3 + 2]) == (128, 128, 128)
    assert tuple(drawn[-1, -1]) == (255, 255, 255)  # there is no sixth filter


def test_draw_maps__both_on_one_scale() -> None:
    before = np.array([[[-2.0, 1.0]], [[0.0, 0.0]]], np.float32)
    drawing = draw_maps(before, np.maximum(before, 0))
    assert isinstance(drawing, Image.Image)
    drawn = np.asarray(drawing)[..., 0].astype(int)
    half = (drawing.width - 24) // 2
    left, right = drawn[:, :half], drawn[:, half + 24 :]
    assert (left[0, 0], left[0, 60], right[0, 0], right[0, 60]) == (0, 191, 128, 191)
    assert left[0, -1] == right[0, -1] == 128
