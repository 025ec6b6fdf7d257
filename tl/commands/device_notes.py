"""Say on stderr where models run, if that is not what a user would take for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tl.commands.console import warn

if TYPE_CHECKING:
    from tl.runtime.predictor import Predictor


def say_device(predictor: Predictor[Any], asked: str) -> None:
    """Say what device auto has chosen, if a user of this machine might expect the other one: CUDA, or no CUDA.

    A precision other than that of the file is always said.
    """
    from tl.runtime.devices import has_nvidia_gpu, wheel_fault
    from tl.runtime.providers import device_name, runs_on_cpu

    _say_bf16(predictor, asked)
    if asked != "auto":  # another device than the one asked for is an error
        return
    if not runs_on_cpu(predictor.provider):
        warn(f"running on {device_name(predictor.provider)}")
    elif has_nvidia_gpu():
        fault = predictor.fault or wheel_fault() or "CUDA could not be used"
        warn(f"running on the CPU, although this machine has an NVIDIA GPU: {fault}")


def _say_bf16(predictor: Predictor[Any], asked: str) -> None:
    """Say which model files OpenVINO computes in bf16, and which it could not."""
    if asked != "openvino":
        return
    for session in predictor.ensemble.sessions:
        found = session.contract and session.contract.quantization
        if session.precision == "bf16" and found:
            basis = f"labels agreed with fp32 on {found.top1_agreement:.1%} of {found.images} validation images"
            warn(f"{session.path}: running on OpenVINO in bf16: {basis}")
        elif session.contract and session.contract.precision == "bf16":
            warn(f"{session.path}: running on OpenVINO in fp32, because this processor has no bf16")
