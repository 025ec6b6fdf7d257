"""Which parameters of a trunk are trained, in which epochs and at which learning rate.

Only sets `requires_grad`: `Network.train` keeps layers without trainable parameters in evaluation mode, so that the
statistics of a frozen batch norm do not change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.errors import ConfigError
from tl.trainer.options import nearest

_CHOICES = "none, all, half, all-but-bn, a number of stages, or comma-separated names and regular expressions"


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate: `lr_factor` times the run's."""

    parameters: tuple[nn.Parameter, ...]
    lr_factor: float


def stages(trunk: nn.Module) -> list[list[str]]:
    """Parameter names of each stage, from input to output: the blocks of the trunk's chains, and its single layers.

    A standalone norm layer belongs to the preceding stage. Parameters outside any block (class token, positions) belong
    to the first stage.
    """
    blocks = _blocks(trunk, "")
    found: list[list[str]] = []
    for name, module in blocks:
        names = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        if not names:
            continue
        if found and "norm" in type(module).__name__.lower():
            found[-1] += names
        else:
            found.append(names)
    inside = {name for stage in found for name in stage}
    outside = [name for name, _ in trunk.named_parameters() if name not in inside]
    return [outside + found[0], *found[1:]] if found else [outside]


def frozen_names(trunk: nn.Module, freeze: str) -> set[str]:
    """Names of the parameters that `freeze` selects. Raises `ConfigError` for a value that does not fit this trunk."""
    every = {name for name, _ in trunk.named_parameters()}
    if freeze in ("none", "all"):
        return every if freeze == "all" else set()
    if freeze == "all-but-bn":
        norms = [name for name, module in trunk.named_modules() if isinstance(module, _BatchNorm)]
        if not norms:
            raise ConfigError("freeze all-but-bn: this backbone has no batch norm layers")
        return {name for name in every if name.rpartition(".")[0] not in norms}
    parts = stages(trunk)
    if freeze == "half" or freeze.isdecimal():
        count = len(parts) // 2 if freeze == "half" else int(freeze)
        if count > len(parts):
            raise ConfigError(f"freeze {freeze}: this backbone has only {len(parts)} stages")
        return {name for stage in parts[:count] for name in stage}
    patterns = [pattern.strip() for pattern in freeze.split(",")]
    if not all(patterns):
        raise ConfigError(f"freeze: '{freeze}' has an empty part; give {_CHOICES}")
    return {name for pattern in patterns for name in _matching(every, pattern)}


def freeze_trunk(trunk: nn.Module, freeze: str) -> None:
    """Make every parameter trainable except those that `freeze` selects. Raises `ConfigError`."""
    frozen = frozen_names(trunk, freeze)
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name not in frozen)


def thaw_trunk(trunk: nn.Module, epoch: int, every: int) -> None:
    """Gradual unfreezing: train nothing in the first `every` epochs, then unfreeze stages one by one from the output.

    Source: Howard & Ruder 2018 (ULMFiT).
    """
    parts = stages(trunk)
    thawed = {name for stage in parts[max(0, len(parts) - (epoch - 1) // every) :] for name in stage}
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name in thawed)


def parameter_groups(trunk: nn.Module, others: Sequence[nn.Module], layer_lr_decay: float) -> list[ParameterGroup]:
    """All parameters of a network: `others` at the full rate, each trunk stage at `layer_lr_decay` times the next.

    Frozen parameters are included, since they may be unfrozen later; optimizers skip parameters without a gradient.
    """
    full = tuple(parameter for module in others for parameter in module.parameters())
    named = dict(trunk.named_parameters())
    if layer_lr_decay == 1:
        return [ParameterGroup((*named.values(), *full), 1.0)]
    parts = stages(trunk)
    groups = [
        ParameterGroup(tuple(named[name] for name in stage), layer_lr_decay ** (len(parts) - i))
        for i, stage in enumerate(parts)
    ]
    return [*groups, ParameterGroup(full, 1.0)]


def _blocks(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """The blocks of a chain; a ViT's encoder and a timm model count as chains of their children."""
    found = []
    for name, child in module.named_children():
        chained = isinstance(child, nn.Sequential | nn.ModuleList) or type(child).__name__ == "Encoder"
        is_whole_model = prefix == "" and name == "model"
        blocks = _blocks(child, f"{prefix}{name}.") if chained or is_whole_model else [(f"{prefix}{name}", child)]
        found += blocks
    return found


def _matching(names: set[str], pattern: str) -> set[str]:
    by_prefix = {name for name in names if name == pattern or name.startswith(f"{pattern}.")}
    if by_prefix:
        return by_prefix
    try:
        matching = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise ConfigError(f"freeze: '{pattern}' is neither a layer nor a regular expression ({error})") from error
    if not matching:
        layers = sorted({name.rsplit(".", cut)[0] for name in names for cut in range(1, name.count(".") + 1)})
        raise ConfigError(f"freeze: '{pattern}' matches no layer{nearest(pattern, layers)}: give {_CHOICES}")
    return matching
