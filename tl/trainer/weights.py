"""Where a backbone's tensors come from: torchvision's download, local files, an earlier run, or nowhere.

Knows files and keys. Does not know heads or training. A pickle that would run code is refused.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tl.errors import WeightsError
from tl.trainer.backbones import torchvision_weights

WEIGHTS_DIR_VARIABLE = "TL_WEIGHTS_DIR"
SUFFIXES = (".safetensors", ".pth", ".pt")
RUN_WEIGHTS = "best.safetensors"


@dataclass(frozen=True)
class Weights:
    """Named tensors in the backbone's own names, what to call them in a model file, and their file's SHA-256 or ''."""

    tensors: Mapping[str, Tensor]
    description: str
    sha256: str = ""


def find_weights(backbone: str, asked: str) -> Weights | None:
    """Resolve `asked`: "none" (gives None), "imagenet", a tensor file, a folder of `BACKBONE.pth`, or a run folder.

    "imagenet" looks into the folder named by TL_WEIGHTS_DIR first, then into torch's cache, then downloads.
    Raises `WeightsError` with the ways to mend it.
    """
    if asked == "none":
        return None
    if asked == "imagenet":
        folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
        local = _file_in_folder(Path(folder), backbone) if folder else None
        return _read(local, backbone) if local else _download(backbone)
    path = Path(asked)
    if (path / RUN_WEIGHTS).is_file():
        return _from_run(path)
    if path.is_dir():
        local = _file_in_folder(path, backbone)
        if local is None:
            raise WeightsError(f"{path}: neither a run folder nor holding {backbone}{'|'.join(SUFFIXES)}")
        return _read(local, backbone)
    if path.is_file():
        return _read(path, backbone)
    raise WeightsError(f"weights '{asked}': no such file or folder (or give imagenet, or none)")


def load_into(module: nn.Module, weights: Weights, *, unused: frozenset[str] | set[str] = frozenset()) -> None:
    """Copy tensors into a module. Keys in `unused` (the original classifier's) may be there and are left out.

    Raises `WeightsError` naming tensors that are missing, unknown or of another shape.
    """
    wanted = module.state_dict()
    # Files converted from elsewhere may lack batch norm's step counters, which nothing reads.
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - weights.tensors.keys() - counters)
    unknown = sorted(weights.tensors.keys() - wanted.keys() - set(unused))
    misshapen = [
        f"{name} {tuple(weights.tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights.tensors and weights.tensors[name].shape != tensor.shape
    ]
    faults = []
    for what, names in (("lack", missing), ("have unknown", unknown), ("have other shapes:", misshapen)):
        if names:
            faults.append(f"{what} {len(names)} tensors, such as {', '.join(names[:3])}")
    if faults:
        raise WeightsError(f"{weights.description}: the weights are of another network: they {'; they '.join(faults)}")
    tensors = {name: tensor.float() for name, tensor in weights.tensors.items() if name in wanted}
    complete = OrderedDict({**{name: wanted[name] for name in counters}, **tensors})
    complete._metadata = wanted._metadata  # type: ignore[attr-defined]  # MNASNet refuses to load without its version
    module.load_state_dict(complete)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors or .pth file of named tensors. Raises `WeightsError`; never runs code from the file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # torch's word for a pickle that would call something
            raise WeightsError(
                f"{path}: holds more than tensors and is refused, because loading it could run code"
            ) from error
        raise WeightsError(f"{path}: not a readable weights file (damaged, or of another kind)") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable weights file ({' '.join(str(error).split())[:200]})") from error
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise WeightsError(f"{path}: holds no named tensors (expected a state_dict)")
    return tensors


def _file_in_folder(folder: Path, backbone: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{backbone}{suffix}").is_file()), None)


def _read(path: Path, backbone: str) -> Weights:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tensors = _rename_dense_layers(read_tensors(path))
    return Weights(tensors, f"{path.name} ({backbone}, sha256 {digest[:16]})", digest)


def _rename_dense_layers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`denselayer1.norm.1.weight` -> `denselayer1.norm1.weight`, as torchvision does when it loads its DenseNets.

    Source: torchvision 0.29 densenet.py, `_load_state_dict`.
    """
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {pattern.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


def _from_run(run: Path) -> Weights:
    prefix = "trunk."
    tensors = read_tensors(run / RUN_WEIGHTS)
    trunk = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return Weights(trunk, f"run {run.name}")


def _download(backbone: str) -> Weights:
    if backbone == "smallcnn":
        raise WeightsError("smallcnn has no ImageNet weights: use --method scratch, or --weights with a run of it")
    entry = torchvision_weights(backbone)
    try:
        tensors = _rename_dense_layers(entry.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        file_name = entry.url.rsplit("/", 1)[-1]
        raise WeightsError(
            f"the ImageNet weights of {backbone} ({file_name}) could not be downloaded ({error}). Three ways to "
            f"supply them: put {backbone}.pth or .safetensors into a folder and set {WEIGHTS_DIR_VARIABLE} to it; "
            f"name the file by --weights FILE; or copy {file_name} into {Path(torch.hub.get_dir()) / 'checkpoints'}"
        ) from error
    return Weights(tensors, f"torchvision {entry!s}")
