"""Input requirements of a backbone's published weights, with an on-disk cache for fast repeated lookups.

Never imports torch, torchvision or timm; the callback that does runs once per installed version.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata

from tl import __version__
from tl.data.array_cache import cache_folder
from tl.errors import OutputError
from tl.runtime.imaging.preprocessing import Interpolation
from tl.runtime.model_file.strict_json import dump_json, from_plain, parse_json
from tl.runtime.output.files import write_text

OWN_BACKBONES = ("smallcnn", "vgg_cnn_s")
TIMM_PREFIX = "timm:"
# The backbone whose ImageNet weights are installed with `tl-toolkit[train]`; timm builds it.
BUNDLED = "efficientnet_lite0"
# How the names of families begin.
WITHOUT_NORM = ("alexnet", "squeezenet", "vgg")
WITH_LAYER_NORM = ("convnext",)
TRANSFORMERS = ("vit", "deit", "beit", "eva", "swin", "maxvit", "cait", "xcit", "flexivit")


@dataclass(frozen=True)
class Choice:
    """A backbone that is worth trying. `top1`: published accuracy on ImageNet-1k in percent, of the default weights.

    `megabytes`: size of the trunk in fp32. `images_per_s`: on one CPU core, at the backbone's own image size.
    """

    name: str
    megabytes: int
    top1: float
    images_per_s: float
    license: str


# Sources of `top1`: torchvision's table of weights; for EfficientNet-Lite0, tensorflow/tpu; for DINOv2, Oquab et al.
# 2023 (linear evaluation). `benchmarks/backbones.py` measures size and speed.
RECOMMENDED = (
    Choice(BUNDLED, 13, 75.1, 175, "Apache-2.0"),
    Choice("mobilenet_v2", 9, 72.2, 196, "BSD-3-Clause"),
    Choice("resnet50", 94, 80.9, 27, "BSD-3-Clause"),
    Choice("efficientnet_v2_s", 81, 84.2, 11, "BSD-3-Clause"),
    Choice("convnext_tiny", 111, 82.5, 16, "BSD-3-Clause"),
    Choice("timm:vit_small_patch14_dinov2.lvd142m", 88, 81.1, 1.4, "Apache-2.0"),
)


@dataclass(frozen=True)
class BackboneInfo:
    """`mean`, `std`: per channel, in 0..1. `short_side`: in ImageNet validation, before the crop to `image_size`.

    `weights_file`: file name of torchvision's default weights, "" if there are none.
    """

    name: str
    image_size: int
    short_side: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_file: str = ""


def with_channels(info: BackboneInfo, num_channels: int) -> BackboneInfo:
    """The backbone for images of more than 3 channels: statistics repeat like the weights of `widen_stem`."""
    mean, std = (tuple(values[i % 3] for i in range(num_channels)) for values in (info.mean, info.std))
    return replace(info, mean=mean, std=std)


def remembered_info(name: str, find: Callable[[str], BackboneInfo]) -> BackboneInfo:
    """`find(name)`, or its cached result. Raises what `find` raises."""
    path = cache_folder() / "backbones" / f"{name.replace('/', '_').replace(':', '_')}-{_version(name)}.json"
    try:
        return from_plain(BackboneInfo, parse_json(path.read_text(encoding="utf-8")), name)
    except (OSError, ValueError):
        info = find(name)
    with suppress(OutputError):  # only a cache
        write_text(path, dump_json(info))
    return info


def library_of(name: str) -> str:
    """Return the package that builds a backbone other than our own."""
    return "timm" if name == BUNDLED or name.startswith(TIMM_PREFIX) else "torchvision"


def _version(name: str) -> str:
    if name in OWN_BACKBONES:
        return __version__
    try:
        return metadata.version(library_of(name))
    except metadata.PackageNotFoundError:
        return "none"


def has_norm(backbone: str) -> bool:
    """Whether a backbone has normalization layers, inferred from its name: the older families have none."""
    name = backbone.rpartition(":")[2]
    return not name.startswith(WITHOUT_NORM) or "_bn" in name


def family_of(backbone: str) -> str:
    """The key of a backbone in `config.FAMILY_RATES`, inferred from its name."""
    name = backbone.rpartition(":")[2]
    if name.startswith(TRANSFORMERS):
        return "transformer"
    if name.startswith(WITH_LAYER_NORM):
        return "layer norm"
    if name.removeprefix("tf_").startswith("efficientnet_lite"):
        return "efficientnet lite"
    return "batch norm" if has_norm(backbone) else "no normalization"
