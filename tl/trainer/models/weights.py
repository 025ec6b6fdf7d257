"""Read the tensors of a weights file, and load them into a network.

Does not locate files (`weight_files`). Rejects pickles that would execute code.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tl.errors import WeightsError
from tl.trainer.models.backbone_info import BUNDLED, TIMM_PREFIX
from tl.trainer.models.weight_files import WeightsFile

_TRUNK_PREFIX = "trunk."


@dataclass(frozen=True)
class Weights:
    """Tensors under the backbone's own names, and their name in messages and model files."""

    tensors: Mapping[str, Tensor]
    description: str


def read_weights(file: WeightsFile, backbone: str) -> Weights:
    """The backbone's tensors from a file, under its trunk's names. Raises `WeightsError`."""
    tensors = read_tensors(file.path)
    if file.is_run:
        tensors = {
            name.removeprefix(_TRUNK_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(_TRUNK_PREFIX)
        }
    elif backbone == BUNDLED:
        tensors = _named_as_in_timm(tensors, file.description)
    elif backbone.startswith(TIMM_PREFIX):
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return Weights(_rename_dense_layers(tensors), file.description)


def _named_as_in_timm(tensors: dict[str, Tensor], description: str) -> dict[str, Tensor]:
    """The bundled backbone's tensors under timm's names, which come in the same order with the same shapes."""
    from tl.trainer.models.backbones import build_classifier

    wanted = build_classifier(BUNDLED).state_dict()
    if tensors.keys() == wanted.keys():
        return tensors
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in wanted.values()]:
        raise WeightsError(
            f"{description}: the weights are of another network: expected {len(wanted)} tensors of {BUNDLED} in its "
            f"order, found {len(tensors)}"
        )
    return dict(zip(wanted, tensors.values(), strict=True))


def load_into(module: nn.Module, weights: Weights, *, unused: frozenset[str] | set[str] = frozenset()) -> None:
    """Copy tensors into a module. Keys in `unused` (the original classifier's) are optional and ignored.

    Raises `WeightsError` that names missing and unknown tensors and those with another shape.
    """
    wanted = module.state_dict()
    # Converted files may lack batch norm's step counters, which are unused.
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - weights.tensors.keys() - counters)
    unknown = sorted(weights.tensors.keys() - wanted.keys() - set(unused))
    misshapen = [
        f"{name} {tuple(weights.tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights.tensors and weights.tensors[name].shape != tensor.shape
    ]
    faults = []
    for what, names in (("lack", missing), ("have unknown", unknown), ("have different shapes:", misshapen)):
        if names:
            faults.append(f"{what} {len(names)} tensors, such as {', '.join(names[:3])}")
    if faults:
        raise WeightsError(
            f"{weights.description}: the weights belong to a different network: they {'; they '.join(faults)}"
        )
    tensors = {name: tensor.float() for name, tensor in weights.tensors.items() if name in wanted}
    complete = OrderedDict({**{name: wanted[name] for name in counters}, **tensors})
    complete._metadata = wanted._metadata  # type: ignore[attr-defined]  # MNASNet fails to load without its version
    module.load_state_dict(complete)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors or .pth file of named tensors. Raises `WeightsError`; never executes code from the file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warns about file types that torch may not read, before it raises
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # torch's wording for a pickle that would call a function
            raise WeightsError(
                f"{path}: contains objects other than tensors and was not loaded, because loading it could run code"
            ) from error
        raise WeightsError(f"{path}: not a readable weights file (damaged, or not a weights file)") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable weights file ({' '.join(str(error).split())[:200]})") from error
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise WeightsError(f"{path}: contains no named tensors (expected a state_dict)")
    return tensors


def _rename_dense_layers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`denselayer1.norm.1.weight` -> `denselayer1.norm1.weight`, as torchvision does when it loads its DenseNets.

    Source: torchvision 0.29 densenet.py, `_load_state_dict`.
    """
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {pattern.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
