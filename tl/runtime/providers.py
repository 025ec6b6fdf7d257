"""The devices that model files run on: name, onnxruntime provider, wheel, and the options that keep fp32 exact.

One table for `--device`, errors, `tl doctor` and `tl bench`. Imports no engine; the engines are in `engines`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tl.errors import DeviceError

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
# What `Session.provider` is for OpenVINO's own runtime. onnxruntime's OpenVINOExecutionProvider is not used: its wheel
# is older and overwrites onnxruntime.
OPENVINO = "OpenVINO"
CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"


@dataclass(frozen=True)
class Provider:
    """One kind of device.

    `device`: its name for `--device`. `provider`: onnxruntime's class name, or `OPENVINO`. `shown`: its name in
    messages. `wheel`: the distribution that contains it; `install`: how to install it. `platforms`: prefixes of
    `sys.platform`. `options`: provider options, among them those that keep fp32 exact; `index_option`: the one that
    takes N of `device:N`, or "". `then`: providers that take the operators which this one lacks, before the CPU.
    `environment`: variables that would override the options, so that they are refused. `one_run_at_a_time`: whether its
    sessions do not allow concurrent runs. `is_proven`: whether a test of this project has run on it.
    """

    device: str
    provider: str
    shown: str
    wheel: str
    install: str
    platforms: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    index_option: str = ""
    then: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    one_run_at_a_time: bool = False
    is_proven: bool = False

    def chain(self, index: int, offered: Sequence[str]) -> list[str | tuple[str, dict[str, str]]]:
        """Return onnxruntime's list of providers with options, for device number `index`."""
        own = {**self.options, **({self.index_option: str(index)} if self.index_option else {})}
        after = [
            (name, {**by_provider(name).options, "device_id": str(index)}) for name in self.then if name in offered
        ]
        return [(self.provider, own), *after, CPU_PROVIDER]


_ANY = ("linux", "win32", "darwin")
_MIGRAPHX_VARIABLES = tuple(f"ORT_MIGRAPHX_{name}_ENABLE" for name in ("FP16", "BF16", "FP8", "INT8"))

# Sources: onnxruntime.ai/docs/execution-providers, the page of each provider; the package index for the wheels.
# CUDA: use_tf32=0, so that it computes in the same fp32 that the export was checked with.
# TensorRT: has no such option; it may use TF32 where the NVIDIA_TF32_OVERRIDE=0 of the environment does not forbid it.
# Core ML: only ML programs have typed fp32; the Neural Engine computes in fp16, so it is left out.
# DirectML: no memory patterns, and no concurrent runs of a session; see `engines.onnxruntime`.
# ROCm: onnxruntime 1.23 removed its provider in favor of MIGraphX, whose environment variables override its options.
PROVIDERS = (
    Provider("cpu", CPU_PROVIDER, "the CPU", CPU_WHEEL, "pip install 'tl-toolkit[cpu]'", _ANY, is_proven=True),
    Provider(
        "cuda",
        CUDA_PROVIDER,
        "CUDA",
        GPU_WHEEL,
        "pip install 'tl-toolkit[gpu]'",
        ("linux", "win32"),
        options={"use_tf32": "0"},
        index_option="device_id",
        is_proven=True,
    ),
    Provider("openvino", OPENVINO, "OpenVINO", "openvino", "pip install 'tl-toolkit[openvino]'", _ANY, is_proven=True),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        "TensorRT",
        GPU_WHEEL,
        "pip install 'tl-toolkit[gpu]' tensorrt",
        ("linux", "win32"),
        options={"trt_fp16_enable": "0", "trt_int8_enable": "0"},
        index_option="device_id",
        then=(CUDA_PROVIDER,),
    ),
    Provider(
        "coreml",
        "CoreMLExecutionProvider",
        "Core ML",
        CPU_WHEEL,
        "pip install 'tl-toolkit[cpu]'",
        ("darwin",),
        options={
            "ModelFormat": "MLProgram",
            "MLComputeUnits": "CPUAndGPU",
            "AllowLowPrecisionAccumulationOnGPU": "0",
        },
    ),
    Provider(
        "directml",
        "DmlExecutionProvider",
        "DirectML",
        "onnxruntime-directml",
        "pip install onnxruntime-directml",
        ("win32",),
        index_option="device_id",
        one_run_at_a_time=True,
    ),
    Provider(
        "migraphx",
        "MIGraphXExecutionProvider",
        "MIGraphX",
        "onnxruntime-migraphx",
        "pip install onnxruntime-migraphx",
        ("linux",),
        options={"migraphx_fp16_enable": "0", "migraphx_int8_enable": "0"},
        index_option="device_id",
        environment=_MIGRAPHX_VARIABLES,
    ),
    Provider(
        "rocm",
        "ROCMExecutionProvider",
        "ROCm",
        "onnxruntime-rocm",
        "pip install onnxruntime-rocm (up to onnxruntime 1.22; later, use migraphx)",
        ("linux",),
        index_option="device_id",
    ),
)
_BY_DEVICE = {provider.device: provider for provider in PROVIDERS}
_BY_PROVIDER = {provider.provider: provider for provider in PROVIDERS}
# Wheels that all install the package `onnxruntime`; two of them overwrite each other.
WHEELS = tuple(dict.fromkeys(provider.wheel for provider in PROVIDERS if provider.provider != OPENVINO))


def parse_device(device: str) -> tuple[str, int]:
    """Split auto, a device of the table, or one with a number, as in cuda:1, into kind and index.

    Raises `DeviceError`.
    """
    kind, _, index = device.partition(":")
    known = _BY_DEVICE.get(kind)
    takes_index = known is not None and known.index_option
    if (kind != "auto" and known is None) or (":" in device and not (takes_index and index.isdecimal())):
        names = ", ".join(("auto", *_BY_DEVICE))
        raise DeviceError(f"unknown device {device!r}: expected {names}, or a number of one, as in cuda:1")
    return kind, int(index or 0)


def by_device(kind: str) -> Provider:
    """Return the row of a device, as from `parse_device`; not for "auto"."""
    return _BY_DEVICE[kind]


def by_provider(name: str) -> Provider:
    """Return the row of an onnxruntime provider, or of `OPENVINO`."""
    return _BY_PROVIDER[name]


def device_name(provider: str) -> str:
    """Return the name for people: `CPUExecutionProvider` -> `the CPU`."""
    return _BY_PROVIDER[provider].shown if provider in _BY_PROVIDER else provider


def runs_on_cpu(provider: str) -> bool:
    """Return whether a provider computes on the CPU cores, which then also decode, one image at a time."""
    return provider in (CPU_PROVIDER, OPENVINO)


def provider_fault(
    kind: str,
    offered: Sequence[str],
    wheels: Mapping[str, str],
    *,
    platform: str = sys.platform,
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """Return why a device of onnxruntime other than the CPU cannot be used, with the fix, or None.

    `offered`: providers of the installed onnxruntime. `wheels`: installed onnxruntime distributions, name -> version.
    CUDA has more checks, in `engines.onnxruntime.cuda_fault`.
    """
    row = by_device(kind)
    if not platform.startswith(row.platforms):
        return f"{row.shown} exists on {', '.join(row.platforms)} only, this is {platform}"
    if len(wheels) > 1:
        both = " and ".join(wheels)
        return f"{both} are installed and overwrite each other: pip uninstall -y {' '.join(wheels)}, then {row.install}"
    if not wheels:
        return f"no onnxruntime is installed: {row.install}"
    if row.wheel not in wheels:
        (other,) = wheels
        return f"the wheel {other} does not contain {row.shown}: pip uninstall -y {other}, then {row.install}"
    if row.provider not in offered:
        return f"this {row.wheel} {wheels[row.wheel]} was built without {row.provider}"
    if named := [name for name in row.environment if name in environment]:
        return f"the environment variable {named[0]} would change its precision: unset it"
    return None
