"""Check this machine: whether it can decode images and run model files, and if not, what is missing.

Never imports torch and never changes the machine.
"""

from __future__ import annotations

import base64
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from tl import __version__
from tl.errors import DeviceError, ImageReadError, TlError
from tl.runtime.bench.works import PHONE_WH, sample_jpeg
from tl.runtime.devices import (
    CUDA_LIBRARIES,
    count_cores,
    driver_cuda,
    driver_fault,
    driver_version,
    find_libraries,
    graphics_cards,
    installed_wheels,
)
from tl.runtime.engines.onnxruntime import cuda_fault, cuda_version, device_fault, offered_providers, preload_cuda
from tl.runtime.engines.openvino import has_bf16, openvino_version
from tl.runtime.imaging.decode import decode_image
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.imaging.signatures import UNCHECKED_FORMATS
from tl.runtime.providers import GPU_WHEEL, PROVIDERS
from tl.runtime.session import Session

# Maps 4 x 4 images to 2 (red + 2 green + 3 blue) of their mean color, with Cast, Transpose, Conv, GlobalAveragePool,
# Flatten and MatMul, so that cuDNN and cuBLAS are exercised; opset 18, IR 8:
# onnx.helper.make_model(...).SerializeToString().
_TINY_MODEL = (
    "CAgSADq8AgohCgZpbWFnZXMSBnBpeGVscyIEQ2FzdCoJCgJ0bxgBoAECCi4KBnBpeGVscxIGcGxhbmVzIglUcmFuc3Bvc2UqEQoE"
    "cGVybUAAQANAAUACoAEHChwKBnBsYW5lcwoGa2VybmVsEgRzdW1zIgRDb252Ch8KBHN1bXMSBG1lYW4iEUdsb2JhbEF2ZXJhZ2VQ"
    "b29sChUKBG1lYW4SBGZsYXQiB0ZsYXR0ZW4KGwoEZmxhdAoDdHdvEgZyZXN1bHQiBk1hdE11bBIBZyogCAEIAwgBCAEQAUIGa2Vy"
    "bmVsSgwAAIA/AAAAQAAAQEAqEQgBCAEQAUIDdHdvSgQAAABAWiEKBmltYWdlcxIXChUIAhIRCgMSAU4KAggECgIIBAoCCANiGQoG"
    "cmVzdWx0Eg8KDQgBEgkKAxIBTgoCCAFCBAoAEBI="
)
_DECODED_SIDE = 224  # input size of most backbones


@dataclass(frozen=True)
class Finding:
    """Result of one check. `ok` is None for plain information. `detail`: what was found and how to fix it.

    `facts`: the same in machine-readable form, as names and plain values.
    """

    name: str
    ok: bool | None
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


def examine() -> list[Finding]:
    """Check what the runtime needs: cores, onnxruntime, CUDA, decoders."""
    return [
        _versions(),
        _cores(),
        _wheels(),
        _providers(),
        _session("cpu"),
        _openvino(),
        *_other_devices(),
        _driver(),
        _libraries(),
        _cuda(),
        _pillow(),
        _jpeg(),
        _damage(),
        _decoding(),
        _films(),
    ]


def _versions() -> Finding:
    versions = {"tl": __version__, "python": platform.python_version(), "numpy": np.__version__}
    detail = f"{__version__}, Python {versions['python']}, numpy {versions['numpy']} on {platform.platform()}"
    return Finding("tl", None, detail, {**versions, "platform": platform.platform()})


def _cores() -> Finding:
    cores = count_cores()
    says = [f"{cores.usable} usable: this process may run on {cores.affinity} of {cores.machine}"]
    says += [f"its cgroup quota is {cores.quota:g} cores"] if cores.quota is not None else ["no cgroup quota"]
    if cores.slurm is not None:
        says.append(f"SLURM_CPUS_PER_TASK is {cores.slurm}")
        if cores.slurm < cores.usable:
            says.append(f"which is not enforced: set threads to {cores.slurm} to respect it")
    facts = {"usable": cores.usable, "affinity": cores.affinity, "machine": cores.machine}
    return Finding("cores", None, ", ".join(says), {**facts, "cgroup_quota": cores.quota, "slurm": cores.slurm})


def _wheels() -> Finding:
    wheels = installed_wheels()
    shown = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if len(wheels) == 1:
        return Finding("onnxruntime", True, shown, wheels)
    if not wheels:
        cure = "pip install 'tl-toolkit[cpu]', or [gpu] for CUDA"
        return Finding("onnxruntime", False, f"not installed: {cure}")
    cure = f"pip uninstall -y {' '.join(wheels)}, then pip install 'tl-toolkit[gpu]' or [cpu]"
    return Finding("onnxruntime", False, f"{shown}: CUDA does not work if both are installed: {cure}", wheels)


def _providers() -> Finding:
    try:
        offered = offered_providers()
    except TlError as error:
        return Finding("providers", False, str(error))
    used = [provider.provider for provider in PROVIDERS]
    shown = ", ".join(name if name in used else f"{name} (not used by tl)" for name in offered)
    return Finding("providers", None, f"built in: {shown}", {"offered": offered})


def _openvino() -> Finding:
    """Check OpenVINO as a session; a missing one is plain information, since it is an extra."""
    version = openvino_version()
    if version is None:
        return Finding("openvino", None, "not installed; for device openvino: pip install 'tl-toolkit[openvino]'")
    found = _session("openvino")
    if not found.ok:
        return replace(found, name="openvino")
    bf16 = has_bf16()
    says = "has bf16" if bf16 else "has no bf16, so it computes in fp32 only"
    facts = {"version": version, "bf16": bf16, **found.facts}
    return Finding("openvino", True, f"{version}: {found.detail}; this processor {says}", facts)


def _other_devices() -> list[Finding]:
    """Say for the devices that no test has run on what is missing to use each on this system."""
    findings = []
    for provider in PROVIDERS:
        if provider.is_proven or not sys.platform.startswith(provider.platforms):
            continue
        try:
            fault = device_fault(provider.device)
        except TlError as error:
            fault = str(error)
        detail = "can be tried" if fault is None else f"not usable: {fault}"
        facts = {"usable": fault is None, "proven": False}
        findings.append(Finding(provider.device, None, f"{detail} (not proven by a test)", facts))
    return findings


def _session(device: str) -> Finding:
    """Check that a tiny network runs on a device and gives the right result."""

    def run() -> tuple[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.onnx"
            path.write_bytes(base64.b64decode(_TINY_MODEL))
            session = Session(path, device=device, threads=1, require_contract=False)
            (result,) = session.run(np.full((1, 4, 4, 3), (10, 20, 30), np.uint8), ["result"])
        answer = float(result.item())
        if not math.isclose(answer, 280, rel_tol=1e-5):  # 2 (10 + 2 * 20 + 3 * 30)
            raise DeviceError(
                f"{session.provider} computes a wrong result for a tiny network: {answer:g} instead of 280"
            )
        return f"a tiny network runs on {session.provider}", {"provider": session.provider}

    return _attempt(f"session {device}", run)


def _driver() -> Finding:
    fault, cards = driver_fault(), graphics_cards()
    if fault is not None:
        return Finding("driver", False if _cuda_is_wanted() else None, fault)
    version, newest = driver_version(), driver_cuda()
    says = [f"NVIDIA {version or 'of unknown version'}"]
    says += [f"supports CUDA up to {newest[0]}.{newest[1]}"] if newest else []
    facts = {"version": version, "cuda": list(newest) if newest else None, "graphics_cards": cards}
    return Finding("driver", None, ", ".join([*says, *cards]), facts)


def _libraries() -> Finding:
    """Report which libraries are found. The CPU wheel needs none of them, so for it this is plain information."""
    try:
        version = cuda_version()
        preload_cuda()
    except TlError as error:
        return Finding("libraries", False, str(error))
    found = {major: find_libraries(major) for major in ([version] if version else CUDA_LIBRARIES)}
    says = [f"CUDA {major.split('.')[0]}: {_there_or_missing(there)}" for major, there in found.items()]
    facts = {name: is_there for there in found.values() for name, is_there in there.items()}
    if not version:
        return Finding("libraries", None, f"not required by the CPU wheel; {'; '.join(says)}", facts)
    if all(facts.values()):
        return Finding("libraries", True, "; ".join(says), facts)
    return Finding("libraries", False, f"{'; '.join(says)}; to install them: pip install 'tl-toolkit[gpu]'", facts)


def _there_or_missing(libraries: dict[str, bool]) -> str:
    groups = {"found": [name for name, there in libraries.items() if there]}
    groups["missing"] = [name for name, there in libraries.items() if not there]
    return ", ".join(f"{word} {' '.join(names)}" for word, names in groups.items() if names) or "unknown version"


def _cuda() -> Finding:
    try:
        fault = cuda_fault()
    except TlError as error:
        return Finding("cuda", False, str(error))
    if fault is None:
        return _session("cuda")
    # Without a GPU wheel, CUDA was not requested: report this as information, not as a fault.
    return Finding("cuda", False if _cuda_is_wanted() else None, f"not usable: {fault}")


def _cuda_is_wanted() -> bool:
    return GPU_WHEEL in installed_wheels()


def _pillow() -> Finding:
    from PIL import features

    lacking = [name for name in ("jpg", "zlib", "libtiff", "webp", "jpg_2000", "avif") if not features.check(name)]
    version = metadata.version("pillow")
    if lacking:
        return Finding("pillow", False, f"{version} lacks {', '.join(lacking)}: pip install --upgrade pillow")
    return Finding("pillow", True, f"{version} with JPEG, PNG, TIFF, WebP, JPEG 2000, AVIF", {"version": version})


def _jpeg() -> Finding:
    def decode() -> tuple[str, dict[str, Any]]:
        version = metadata.version("simplejpeg")
        data = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
        height, width, _ = simplejpeg.decode_jpeg(data, strict=True).shape
        return f"{version} decodes {width}x{height} and rejects damaged files", {"version": version}

    return _attempt("simplejpeg", decode)


def _damage() -> Finding:
    """Check that the decoders refuse damaged PNG and JPEG files, and say which formats have no checksum."""

    def refuse() -> tuple[str, dict[str, Any]]:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        png, jpeg = buffer.getvalue(), simplejpeg.encode_jpeg(pixels)
        damaged = {"PNG": bytearray(png), "JPEG": bytearray(jpeg)}
        damaged["PNG"][len(png) // 2] ^= 1
        damaged["JPEG"][len(jpeg) // 2 : len(jpeg) // 2 + 256] = bytes(256)
        for name, data in damaged.items():
            try:
                decode_image(bytes(data), build_preprocessing((8, 8)))
            except ImageReadError:
                continue
            raise DeviceError(
                f"a damaged {name} file is read as if it were sound: pip install --upgrade pillow simplejpeg"
            )
        unchecked = ", ".join(UNCHECKED_FORMATS)
        detail = "found in PNG by checksums, in JPEG if data are missing, zeroed or invalid; not always in"
        return f"{detail} {unchecked}", {"checksums": ["PNG"], "unchecked": list(UNCHECKED_FORMATS)}

    return _attempt("damage", refuse)


def _decoding() -> Finding:
    """Measure how fast one core turns a phone photo into a network input: the best of three runs."""

    def measure() -> tuple[str, dict[str, Any]]:
        photo, preprocessing = sample_jpeg(), build_preprocessing((_DECODED_SIDE, _DECODED_SIDE))
        seconds = min(_seconds(lambda: load_input(photo, preprocessing)) for _ in range(3))
        width, height = PHONE_WH
        size = f"{width}x{height} JPEG ({width * height / 1e6:.0f} megapixels, {len(photo) / 1e6:.1f} MB)"
        detail = f"{size} to {_DECODED_SIDE} px: {1 / seconds:.0f} images/s on one core"
        facts = {"width": width, "height": height, "bytes": len(photo), "images_per_s": round(1 / seconds, 1)}
        return detail, facts

    return _attempt("decoding", measure)


def _films() -> Finding:
    found = shutil.which("ffmpeg")
    detail = f"read by {found}" if found else "not read, because the program ffmpeg is not installed"
    return Finding("films", None, detail, {"ffmpeg": found})


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _attempt(name: str, work: Callable[[], tuple[str, dict[str, Any]]]) -> Finding:
    try:
        return Finding(name, True, *work())
    except (TlError, ImportError, OSError) as error:
        return Finding(name, False, f"{error} (Python: {sys.executable})")
