"""An onnxruntime session: open a model file on a device, read its contract, run uint8 batches.

The only module that imports onnxruntime. Handles tensors and metadata only, not images, votes or results.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import DeviceError, MissingExtraError, ModelFileError, first_line
from tl.runtime.devices import (
    GPU_WHEEL,
    driver_age_fault,
    driver_fault,
    installed_wheels,
    library_fault,
    parse_device,
    usable_cores,
    wheel_fault,
)
from tl.runtime.model_file.contract import METADATA_KEY, OLD_OUTPUTS, Contract, parse_contract
from tl.runtime.model_file.safety import check_model_file

INPUT_NAME = "images"
# Probabilities in half precision may exceed 1 by this much.
_ROUNDING = 1e-2
# Sums of probabilities in half precision or int8 are rounded more.
_SUM_TOLERANCE = 0.02
_FATAL_ONLY = 4


class Session:
    """A model file ready to run. Thread-safe: onnxruntime allows concurrent `run` calls.

    `device`: "cpu", "cuda", "cuda:1", or "auto" (CUDA where it works). `threads`: CPU threads for inference, None for
    all usable cores. `provider`: the execution provider in use. `fault`: why "auto" did not use an installed CUDA.
    `contract`: None for a file without one, if `require_contract` is False.
    Raises `ModelFileError` for a file that is not a `tl` model file, `DeviceError` if the device cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        require_contract: bool = True,
    ) -> None:
        self.path = os.fspath(path)
        self._session: Any = None
        self._running: set[Any] = set()
        self._pid = os.getpid()
        text = check_model_file(self.path).contract_text
        self._session, self.fault = _open(self.path, device, threads)
        self.provider = self._session.get_providers()[0]
        # Graphs made before schema 3 of the contract use another name for one output.
        graph_outputs = [output.name for output in self._session.get_outputs()]
        self._graph_names = {OLD_OUTPUTS.get(name, name): name for name in graph_outputs}
        self.outputs = tuple(self._graph_names)
        if self._read_metadata() != text:
            raise ModelFileError(f"{self.path}: the file changed while it was being opened: try again")
        if text is None and require_contract:
            raise ModelFileError(
                f"{self.path}: not a tl model file (it contains no {METADATA_KEY!r}); create one with tl export"
            )
        self.contract: Contract | None = None if text is None else parse_contract(text, self.path)
        if self.contract is not None:
            self._check_graph(self.contract)

    @property
    def takes_any_size(self) -> bool:
        """Whether the graph resizes images itself, so that a batch must be of one size."""
        return self.contract is not None and self.contract.preprocessing.any_size

    def run(
        self, images: NDArray[np.uint8], outputs: Sequence[str], *, max_seconds: float | None = None
    ) -> list[NDArray[np.float32]]:
        """Run a batch and return the named outputs in order.

        `images`: uint8 (N, H, W, 3) RGB of the input size, or of any one size if the graph takes it.

        `max_seconds`: ends the run at the next operator after this time. Raises `DeviceError`, and `ModelFileError` for
        outputs that cannot be right, whatever the contract says, and for a run that was ended.
        """
        names = [self._graph_names.get(name, name) for name in outputs]
        try:
            with self._endable(max_seconds) as options:
                results: list[NDArray[np.float32]] = self._session.run(names, {INPUT_NAME: images}, options)
        except Exception as error:  # onnxruntime's exception types share no base class but Exception
            if options.terminate:
                reason = "was interrupted" if max_seconds is None else f"did not finish within {max_seconds:.3g} s"
                raise ModelFileError(f"{self.path}: {reason}") from error
            if type(error).__module__.startswith("onnxruntime"):
                raise DeviceError(f"{self.path}: onnxruntime failed on {self.provider}: {first_line(error)}") from error
            raise
        declared = () if self.contract is None else self.contract.outputs
        for name, values in zip(outputs, results, strict=True):
            if name in declared:
                self._check_output(name, values, len(images))
        return results

    def end_runs(self) -> None:
        """End the runs that are in progress, in any thread, at their next operator."""
        for options in tuple(self._running):
            options.terminate = True

    @contextmanager
    def _endable(self, max_seconds: float | None) -> Iterator[Any]:
        """Yield the options of one run, which ends after `max_seconds`. Source: onnxruntime's RunOptions.terminate."""
        options = _onnxruntime().RunOptions()
        options.log_severity_level = _FATAL_ONLY
        timer = None if max_seconds is None else Timer(max_seconds, setattr, (options, "terminate", True))
        if timer is not None:
            timer.daemon = True
            timer.start()
        self._running.add(options)
        try:
            yield options
        finally:
            self._running.discard(options)
            if timer is not None:
                timer.cancel()

    def _check_output(self, name: str, values: NDArray[np.float32], count: int) -> None:
        if values.shape[:1] != (count,):
            found = f"{values.shape[0]} rows" if values.ndim else "a single value"
            raise ModelFileError(f"{self.path}: output {name} has {found} for {count} images: it cannot be assigned")
        if name not in ("probabilities", "ood_score") or not values.size:
            return
        if name == "ood_score" and not np.isfinite(values).all():
            raise ModelFileError(f"{self.path}: output ood_score has values that are not finite: the file is damaged")
        if name == "ood_score":
            return
        low, high = float(values.min()), float(values.max())  # NaN, which callers refuse, is neither below nor above
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise ModelFileError(
                f"{self.path}: output probabilities has values from {low:.3g} to {high:.3g}: these are no probabilities"
            )
        if self.contract is not None and self.contract.multilabel is not None:  # each label by itself
            return
        sums = values.sum(axis=1, dtype=np.float64) if values.ndim == 2 else np.ones(1)
        if np.isfinite(sums).all() and np.abs(sums - 1).max() > _SUM_TOLERANCE:
            raise ModelFileError(
                f"{self.path}: the probabilities of an image sum to {sums[np.abs(sums - 1).argmax()]:.3g}, not to 1"
            )

    def _read_metadata(self) -> str | None:
        try:
            text: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{self.path}: its metadata is damaged ({error})") from error
        return text

    def __del__(self) -> None:
        # In a forked process, onnxruntime would join threads that exist only in the parent, and crash. So never free
        # the copy.
        # Source: onnxruntime pull request 31961.
        if getattr(self, "_pid", None) not in (None, os.getpid()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))

    def _check_graph(self, contract: Contract) -> None:
        wanted = (INPUT_NAME, "tensor(uint8)", (None, *contract.preprocessing.graph_shape))
        inputs = [_signature(value) for value in self._session.get_inputs()]
        if inputs != [wanted]:
            raise ModelFileError(f"{self.path}: expected one input {INPUT_NAME} uint8 {[*wanted[2]]}, found {inputs}")
        shapes = {value.name: _signature(value)[2] for value in self._session.get_outputs()}
        names = contract.names
        sizes = shapes.get(contract.main_output, ())[1:]
        wanted_sizes = (len(names), 2) if contract.task == "landmarks" else (len(names),)
        if len(sizes) != len(wanted_sizes) or any(s not in (w, None) for s, w in zip(sizes, wanted_sizes, strict=True)):
            raise ModelFileError(
                f"{self.path}: {len(names)} names in the contract, but output "
                f"{contract.main_output} has shape {[*sizes]} per image"
            )
        if missing := set(contract.outputs) - set(self.outputs):
            raise ModelFileError(
                f"{self.path}: the contract declares outputs that the graph does not have: {sorted(missing)}"
            )


def cuda_fault() -> str | None:
    """Return why onnxruntime cannot use CUDA here, or None if no obstacle is found."""
    if fault := wheel_fault():
        return fault
    if "CUDAExecutionProvider" not in _onnxruntime().get_available_providers():
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


def _onnxruntime() -> Any:
    """Import onnxruntime on first use: it is an optional extra, and `tl doctor` must run without it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime cannot be imported ({error}): pip install 'tl-toolkit[cpu]', or [gpu] for CUDA"
        ) from error
    return onnxruntime


def _signature(value: Any) -> tuple[str, str, tuple[int | None, ...]]:
    """Return the name, type and shape of a graph input or output; None for dynamic sizes."""
    return value.name, value.type, tuple(size if isinstance(size, int) else None for size in value.shape)


def _open(path: str, device: str, threads: int | None) -> tuple[Any, str | None]:
    """Return the session and, for "auto", why it does not use CUDA although onnxruntime-gpu is installed."""
    kind, index = parse_device(device)
    ort = _onnxruntime()
    fault = None
    if kind != "cpu":
        fault = cuda_fault()
        if fault is None:
            try:
                return _create(ort, path, threads, [_cuda_provider(index), "CPUExecutionProvider"]), None
            except Exception as error:  # no shared base class; RuntimeError for a provider that cannot start
                fault = f"onnxruntime could not start on this device: {first_line(error)}"
        if kind == "cuda":
            raise DeviceError(f"device {device!r} cannot be used: {fault}")
    try:
        return _create(ort, path, threads, ["CPUExecutionProvider"]), fault if GPU_WHEEL in installed_wheels() else None
    except Exception as error:
        reason = first_line(error)
        is_newer = "Unsupported model IR version" in reason or "Opset" in reason
        cure = f": it is newer than onnxruntime {ort.__version__}; upgrade onnxruntime" if is_newer else ""
        raise ModelFileError(f"{path}: onnxruntime cannot load it: {reason}{cure}") from error


def _cuda_provider(index: int) -> tuple[str, dict[str, str]]:
    # Disable TF32, so that CUDA computes in the same fp32 that the export was checked with.
    return "CUDAExecutionProvider", {"device_id": str(index), "use_tf32": "0"}


def _create(ort: Any, path: str, threads: int | None, providers: list[str | tuple[str, dict[str, str]]]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY  # faults are raised as exceptions; a library does not print
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format is not checked
    # onnxruntime's own fallback prints to stdout and continues on the CPU, both in the constructor and in `run`.
    session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
    session.disable_fallback()
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"it loaded {session.get_providers()[0]} instead of {wanted}")
    return session


def preload_cuda() -> None:
    """Load CUDA libraries installed as Python wheels, which the dynamic linker does not find by itself."""
    preload = getattr(_onnxruntime(), "preload_dlls", None)
    if preload is not None:  # onnxruntime 1.21 and later
        with redirect_stdout(StringIO()):  # it prints missing libraries to stdout; `library_fault` reports them
            preload()
