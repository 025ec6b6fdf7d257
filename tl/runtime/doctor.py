"""Examine this machine: can it decode pictures and run model files, and if not, what is missing?

Knows the runtime's own needs. Does not import torch; nothing here changes the machine.
"""

from __future__ import annotations

import base64
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import simplejpeg

from tl import __version__
from tl.errors import TlError
from tl.runtime.devices import installed_wheels, usable_cores
from tl.runtime.session import Session, cuda_fault

# One Identity node on a float tensor, opset 18, IR 10: onnx.helper.make_model(...).SerializeToString().
_TINY_MODEL = "CAoSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEg=="


@dataclass(frozen=True)
class Finding:
    """One thing examined. `ok` is None for a plain fact. `detail` says what was found and how to mend it."""

    name: str
    ok: bool | None
    detail: str


def examine() -> list[Finding]:
    """Examine the runtime's needs: onnxruntime, CUDA, decoders, cores."""
    return [
        Finding("tl", None, f"{__version__}, Python {platform.python_version()} on {platform.platform()}"),
        Finding("cores", None, f"{usable_cores()} usable"),
        _wheels(),
        _session("cpu"),
        _cuda(),
        _pillow(),
        _jpeg(),
    ]


def _wheels() -> Finding:
    wheels = installed_wheels()
    shown = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if len(wheels) == 1:
        return Finding("onnxruntime", True, shown)
    if not wheels:
        cure = "pip install 'tl-toolkit[cpu]', or [gpu] for CUDA"
        return Finding("onnxruntime", False, f"not installed: {cure}")
    cure = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'tl-toolkit[gpu]' or [cpu]"
    return Finding("onnxruntime", False, f"{shown}: together they break CUDA: {cure}")


def _session(device: str) -> Finding:
    """Whether a tiny session really loads on a device."""

    def load() -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.onnx"
            path.write_bytes(base64.b64decode(_TINY_MODEL))
            return f"a session loads on {Session(path, device=device, require_contract=False).provider}"

    return _attempt(f"session {device}", load)


def _cuda() -> Finding:
    try:
        fault = cuda_fault()
    except TlError as error:
        return Finding("cuda", False, str(error))
    if fault is None:
        return _session("cuda")
    # Without a GPU wheel, CUDA was not asked for: a fact, not a fault.
    asked = "onnxruntime-gpu" in installed_wheels()
    return Finding("cuda", False if asked else None, f"not usable: {fault}")


def _pillow() -> Finding:
    from PIL import features

    lacking = [name for name in ("jpg", "zlib", "libtiff", "webp", "jpg_2000", "avif") if not features.check(name)]
    version = metadata.version("pillow")
    if lacking:
        return Finding("pillow", False, f"{version} lacks {', '.join(lacking)}: pip install --upgrade pillow")
    return Finding("pillow", True, f"{version} with JPEG, PNG, TIFF, WebP, JPEG 2000, AVIF")


def _jpeg() -> Finding:
    def decode() -> str:
        data = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
        height, width, _ = simplejpeg.decode_jpeg(data, strict=True).shape
        return f"{metadata.version('simplejpeg')} decodes {width}x{height}, strictly"

    return _attempt("simplejpeg", decode)


def _attempt(name: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, work())
    except (TlError, ImportError, OSError) as error:
        return Finding(name, False, f"{error} (Python: {sys.executable})")
