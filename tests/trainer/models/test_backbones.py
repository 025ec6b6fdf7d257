from __future__ import annotations

import dataclasses
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from tl.errors import ConfigError
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.trainer.models.backbone_info import OWN_BACKBONES, WITHOUT_NORM, BackboneInfo, has_norm, remembered_info
from tl.trainer.models.backbones import (
    backbone_names,
    build_classifier,
    build_trunk,
    feature_shape,
    find_backbone_info,
    torchvision_weights,
)
from tl.trainer.models.network import Normalize

# One per family, with the shape of one image's features at the family's own input size.
FAMILIES = {
    "smallcnn": (128, 8, 8),
    "vgg_cnn_s": (512, 6, 6),
    "alexnet": (256, 6, 6),
    "convnext_tiny": (768, 7, 7),
    "densenet121": (1024, 7, 7),
    "efficientnet_b0": (1280, 7, 7),
    "efficientnet_v2_s": (1280, 12, 12),
    "googlenet": (1024, 7, 7),
    "inception_v3": (2048, 8, 8),
    "maxvit_t": (512, 7, 7),
    "mnasnet0_5": (1280, 7, 7),
    "mobilenet_v2": (1280, 7, 7),
    "mobilenet_v3_small": (576, 7, 7),
    "resnet18": (512, 7, 7),
    "shufflenet_v2_x0_5": (1024, 7, 7),
    "squeezenet1_0": (512, 13, 13),
    "swin_t": (768, 7, 7),
    "swin_v2_t": (768, 8, 8),
    "vgg11_bn": (512, 7, 7),
    "vit_b_16": (768,),
}

# Where torchvision's own model passes features to pooling or the classifier: node names of its traced forward.
LAST_NODES = {
    "densenet121": "relu",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_0": "features",
    "swin_t": "permute",
}
LARGE = ("inception_v3", "swin_t", "efficientnet_b0", "googlenet", "densenet121", "mnasnet0_5")
BUILT_FOR_REAL = ("smallcnn", "mobilenet_v3_small", "resnet18", "squeezenet1_0", "shufflenet_v2_x0_5")


@pytest.mark.parametrize("name", FAMILIES)
def test_build_trunk__feature_shape_and_parameter_names(name: str) -> None:
    info = find_backbone_info(name)
    with torch.device("meta"):  # shapes without values, so that large networks cost nothing
        trunk = build_trunk(name)
        assert feature_shape(trunk, (info.image_size, info.image_size)) == FAMILIES[name]
        if name not in OWN_BACKBONES:
            whole = build_classifier(name).state_dict()
            tensors = trunk.state_dict()
            assert {k: v.shape for k, v in tensors.items()} == {k: whole[k].shape for k in tensors}
            assert 0 < len(tensors) < len(whole)
    assert trunk.kind == ("embedding" if len(FAMILIES[name]) == 1 else "map")


@pytest.mark.parametrize("name", [*BUILT_FOR_REAL, "vit_b_16", "convnext_tiny"])
@pytest.mark.slow
def test_build_trunk__builds_for_real(name: str) -> None:
    trunk = build_trunk(name)
    assert all(torch.isfinite(tensor).all() for tensor in trunk.state_dict().values())
    assert all(tensor.device.type == "cpu" for tensor in trunk.state_dict().values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in LAST_NODES]
)
def test_build_trunk__computes_what_torchvision_computes(name: str) -> None:
    whole = perturbed(build_classifier(name)).eval()
    trunk = build_trunk(name).eval()
    trunk.load_state_dict({key: value for key, value in whole.state_dict().items() if key in trunk.state_dict()})
    side = 224 if name == "swin_t" else 96
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        # torchvision warns that the Inceptions' auxiliary classifiers exist only in training.
        warnings.filterwarnings("ignore", "NOTE: The nodes obtained by tracing the model in eval mode", UserWarning)
        extractor = create_feature_extractor(whole, {LAST_NODES[name]: "features"})
    with torch.no_grad():
        # The same operations in the same order: no tolerance.
        assert torch.equal(trunk(pixels.clone()), extractor(pixels.clone())["features"])


@pytest.mark.slow
def test_build_trunk__vision_transformer_gives_its_class_token() -> None:
    whole = build_classifier("vit_b_16").eval()
    nn.init.normal_(whole.heads.head.weight, std=0.02)  # torchvision's starts at zero and would hide everything
    trunk = build_trunk("vit_b_16").eval()
    trunk.load_state_dict({key: value for key, value in whole.state_dict().items() if key in trunk.state_dict()})
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(whole.heads(trunk(pixels)), whole(pixels))


def perturbed(model: nn.Module) -> nn.Module:
    """Batch norm as after training: statistics and affine parameters other than 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_find_backbone_info__normalization_equals_transform_input(name: str) -> None:
    images = torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preset = torchvision_weights(name).transforms()
    theirs = Normalize(tuple(preset.mean), tuple(preset.std))(images)
    model = getattr(models, name)(weights=None, init_weights=False, transform_input=True)
    info = find_backbone_info(name)
    ours = Normalize(info.mean, info.std)(images)
    # Both are affine maps to -1..1 with three or four float32 roundings of values up to 2.7: about 4 x 2^-23 x 2.7.
    torch.testing.assert_close(ours, model._transform_input(theirs), rtol=0, atol=2e-6)


def test_find_backbone_info__values_of_the_published_weights() -> None:
    info = find_backbone_info("mobilenet_v2")
    assert (info.image_size, info.short_side, info.interpolation) == (224, 232, "bilinear")
    assert (info.mean, info.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.weights_file == "mobilenet_v2-7ebf99e0.pth"
    assert find_backbone_info("efficientnet_b0").interpolation == "bicubic"
    assert find_backbone_info("inception_v3").image_size == 299


def test_find_backbone_info__fits_a_recipe_for_every_backbone() -> None:
    for name in backbone_names():
        info = find_backbone_info(name)
        size = (info.image_size, info.image_size)
        build_preprocessing(size, "short_side", short_side=info.short_side, interpolation=info.interpolation)


def test_backbone_names__are_torchvisions_and_our_own() -> None:
    names = backbone_names()
    assert tuple(names[:2]) == OWN_BACKBONES == ("smallcnn", "vgg_cnn_s")
    assert {"resnet18", "vit_b_16", "convnext_tiny"} < set(names)
    assert not any("rcnn" in name or "deeplab" in name or "raft" in name for name in names)


@pytest.mark.parametrize("function", [find_backbone_info, build_trunk, build_classifier, torchvision_weights])
def test_unknown_backbone__names_the_nearest(function: object) -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet81' \(nearest: 'resnet18'\)"):
        function("resnet81")  # type: ignore[operator]


@pytest.mark.parametrize(("name", "side"), [("smallcnn", 4), ("alexnet", 16), ("squeezenet1_0", 8)])
def test_feature_shape__input_too_small(name: str, side: int) -> None:
    with pytest.raises(ConfigError, match=f"image_size {side} does not fit this backbone"):
        feature_shape(build_trunk(name), (side, side))


def test_feature_shape__vision_transformer_of_another_size() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="image_size 96 does not fit"):
        feature_shape(build_trunk("vit_b_16"), (96, 96))


def test_feature_shape__leaves_the_trunk_as_it_was() -> None:
    trunk = build_trunk("smallcnn").train()
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    feature_shape(trunk, (32, 32))
    assert trunk.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trunk.state_dict().items())


def test_torchvision_weights__by_the_hash_in_their_name() -> None:
    # torchvision's own file names: mobilenet_v2-b0353104.pth is V1, mobilenet_v2-7ebf99e0.pth V2
    assert torchvision_weights("mobilenet_v2", "b0353104" + "0" * 56).name == "IMAGENET1K_V1"
    assert torchvision_weights("mobilenet_v2", "f" * 64).name == "IMAGENET1K_V2"
    assert find_backbone_info("mobilenet_v2", "b0353104" + "0" * 56).short_side == 256
    assert find_backbone_info("mobilenet_v2").short_side == 232


INFO = BackboneInfo("x", 224, 232, "bicubic", (0.1, 0.2, 1 / 3), (0.4, 0.5, 0.6), "x-01234567.pth")


class Finder:
    """Returns given answers, and records the requested names."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str) -> BackboneInfo:
        self.asked.append(name)
        return dataclasses.replace(INFO, name=name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["x", "timm:tiny", "timm:hf_hub/some/one"])
def test_remembered_info__asks_once(cache: Path, name: str) -> None:
    finder = Finder()
    infos = [remembered_info(name, finder) for _ in range(3)]
    assert infos == [dataclasses.replace(INFO, name=name)] * 3
    assert finder.asked == [name]
    assert all(path.parent == cache / "backbones" for path in cache.rglob("*.json"))


@pytest.mark.parametrize(("name", "package"), [("x", "torchvision"), ("timm:tiny", "timm")])
def test_remembered_info__asks_again_for_another_version(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    finder = Finder()
    installed = metadata.version
    for version in ("1.0", "1.1", "1.0"):
        versions = {package: version}
        monkeypatch.setattr(metadata, "version", lambda asked, own=versions: own.get(asked) or installed(asked))
        remembered_info(name, finder)
    assert finder.asked == [name, name]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"name": "x"}', b"\xff\xfe", b"null"])
def test_remembered_info__survives_a_damaged_file(cache: Path, content: bytes) -> None:
    finder = Finder()
    remembered_info("x", finder)
    (path,) = cache.rglob("*.json")
    path.write_bytes(content)
    assert remembered_info("x", finder) == remembered_info("x", finder) == INFO
    assert finder.asked == ["x", "x"]  # the second answer repaired the cache


def test_remembered_info__file_with_a_wrong_type_is_ignored(cache: Path) -> None:
    finder = Finder()
    remembered_info("x", finder)
    (path,) = cache.rglob("*.json")
    path.write_text(path.read_text(encoding="utf-8").replace("224", '"224"'), encoding="utf-8")
    assert remembered_info("x", finder) == INFO
    assert finder.asked == ["x", "x"]


def test_remembered_info__without_a_place_to_remember(cache: Path) -> None:
    cache.touch()  # a file at the path of the folder
    finder = Finder()
    assert [remembered_info("x", finder) for _ in range(2)] == [INFO, INFO]
    assert finder.asked == ["x", "x"]


def test_remembered_info__a_fault_is_passed_on_and_not_remembered(cache: Path) -> None:
    with pytest.raises(ConfigError, match="nearest: 'resnet18'"):
        remembered_info("resnet81", find_backbone_info)
    assert list(cache.rglob("*")) == []


def test_remembered_info__is_what_was_found_to_the_last_digit(cache: Path) -> None:
    for name in ("smallcnn", "mobilenet_v2", "vit_b_16", "inception_v3"):
        found = find_backbone_info(name)
        assert remembered_info(name, find_backbone_info) == remembered_info(name, find_backbone_info) == found


@pytest.mark.parametrize(
    "name", sorted({*FAMILIES, *(name for name in backbone_names() if name.startswith(WITHOUT_NORM))})
)
def test_has_norm__is_true_of_the_layers(name: str) -> None:
    with torch.device("meta"):
        trunk = build_trunk(name)
    layers = {type(module).__name__ for module in trunk.modules()} - {"LocalResponseNorm"}
    assert has_norm(name) == any("Norm" in layer for layer in layers)
