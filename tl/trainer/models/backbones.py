"""Backbones by name with a common trunk interface: pixels in, feature map or pooled embedding out.

Contains torchvision's classification models, timm's (one with bundled weights), and two of our own. Contains no heads
and no weights lookup (`weights`). Parameter names stay those of the whole model, so that its weights can be loaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tl.errors import ConfigError, MissingExtraError
from tl.runtime.imaging.preprocessing import Interpolation
from tl.trainer.models.backbone_info import BUNDLED, OWN_BACKBONES, TIMM_PREFIX, BackboneInfo
from tl.trainer.options import nearest

FeatureKind = Literal["map", "embedding"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The first child of a classifier that is not part of the trunk.
_AFTER_TRUNK = ("avgpool", "global_pool", "classifier", "fc", "heads", "head", "flatten", "dropout")
# Layer that feeds the auxiliary classifier, and the smallest image size that it was designed for.
# Source: Szegedy et al. 2016 and torchvision 0.29 inception.py, `Inception3._forward`.
INCEPTION_AUX_LAYER, INCEPTION_AUX_SIZE = "Mixed_6e", 299


class Trunk(nn.Sequential):
    """A backbone without its classifier. Normalized float (N, 3, H, W) -> map (N, D, h, w) or embedding (N, D)."""

    kind: FeatureKind = "map"
    num_channels: int = 3
    # Whether batch norm keeps its statistics in training too.
    has_fixed_batch_norm: bool = False

    def tapped(self, pixels: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """The output of the child `layer`, and the features."""
        on_the_way = pixels
        for name, child in self.named_children():
            pixels = child(pixels)
            if name == layer:
                on_the_way = pixels
        return on_the_way, pixels

    def pyramid(self, pixels: Tensor) -> list[Tensor]:
        """The last map (N, D, h, w) of each resolution, fine to coarse; features alone if there is no plain chain."""
        if self.kind == "embedding" or "permute" in dict(self.named_children()):  # Swin has another axis order
            return [self(pixels)]
        maps: dict[tuple[int, ...], Tensor] = {}
        for layer in _layers(self):
            pixels = layer(pixels)
            maps[tuple(pixels.shape[2:])] = pixels
        return list(maps.values())


class _TimmTrunk(Trunk):
    """A timm model without its classifier, with the model's own pooling."""

    kind: FeatureKind = "embedding"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.model(pixels)
        return embedding


class _VisionTransformer(Trunk):
    """torchvision's ViT up to its class token; not a plain chain of children.

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
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        embedding: Tensor = self.encoder(tokens)[:, 0]
        return embedding


def backbone_names() -> list[str]:
    """Names of all backbones that `build_trunk` accepts, except timm's."""
    from torchvision import models

    return [*OWN_BACKBONES, BUNDLED, *models.list_models(module=models)]


def find_backbone_info(name: str, sha256: str = "") -> BackboneInfo:
    """Input requirements of a backbone's weights (`torchvision_weights`). Raises `ConfigError` for an unknown name."""
    if name == "smallcnn":
        return BackboneInfo(name, 64, 64, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    if name == "vgg_cnn_s":
        return BackboneInfo(name, 224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    if name == BUNDLED:
        # Source of color scale and interpolation: the weights' training code, tensorflow/tpu's efficientnet/lite.
        return BackboneInfo(name, 224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    if name.startswith(TIMM_PREFIX):
        return _timm_info(name)
    entry = torchvision_weights(name, sha256)
    preset = entry.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in ("googlenet", "inception_v3"):
        # torchvision reverts its normalization to these values inside forward (transform_input), which the trunk skips.
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    size, short_side = preset.crop_size[0], preset.resize_size[0]
    weights_file = entry.url.rsplit("/", 1)[-1]
    return BackboneInfo(name, size, short_side, preset.interpolation.value, mean, std, weights_file)


def torchvision_weights(name: str, sha256: str = "") -> Any:
    """Torchvision's entry (url, categories, transforms) of the weights file with this hash, or else the default one.

    Source: torchvision's URLs end in the first eight digits of the file's SHA-256. Downloads nothing.
    """
    from torchvision import models

    _check_name(name, torchvision_only=True)
    entries = models.get_model_weights(name)
    named = (entry for entry in entries if sha256 and f"-{sha256[:8]}." in entry.url)
    return next(named, entries.DEFAULT)


def imagenet_classes(name: str) -> tuple[tuple[str, ...], str]:
    """Names of the 1000 classes of a backbone's own head, and the torchvision weights that list them.

    Raises `ConfigError` for a backbone without such a head.
    """
    entry = torchvision_weights("mobilenet_v2" if name == BUNDLED else name)  # the same classes in the same order
    return tuple(entry.meta["categories"]), str(entry)


def build_classifier(name: str) -> nn.Module:
    """The whole model with its own 1000-class head, randomly initialized: torchvision's, or the bundled one."""
    from torchvision import models

    if name == BUNDLED:
        return build_timm(name)

    _check_name(name, torchvision_only=True)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, but torchvision warns if it is not set
    if name.startswith("vit_"):
        options["image_size"] = find_backbone_info(name).image_size  # its position embedding has a fixed size
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def build_trunk(name: str) -> Trunk:
    """A randomly initialized trunk. Raises `ConfigError` for an unknown name."""
    if name == "smallcnn":
        return _build_smallcnn()
    if name == "vgg_cnn_s":
        return _build_vgg_cnn_s()
    if name.startswith(TIMM_PREFIX):
        return _TimmTrunk(build_timm(name, num_classes=0))
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


def cut_trunk(trunk: Trunk, until: str) -> Trunk:
    """The trunk up to and including a layer, named as in its parameters ("features.13", "layer3.0").

    Raises `ConfigError` for a layer that does not exist or is not in a plain chain of layers.
    """
    names = _chain_names(trunk, "", is_swin="permute" in dict(trunk.named_children()))
    if until not in names:
        listed = ", ".join(names) if names else "none: this backbone is not a plain chain of layers"
        raise ConfigError(f"trunk_until: no layer '{until}'{nearest(until, names)}; it can be cut after: {listed}")
    kept = _cut(trunk, until.split("."))
    if "permute" in dict(trunk.named_children()):
        kept["permute"] = trunk.get_submodule("permute")  # Swin's earlier layers output (N, h, w, D)
    return Trunk(kept)


def widen_stem(trunk: Trunk, num_channels: int) -> None:
    """Make a trunk for RGB take `num_channels`: its first convolution's weights repeat as R, G, B, R ..., scaled by
    3 / `num_channels`, so that equal channels give the same output as before. Raises `ConfigError`.

    Source: timm 1.0, `adapt_input_conv` in models/_manipulate.py.
    """
    stem = first_convolution(trunk)
    if stem is None:
        raise ConfigError(
            f"channels: this backbone does not begin with a convolution of RGB, so it takes at most 3, "
            f"found {num_channels}"
        )
    weight = stem[1].weight.detach()
    repeated = weight.repeat(1, -(-num_channels // 3), 1, 1)[:, :num_channels] * (3 / num_channels)
    stem[1].weight = nn.Parameter(repeated.contiguous())
    stem[1].in_channels = trunk.num_channels = num_channels


def first_convolution(trunk: Trunk) -> tuple[str, nn.Conv2d] | None:
    """Name and layer of the convolution that a trunk begins with; None if it does not take RGB."""
    found = next(((name, one) for name, one in trunk.named_modules() if isinstance(one, nn.Conv2d)), None)
    return found if found is not None and found[1].in_channels == 3 and found[1].groups == 1 else None


def build_timm(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """The model for `timm:NAME` or the bundled backbone, randomly initialized or with weights that timm downloads.

    Raises `ConfigError`, `MissingExtraError`, and whatever a failed download raises.
    """
    timm, known = _import_timm(), name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(known):
        raise ConfigError(f"timm has no model '{known}'{nearest(known, timm.list_models())}")
    model: nn.Module = timm.create_model(known, pretrained=pretrained, **options)
    return model


@torch.no_grad()
def pyramid_shapes(trunk: Trunk, image_hw: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shape (D, h, w) of each map in `Trunk.pyramid`, for one image; (D,) if there is only an embedding."""
    was_training = trunk.training
    trunk.eval()
    try:
        return [tuple(tensor.shape[1:]) for tensor in trunk.pyramid(torch.zeros(1, trunk.num_channels, *image_hw))]
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"image_size {image_hw[0]} does not fit this backbone ({error})") from error
    finally:
        trunk.train(was_training)


@torch.no_grad()
def feature_shape(trunk: Trunk, image_hw: tuple[int, int]) -> tuple[int, ...]:
    """Shape of one image's features: (D, h, w) or (D,). Raises `ConfigError` if the input size does not fit."""
    was_training = trunk.training
    trunk.eval()
    try:
        features = trunk(torch.zeros(1, trunk.num_channels, *image_hw))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"image_size {image_hw[0]} does not fit this backbone ({error})") from error
    finally:
        trunk.train(was_training)
    return tuple(features.shape[1:])


def _check_name(name: str, *, torchvision_only: bool = False) -> None:
    names = backbone_names()
    if torchvision_only and (name in (*OWN_BACKBONES, BUNDLED) or name.startswith(TIMM_PREFIX)):
        raise ConfigError(f"{name} is not a torchvision model, so there is no ImageNet classifier for it")
    if name not in names:
        raise ConfigError(
            f"unknown backbone '{name}'{nearest(name, names)}: a torchvision classification model, "
            f"{', '.join((BUNDLED, *OWN_BACKBONES))}, or timm:NAME"
        )


def _build_smallcnn(widths: tuple[int, ...] = (32, 64, 128)) -> Trunk:
    """Three blocks of conv 3x3, batch norm, ReLU and max pool 2: a from-scratch baseline for small images."""
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


def _build_vgg_cnn_s() -> Trunk:
    """CNN-S without its dense layers: 512 channels, 6x6 at 224 px.

    Source: Chatfield et al. 2014, "Return of the Devil in the Details", table 1; the authors' Caffe model for the
    response normalization. Their dense layers are `--pooling flatten --head mlp --head-sizes 4096 --head-sizes 4096
    --dropout 0.5`.
    """
    relu, wide = nn.ReLU, 512
    return Trunk(
        OrderedDict(
            conv1=nn.Conv2d(3, 96, 7, stride=2),
            relu1=relu(inplace=True),
            norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            pool1=nn.MaxPool2d(3, 3, ceil_mode=True),
            conv2=nn.Conv2d(96, 256, 5),
            relu2=relu(inplace=True),
            pool2=nn.MaxPool2d(2, 2, ceil_mode=True),
            conv3=nn.Conv2d(256, wide, 3, padding=1),
            relu3=relu(inplace=True),
            conv4=nn.Conv2d(wide, wide, 3, padding=1),
            relu4=relu(inplace=True),
            conv5=nn.Conv2d(wide, wide, 3, padding=1),
            relu5=relu(inplace=True),
            pool5=nn.MaxPool2d(3, 3, ceil_mode=True),
        )
    )


def _timm_info(name: str) -> BackboneInfo:
    model = build_timm(name)
    facts = _import_timm().data.resolve_data_config({}, model=model)
    size = facts["input_size"][1]
    interpolation: Interpolation = "bicubic" if facts["interpolation"] == "bicubic" else "bilinear"
    short_side = round(size / facts["crop_pct"])
    return BackboneInfo(name, size, short_side, interpolation, tuple(facts["mean"]), tuple(facts["std"]))


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            "timm backbones require an additional package: pip install 'tl-toolkit[train]'"
        ) from error
    return timm


def _layers(chain: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain in order, with nested chains flattened."""
    for child in chain.children():
        if type(child) is nn.Sequential:
            yield from _layers(child)
        else:
            yield child


def _chain_names(chain: nn.Module, prefix: str, *, is_swin: bool) -> list[str]:
    names = []
    for name, child in chain.named_children():
        if prefix or name != "permute":
            # Swin's inner layers have another axis order than their output.
            is_plain = type(child) is nn.Sequential and not (prefix and is_swin)
            names += _chain_names(child, f"{prefix}{name}.", is_swin=is_swin) if is_plain else []
            names.append(f"{prefix}{name}")
    return names if isinstance(chain, nn.Sequential) and type(chain) in (nn.Sequential, Trunk) else []


def _cut(chain: nn.Module, path: list[str]) -> OrderedDict[str, nn.Module]:
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in chain.named_children():
        kept[name] = child
        if name == path[0]:
            if len(path) > 1:
                kept[name] = nn.Sequential(_cut(child, path[1:]))
            break
    return kept
