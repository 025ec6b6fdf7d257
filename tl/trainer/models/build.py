"""Build networks from configs, weights files and run folders, and ONNX graphs from networks.

The graphs have no contract and are not verified. Contains no images and no training.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from tl.errors import ConfigError
from tl.runtime.imaging.preprocessing import parse_channels
from tl.runtime.model_file.protobuf import IR_VERSION
from tl.trainer.config import TrainConfig
from tl.trainer.models.backbone_info import OWN_BACKBONES, TIMM_PREFIX, BackboneInfo, with_channels
from tl.trainer.models.backbones import (
    INCEPTION_AUX_LAYER,
    INCEPTION_AUX_SIZE,
    Trunk,
    build_classifier,
    build_timm,
    build_trunk,
    cut_trunk,
    feature_shape,
    find_backbone_info,
    first_convolution,
    widen_stem,
)
from tl.trainer.models.freezing import freeze_trunk
from tl.trainer.models.network import FeaturePooling, Network, Normalize, Standardize, build_head, pooled_shape
from tl.trainer.models.weights import Weights, load_into
from tl.trainer.options import settled
from tl.trainer.run_folder.checkpoints import load_best
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import Run

OPSET = 18


def to_onnx(module: nn.Module, input_shape: tuple[int, int, int], output_names: Sequence[str]) -> onnx.ModelProto:
    """Export a module that takes `images` uint8 (N, H, W, C), with dynamic N; removes stack traces."""
    example = torch.zeros(2, *input_shape, dtype=torch.uint8)  # two images: a batch size of 1 would be specialized
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecation warnings, not actionable for users
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("N", min=1, max=65536)},),
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    ClearMetadataAndDocStringPass()(model)  # stack traces that contain local paths
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    return onnx_ir.to_proto(model)


def build_network(config: TrainConfig, info: BackboneInfo, num_classes: int, weights: Weights | None) -> Network:
    """The network of a resolved config, initialized from the seed and the weights, and frozen as configured.

    Raises `ConfigError` or `WeightsError`.
    """
    trunk = build_run_trunk(config, weights)
    side = config.image_size or info.image_size
    shape, pooling = head_input(config, trunk, side)
    torch.manual_seed(config.seed)  # makes the head's initialization independent of the trunk
    head = build_head(
        settled(config.head), shape, num_classes, sizes=settled(config.head_sizes), dropout=config.dropout
    )
    aux = _build_aux(config, trunk, side, num_classes, weights)
    network = Network(
        Normalize(info.mean, info.std),
        trunk,
        Standardize(shape),
        head,
        pooling=pooling,
        aux=aux,
        aux_layer=INCEPTION_AUX_LAYER if aux else "",
    )
    return network.to(memory_format=torch.channels_last)


def build_run_trunk(config: TrainConfig, weights: Weights | None) -> Trunk:
    """The trunk of a resolved config, cut and frozen as configured. Raises `ConfigError` or `WeightsError`."""
    torch.manual_seed(config.seed)
    trunk = build_trunk(config.backbone)
    whole = set(trunk.state_dict())
    if config.trunk_until is not None:
        trunk = cut_trunk(trunk, config.trunk_until)
    num_channels = max(3, len(parse_channels(config.channels) or ()))
    if num_channels > 3 and (weights is None or _has_channels(trunk, weights, num_channels)):
        widen_stem(trunk, num_channels)
    if weights is not None:
        beyond = whole - set(trunk.state_dict())
        load_into(trunk, weights, unused=beyond | _classifier_names(config.backbone, whole))
    if trunk.num_channels < num_channels:
        widen_stem(trunk, num_channels)
    freeze_trunk(trunk, "all" if config.method == "features" else config.freeze)
    trunk.has_fixed_batch_norm = config.batch_norm == "fixed"
    return trunk


def _has_channels(trunk: Trunk, weights: Weights, num_channels: int) -> bool:
    """Whether weights are of a trunk that was widened already, as those of a run."""
    stem = first_convolution(trunk)
    tensor = None if stem is None else weights.tensors.get(f"{stem[0]}.weight")
    return tensor is not None and tensor.dim() == 4 and tensor.shape[1] == num_channels


def head_input(config: TrainConfig, trunk: Trunk, side: int) -> tuple[tuple[int, ...], FeaturePooling]:
    """Shape of the head's input for one image of `side` pixels, and its pooling. Raises `ConfigError`."""
    pooling: FeaturePooling = "map" if config.head == "conv" else config.pooling
    if trunk.kind == "embedding" and pooling == "flatten":
        raise ConfigError(f"pooling flatten requires a feature map, but {config.backbone} outputs a pooled embedding")
    return pooled_shape(feature_shape(trunk, (side, side)), pooling), pooling


def load_network(run: Run) -> tuple[Network, NetworkCard, TrainConfig]:
    """A run's best network in evaluation mode on the CPU, its card and its config. Raises `RunError`."""
    config = run.load_config()
    tensors, card = load_best(run)
    info = with_channels(find_backbone_info(config.backbone), card.preprocessing.num_channels)
    network = build_network(config, info, len(card.class_names or card.target_names), None)
    load_into(network, Weights(tensors, str(run.best_path)))
    return network.eval(), card, config


def _classifier_names(backbone: str, trunk: set[str]) -> set[str]:
    """Names of tensors in the whole published model that do not belong to the trunk."""
    if backbone in OWN_BACKBONES:
        return set()
    if backbone.startswith(TIMM_PREFIX):
        whole = {f"model.{name}" for name in build_timm(backbone).state_dict()}
    else:
        try:
            with torch.device("meta"):  # only names are needed, no values
                whole = set(build_classifier(backbone).state_dict())
        except (NotImplementedError, RuntimeError):  # some models compute with values while they are built
            whole = set(build_classifier(backbone).state_dict())
    return whole - trunk


def _build_aux(
    config: TrainConfig, trunk: Trunk, side: int, num_classes: int, weights: Weights | None
) -> nn.Module | None:
    """Inception's auxiliary classifier, for training at its design size; its convolutions are loaded from the weights.

    Omitted where it has no effect: below a frozen or cut trunk, or where the map is too small for it.
    """
    is_trained = any(parameter.requires_grad for parameter in trunk.parameters())
    if config.backbone != "inception_v3" or side < INCEPTION_AUX_SIZE or not is_trained:
        return None
    if INCEPTION_AUX_LAYER not in dict(trunk.named_children()):
        return None
    from torchvision.models.inception import InceptionAux

    aux: nn.Module = InceptionAux(768, num_classes)
    given = weights.tensors if weights is not None else {}
    known = {name: tensor for name in aux.state_dict() if (tensor := given.get(f"AuxLogits.{name}")) is not None}
    convolutions = {name: tensor for name, tensor in known.items() if not name.startswith("fc.")}
    if convolutions:
        aux.load_state_dict({**aux.state_dict(), **convolutions})
    return aux
