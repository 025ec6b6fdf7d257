"""Backbones by name as one kind of trunk: pixels in, feature map or pooled embedding out.

Knows torchvision's classification models and `smallcnn`. Does not know where weights come from (`weights`), heads or
classes. Parameter names stay those of the whole torchvision model, so its weights fit.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tl.errors import ConfigError
from tl.runtime.recipe import Interpolation
from tl.trainer.config import nearest

FeatureKind = Literal["map", "embedding"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The first child of a torchvision classifier that is no longer trunk.
_AFTER_TRUNK = ("avgpool", "classifier", "fc", "heads", "head", "flatten", "dropout")


@dataclass(frozen=True)
class BackboneInfo:
    """What a backbone's published weights expect of their input.

    `mean`, `std`: of channels in 0..1. `short_side`: of ImageNet validation, before the crop to `image_size`.
    """

    name: str
    image_size: int
    short_side: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Trunk(nn.Sequential):
    """A backbone without its classifier. float (N, 3, H, W) normalised -> map (N, D, h, w) or embedding (N, D)."""

    kind: FeatureKind = "map"


class _VisionTransformer(Trunk):
    """torchvision's ViT up to its class token, which is not a plain chain of children.

    Source: torchvision 0.29 vision_transformer.py, `VisionTransformer.forward`.
    """

    kind: FeatureKind = "embedding"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj: nn.Module = model.conv_proj
        self.encoder: nn.Module = model.encoder
        self.class_token: nn.Parameter = model.class_token

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv_proj(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        embedding: Tensor = self.encoder(tokens)[:, 0]
        return embedding


def backbone_names() -> list[str]:
    """Every backbone that `build_trunk` knows."""
    from torchvision import models

    return ["smallcnn", *models.list_models(module=models)]


def backbone_info(name: str, sha256: str = "") -> BackboneInfo:
    """What the backbone's weights (see `torchvision_weights`) expect. Raises `ConfigError` for an unknown name."""
    if name == "smallcnn":
        return BackboneInfo(name, 64, 64, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    preset = torchvision_weights(name, sha256).transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in ("googlenet", "inception_v3"):
        # torchvision maps its normalised input back to these inside forward (transform_input), which the trunk skips.
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return BackboneInfo(name, preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, mean, std)


def torchvision_weights(name: str, sha256: str = "") -> Any:
    """Torchvision's entry (url, categories, transforms) of the weights file with this hash, or else the default one.

    Source: the first eight digits of a file's SHA-256 end its name in torchvision's urls. Downloads nothing.
    """
    from torchvision import models

    _check_name(name, torchvision_only=True)
    entries = models.get_model_weights(name)
    named = (entry for entry in entries if sha256 and f"-{sha256[:8]}." in entry.url)
    return next(named, entries.DEFAULT)


def build_classifier(name: str) -> nn.Module:
    """The whole torchvision model with its own 1000-class head, randomly initialised."""
    from torchvision import models

    _check_name(name, torchvision_only=True)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, but torchvision warns unless it is said
    if name.startswith("vit_"):
        options["image_size"] = backbone_info(name).image_size  # its position embedding has a fixed size
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def build_trunk(name: str) -> Trunk:
    """A randomly initialised trunk. Raises `ConfigError` for an unknown name."""
    if name == "smallcnn":
        return _build_smallcnn()
    model = build_classifier(name)
    if type(model).__name__ == "VisionTransformer":
        return _VisionTransformer(model)
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for child_name, child in model.named_children():
        if child_name in _AFTER_TRUNK:
            break
        if child_name.lower().startswith("aux"):
            continue
        children[child_name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
    if type(model).__name__ == "DenseNet":
        children["relu"] = nn.ReLU(inplace=True)  # torchvision applies it in forward
    return Trunk(children)


@torch.no_grad()
def feature_shape(trunk: Trunk, image_hw: tuple[int, int]) -> tuple[int, ...]:
    """Shape of one picture's features: (D, h, w) or (D,). Raises `ConfigError` if the input size does not fit."""
    was_training = trunk.training
    trunk.eval()
    try:
        features = trunk(torch.zeros(1, 3, *image_hw))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"image_size {image_hw[0]} does not fit this backbone ({error})") from error
    finally:
        trunk.train(was_training)
    return tuple(features.shape[1:])


def _check_name(name: str, *, torchvision_only: bool = False) -> None:
    names = backbone_names()
    if torchvision_only and name == "smallcnn":
        raise ConfigError("smallcnn is our own: it has no ImageNet classifier or weights")
    if name not in names:
        raise ConfigError(
            f"unknown backbone '{name}'{nearest(name, names)}: smallcnn or a torchvision classification model"
        )


def _build_smallcnn(widths: tuple[int, ...] = (32, 64, 128)) -> Trunk:
    """Three blocks of conv 3x3, batch norm, ReLU and max pool 2: a from-scratch baseline for small pictures."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    width_in = 3
    for i, width in enumerate(widths):
        blocks[f"block{i + 1}"] = nn.Sequential(
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        width_in = width
    return Trunk(blocks)
