"""Check what the user names as model files: folders are answered by what they are, equal files are pointed out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl.commands.console import warn
from tl.errors import ModelFileError

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
_SHOWN = 3


def check_model_files(*paths: Path | None) -> None:
    """Raise `ModelFileError` for a folder, or for weights of a run, that says what it is and what to do with it."""
    for path in paths:
        if path is not None and path.is_dir():
            raise ModelFileError(f"{path}: {_describe_folder(path)}")
        if path is not None and path.suffix.lower() in _WEIGHTS and _is_run(path.parent):
            raise ModelFileError(f"{path}: the weights of a run, not a model file: {_export(path.parent)}")


def warn_of_equal_files(paths: Sequence[Path]) -> None:
    """Print which members of an ensemble have the same content: such a member votes more than once."""
    from tl.runtime.sources.paths import hash_file

    files = [path for path in paths if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    known: dict[str, Path] = {}
    for path, size in zip(files, sizes, strict=True):
        if sizes.count(size) > 1:
            first = known.setdefault(hash_file(path), path)
            if first is not path:
                pair = f"{first} is given twice" if path == first else f"{first} and {path} are the same file"
                warn(f"warning: {pair}: it votes twice, and its agreement with itself says nothing")


def _describe_folder(folder: Path) -> str:
    """What a folder is, and which command takes it."""
    if _is_run(folder):
        if not (folder / "best.safetensors").is_file():
            resume = shlex.join(["tl", "train", "--resume", str(folder)])
            return f"is the folder of an unfinished run, not a model file: finish it first: {resume}"
        return f"is a run folder, not a model file: {_export(folder)}"
    models = sorted(folder.glob("*.onnx"))
    if models and (folder / "config.json").is_file():
        adopt = shlex.join(["tl", "adopt", str(folder), "--preset", "huggingface-folder", "-o", _name(folder)])
        return f"is a folder of another library, not a model file: convert it first: {adopt}"
    if models:
        return f"is a folder of model files: give a file, such as {_some(models)}"
    if (folder / "sweep.lock").is_file() or (folder / "leaderboard.csv").is_file():
        selected = sorted((folder / "models").glob("*.onnx"))
        found = f", such as {_some(selected)}" if selected else ", once the study has selected some"
        return f"is the folder of a study: give one of its model files{found}"
    if runs := sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path)):
        return f"is a folder of runs, such as {runs[0]}: {_export(runs[0])}"
    if _has_images(folder):
        return "is a folder of images, not a model file"
    return "is a folder, not a model file"


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and any(
        (folder / name).is_file() for name in ("best.safetensors", "last.pt", "manifest.csv")
    )


def _export(run: Path) -> str:
    return f"export it first: {shlex.join(['tl', 'export', str(run), '-o', _name(run)])}"


def _name(folder: Path) -> str:
    return f"{folder.resolve().name}.onnx"


def _some(models: Iterable[Path]) -> str:
    return ", ".join(map(str, list(models)[:_SHOWN]))


def _has_images(folder: Path) -> bool:
    """Whether there are images in a folder or in its class folders. Looks no deeper than `split/class/image`."""
    from tl.runtime.sources.paths import is_image_name

    depth = len(folder.parts)
    for here, folders, files in os.walk(folder):
        if any(map(is_image_name, files)):
            return True
        if len(Path(here).parts) - depth >= 2:
            folders.clear()
    return False
