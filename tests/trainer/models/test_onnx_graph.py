from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.trainer.make import plain_text
from tl.trainer.models.backbones import build_trunk, feature_shape, find_backbone_info
from tl.trainer.models.build import to_onnx
from tl.trainer.models.network import (
    Deployed,
    FeaturePooling,
    Network,
    Normalize,
    Standardize,
    build_head,
    pooled_shape,
)

# float32 sums in a different order through a few layers; the exporter's own tolerance, tl.exporter.parity.TOLERANCE.
FP32 = 1e-4


def make_module(
    pooling: FeaturePooling = "gap", side: int = 16, backbone: str = "smallcnn", temperature: float = 1.0
) -> Deployed:
    torch.manual_seed(0)
    info = find_backbone_info(backbone)
    trunk = build_trunk(backbone)
    shape = pooled_shape(feature_shape(trunk, (side, side)), pooling)
    head = build_head("conv" if pooling == "map" else "mlp", shape, 3, sizes=(8,), dropout=0.5)
    network = Network(Normalize(info.mean, info.std), trunk, Standardize(shape), head, pooling=pooling)
    return Deployed(network, temperature)


def make_images(count: int, side: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def module() -> Deployed:
    return make_module()


@pytest.fixture(scope="module")
def model(module: Deployed) -> onnx.ModelProto:
    return to_onnx(module.train(), (16, 16, 3), ("probabilities", "embedding"))


def run_model(model: onnx.ModelProto, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def test_to_onnx__versions_that_old_runtimes_read(model: onnx.ModelProto) -> None:
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18}
    assert model.ir_version <= 10
    onnx.checker.check_model(model, full_check=True)


def test_to_onnx__inputs_and_outputs(model: onnx.ModelProto) -> None:
    (image_input,) = model.graph.input
    assert image_input.name == "images"
    assert image_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    first, *rest = image_input.type.tensor_type.shape.dim
    assert first.dim_param == "N"
    assert [dim.dim_value for dim in rest] == [16, 16, 3]
    assert [output.name for output in model.graph.output] == ["probabilities", "embedding"]
    for output, width in zip(model.graph.output, (3, 128), strict=True):
        assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert output.type.tensor_type.shape.dim[0].dim_param == "N"
        assert output.type.tensor_type.shape.dim[1].dim_value == width


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_to_onnx__any_batch_gives_what_torch_gives(module: Deployed, model: onnx.ModelProto, count: int) -> None:
    images = make_images(count)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(images))
    for found, tensor in zip(run_model(model, images), wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=FP32)


def test_to_onnx__a_batch_equals_its_images_alone(model: onnx.ModelProto) -> None:
    images = make_images(5)
    batched, _ = run_model(model, images)
    alone = np.concatenate([run_model(model, image[None])[0] for image in images])
    np.testing.assert_allclose(batched, alone, rtol=0, atol=1e-6)  # tolerance for batch N against N batches


def test_to_onnx__a_head_on_the_map_and_a_temperature() -> None:
    module = make_module("map", temperature=0.25)
    module.network.standardize.fit(torch.randn(4, 128, 2, 2))
    model = to_onnx(module, (16, 16, 3), ("probabilities", "embedding"))
    images = make_images(3)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(images))
        untempered = torch.softmax(module.network(torch.from_numpy(images)), dim=1)
    for found, tensor in zip(run_model(model, images), wanted, strict=True):
        np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=FP32)
    assert wanted[1].shape == (3, 128)
    assert (wanted[0] - untempered).abs().max() > 100 * FP32  # otherwise the temperature has no visible effect


def test_to_onnx__flatten_and_rectangular(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), CastLinear(8 * 24 * 3, 2))
    model = to_onnx(module, (8, 24, 3), ("y",))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 24, 3)).astype(np.uint8)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run_model(model, images)[0], wanted, rtol=0, atol=FP32)


class CastLinear(nn.Linear):
    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        return super().forward(flat.float() / 255)


def test_to_onnx__no_private_traces(model: onnx.ModelProto) -> None:
    content = plain_text(model)
    assert b"images" in content
    for word in (b"/work", b"/home", b"/root", b"site-packages", b".py", b"tests", str(Path.cwd()).encode()):
        assert word not in content, word
    assert len(model.metadata_props) == 0
    assert not any(node.doc_string or len(node.metadata_props) for node in model.graph.node)


def test_to_onnx__leaves_the_log_alone_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        to_onnx(nn.Sequential(nn.Flatten(), CastLinear(12, 2)), (2, 2, 3), ("y",))
        assert log.level == logging.WARNING
    finally:
        log.setLevel(level)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backbone", ["squeezenet1_0"])
@pytest.mark.slow
def test_to_onnx__torchvision_backbones(backbone: str) -> None:
    module = make_module(side=64, backbone=backbone)
    model = to_onnx(module, (64, 64, 3), ("probabilities", "embedding"))
    images = make_images(2, 64)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(images))[0].numpy()
    np.testing.assert_allclose(run_model(model, images)[0], wanted, rtol=0, atol=FP32)
