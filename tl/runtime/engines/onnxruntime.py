"""Model files in onnxruntime: the CPU, CUDA, and its other providers. The only module that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import DeviceError, MissingExtraError, ModelFileError, first_line
from tl.runtime.devices import (
    driver_age_fault,
    driver_fault,
    installed_wheels,
    library_fault,
    usable_cores,
    wheel_fault,
)
from tl.runtime.engines.engine import INPUT_NAME, RunEndedError, RunFailedError, Signature, ending_after
from tl.runtime.providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    GPU_WHEEL,
    by_device,
    by_provider,
    parse_device,
    provider_fault,
)

_FATAL_ONLY = 4


class OnnxRuntime:
    """An `Engine`. onnxruntime allows concurrent runs; DirectML does not, so there they wait for each other."""

    name = "onnxruntime"
    is_bf16 = False

    def __init__(self, session: Any) -> None:
        self._session = session
        self._running: set[Any] = set()
        self.provider: str = session.get_providers()[0]
        self.inputs = tuple(_signature(value) for value in session.get_inputs())
        self.outputs = tuple(_signature(value) for value in session.get_outputs())
        self._turn = Lock() if by_provider(self.provider).one_run_at_a_time else nullcontext()

    def read_metadata(self, key: str) -> str | None:
        """As `Engine.read_metadata`."""
        text: str | None = self._session.get_modelmeta().custom_metadata_map.get(key)
        return text

    def run(
        self, names: Sequence[str], images: NDArray[np.uint8], max_seconds: float | None
    ) -> list[NDArray[np.float32]]:
        """As `Engine.run`."""
        options = _onnxruntime().RunOptions()
        options.log_severity_level = _FATAL_ONLY
        self._running.add(options)

        def end() -> None:  # source: onnxruntime's RunOptions.terminate
            options.terminate = True

        try:
            with self._turn, ending_after(max_seconds, end):
                results: list[NDArray[np.float32]] = self._session.run(list(names), {INPUT_NAME: images}, options)
        except Exception as error:  # onnxruntime's exception types share no base class but Exception
            if options.terminate:
                raise RunEndedError from error
            if type(error).__module__.startswith("onnxruntime"):
                raise RunFailedError(first_line(error)) from error
            raise
        finally:
            self._running.discard(options)
        return results

    def end_runs(self) -> None:
        """As `Engine.end_runs`."""
        for options in tuple(self._running):
            options.terminate = True


def open_onnxruntime(path: str, device: str, threads: int | None) -> tuple[OnnxRuntime, str | None]:
    """Open a file on a device of onnxruntime. `threads`: CPU threads for one run, None for all cores.

    Returns the engine and, for "auto", why it does not use CUDA although onnxruntime-gpu is installed. Raises
    `DeviceError`, and `ModelFileError` if onnxruntime cannot load the file.
    """
    kind, index = parse_device(device)
    ort = _onnxruntime()
    fault = None
    if kind != "cpu":
        wanted = by_device("cuda" if kind == "auto" else kind)
        fault = device_fault(wanted.device)
        if fault is None:
            try:
                chain = wanted.chain(index, ort.get_available_providers())
                return OnnxRuntime(_create(ort, path, threads, chain)), None
            except Exception as error:  # no shared base class; RuntimeError for a provider that cannot start
                fault = f"onnxruntime could not start on this device: {first_line(error)}"
        if kind != "auto":
            raise DeviceError(f"device {device!r} cannot be used: {fault}")
    try:
        session = _create(ort, path, threads, [CPU_PROVIDER])
    except Exception as error:
        reason = first_line(error)
        is_newer = "Unsupported model IR version" in reason or "Opset" in reason
        cure = f": it is newer than onnxruntime {ort.__version__}; upgrade onnxruntime" if is_newer else ""
        raise ModelFileError(f"{path}: onnxruntime cannot load it: {reason}{cure}") from error
    return OnnxRuntime(session), fault if GPU_WHEEL in installed_wheels() else None


def device_fault(kind: str) -> str | None:
    """Return why onnxruntime cannot use a device here, or None if no obstacle is found."""
    if kind == "cpu":
        return None
    if kind == "cuda":
        return cuda_fault()
    fault = provider_fault(kind, offered_providers(), installed_wheels())
    return cuda_fault() if fault is None and kind == "tensorrt" else fault


def cuda_fault() -> str | None:
    """Return why onnxruntime cannot use CUDA here, or None if no obstacle is found."""
    if fault := wheel_fault():
        return fault
    if CUDA_PROVIDER not in _onnxruntime().get_available_providers():
        return "this onnxruntime was built without CUDA: pip install 'tl-toolkit[gpu]' (do not install both wheels)"
    if fault := driver_fault() or driver_age_fault(cuda_version()):
        return fault
    preload_cuda()
    return library_fault(cuda_version())


def offered_providers() -> list[str]:
    """Return the providers that the installed onnxruntime was built with, best first. They may not work here."""
    return list(_onnxruntime().get_available_providers())


def cuda_version() -> str:
    """Return the CUDA version that the installed onnxruntime was built for, "" for a CPU build."""
    return str(getattr(_onnxruntime(), "cuda_version", "") or "")


def preload_cuda() -> None:
    """Load CUDA libraries installed as Python wheels, which the dynamic linker does not find by itself."""
    preload = getattr(_onnxruntime(), "preload_dlls", None)
    if preload is not None:  # onnxruntime 1.21 and later
        with redirect_stdout(StringIO()):  # it prints missing libraries to stdout; `library_fault` reports them
            preload()


def _onnxruntime() -> Any:
    """Import onnxruntime on first use: it is an optional extra, and `tl doctor` must run without it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime cannot be imported ({error}): pip install 'tl-toolkit[cpu]', or [gpu] for CUDA"
        ) from error
    return onnxruntime


def _signature(value: Any) -> Signature:
    return value.name, value.type, tuple(size if isinstance(size, int) else None for size in value.shape)


def _create(ort: Any, path: str, threads: int | None, providers: list[str | tuple[str, dict[str, str]]]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY  # faults are raised as exceptions; a library does not print
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format is not checked
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if by_provider(wanted).one_run_at_a_time:
        # Source: onnxruntime.ai/docs/execution-providers/DirectML-ExecutionProvider.html, "Configuration options".
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # onnxruntime's own fallback prints to stdout and continues on the CPU, both in the constructor and in `run`.
    session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
    session.disable_fallback()
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"it loaded {session.get_providers()[0]} instead of {wanted}")
    return session
