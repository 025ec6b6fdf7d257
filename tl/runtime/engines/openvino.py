"""Model files in OpenVINO's own runtime, on the CPU. The only module that imports openvino.

Computes in fp32 unless bf16 is asked for: OpenVINO's default is bf16 wherever the processor has it, and says nothing.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import DeviceError, MissingExtraError, TlError, first_line
from tl.runtime.devices import usable_cores
from tl.runtime.engines.engine import INPUT_NAME, RunEndedError, RunFailedError, Signature, ending_after
from tl.runtime.providers import OPENVINO

_DEVICE = "CPU"
# Sections of the metadata of a model that OpenVINO read from ONNX.
_METADATA = "framework"
_TYPES = {"u8": "uint8", "f32": "float", "f16": "float16", "i64": "int64", "i32": "int32", "boolean": "bool"}
_UNKNOWN_OPERATORS = re.compile(r"(?:No conversion rule found for operations|Conversion is failed for): (.+)")
# How OpenVINO reads Loop and Scan. Measured: `InferRequest.cancel` does not end an endless Loop.
_LOOPS = frozenset(("Loop", "TensorIterator"))
_PLACES = re.compile(r"Exception from |Check '.*' failed at |FrontEnd API")
_TELEMETRY = "openvino_telemetry"


class OpenVino:
    """An `Engine`. Concurrent runs use a request each, from a pool.

    `threads`: CPU threads for one run, None for all cores. With 1, as many runs as there are cores compute at the same
    time, each on its own core. `bf16`: compute in bf16, if this processor can; else in fp32.
    Raises `DeviceError` for a file with operators that OpenVINO does not have, `MissingExtraError`.
    """

    name = "openvino"
    provider = OPENVINO

    def __init__(self, path: str, threads: int | None, *, bf16: bool) -> None:
        ov, self._core = import_openvino(), _core()
        self._ov = ov
        self.is_bf16 = bf16 and has_bf16()
        cores = usable_cores()
        self._config = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.is_bf16 else "f32",
            "NUM_STREAMS": cores if threads == 1 else 1,
            "INFERENCE_NUM_THREADS": cores if threads == 1 else threads or cores,
        }
        self._lock = Lock()
        self._running: set[_Run] = set()
        self._compiled: dict[bool, _Pool] = {}
        try:
            self._model = self._core.read_model(path)
            self.inputs = tuple(_signature(port) for port in self._model.inputs)
            self.outputs = tuple(_signature(port) for port in self._model.outputs)
            self._check_loops(path)
            self._order = {name: i for i, port in enumerate(self._model.outputs) for name in port.get_names()}
            self._pool(1)
        except RuntimeError as error:
            raise DeviceError(f"{path}: {_load_fault(error)}: use device cpu") from error

    def _check_loops(self, path: str) -> None:
        """Raise `DeviceError` for loops, which OpenVINO does not end when asked to."""
        found = {op.get_type_name() for op in self._model.get_ops()} & _LOOPS
        if found:
            names = ", ".join(sorted(found))
            raise DeviceError(f"{path}: OpenVINO cannot end the operators {names} of an endless model: use device cpu")

    def read_metadata(self, key: str) -> str | None:
        """As `Engine.read_metadata`."""
        try:
            return str(self._model.get_rt_info([_METADATA, key]).astype(str))
        except RuntimeError:  # there is no such key
            return None

    def run(
        self, names: Sequence[str], images: NDArray[np.uint8], max_seconds: float | None
    ) -> list[NDArray[np.float32]]:
        """As `Engine.run`."""
        # The request reads the array's own memory, which therefore must be in one piece, and not only for reading.
        batch = np.require(images, np.uint8, ("C", "W"))
        try:
            pool = self._pool(len(batch))
            run = _Run(pool.take())
        except RuntimeError as error:
            raise RunFailedError(_reason(error)) from error
        self._running.add(run)
        try:
            run.request.set_tensor(INPUT_NAME, self._ov.Tensor(batch, shared_memory=True))
            with ending_after(max_seconds, run.end):
                run.request.infer()
            return [run.request.get_output_tensor(self._order[name]).data.copy() for name in names]
        except RuntimeError as error:
            if run.was_ended:
                raise RunEndedError from error
            raise RunFailedError(_reason(error)) from error
        finally:
            self._running.discard(run)
            pool.put(run.request)

    def end_runs(self) -> None:
        """As `Engine.end_runs`."""
        for run in tuple(self._running):
            run.end()

    def _pool(self, count: int) -> _Pool:
        """Return the requests for batches of `count`. Single images have a network of their own, which is faster."""
        with self._lock:
            pool = self._compiled.get(count == 1)
            if pool is None:
                model = self._fixed_to_one() if count == 1 else self._model
                pool = _Pool(self._core.compile_model(model, _DEVICE, self._config))
                self._compiled[count == 1] = pool
            return pool

    def _fixed_to_one(self) -> Any:
        if len(self._model.inputs) != 1 or not self._model.inputs[0].partial_shape.rank.is_static:
            return self._model  # no model of ours: `Session` refuses it
        copy = self._model.clone()
        shape = copy.inputs[0].partial_shape
        shape[0] = 1
        try:
            copy.reshape(shape)
        except RuntimeError:  # a graph with another fixed batch
            return self._model
        return copy


class _Run:
    """A run in progress, which another thread may end."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.was_ended = False

    def end(self) -> None:
        """End it, as far as OpenVINO looks: between operators."""
        self.was_ended = True
        self.request.cancel()


class _Pool:
    """Requests of one compiled network: as many as runs have been in progress at the same time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: list[Any] = []

    def take(self) -> Any:
        """Return a request that no other run uses."""
        try:
            return self._idle.pop()  # list operations are atomic
        except IndexError:
            return self._compiled.create_infer_request()

    def put(self, request: Any) -> None:
        """Give a request back."""
        self._idle.append(request)


def import_openvino() -> Any:
    """Import openvino on first use, without its telemetry.

    `import openvino` would create an identifier in the home directory and report to a server. Without the package
    openvino_telemetry it uses a stub, so that package is hidden during the import.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    was_loaded = _TELEMETRY in sys.modules
    if not was_loaded:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # import statements then raise ImportError
    try:
        with warnings.catch_warnings():  # it changes the filters
            import openvino
    except ImportError as error:
        raise MissingExtraError(f"openvino cannot be imported ({error}): pip install 'tl-toolkit[openvino]'") from error
    finally:
        if not was_loaded:
            del sys.modules[_TELEMETRY]
    return openvino


@cache
def _core() -> Any:
    """Return the one `openvino.Core`, which lives as long as the process.

    OpenVINO's CPU plugin gives the thread that loads it an alternative signal stack, and frees that memory when the
    last core is gone. If another thread drops it, the next handled signal, such as SIGCHLD, ends the process. Source:
    sigaltstack(2); measured with openvino 2026.4.
    """
    return import_openvino().Core()


def openvino_fault() -> str | None:
    """Return why OpenVINO cannot be used here, or None."""
    try:
        return None if _DEVICE in _core().available_devices else "OpenVINO finds no CPU that it supports"
    except (TlError, RuntimeError) as error:
        return first_line(error)


def has_bf16() -> bool:
    """Return whether OpenVINO can compute in bf16 on this processor."""
    return "BF16" in _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


def openvino_version() -> str | None:
    """Return the version of the installed openvino, None without one. Does not import it."""
    from importlib import metadata

    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


def _signature(port: Any) -> Signature:
    shape = port.partial_shape
    sizes = tuple(size.get_length() if size.is_static else None for size in shape) if shape.rank.is_static else ()
    kind = port.element_type.get_type_name()
    return min(port.get_names(), default=""), f"tensor({_TYPES.get(kind, kind)})", sizes


def _load_fault(error: RuntimeError) -> str:
    found = _UNKNOWN_OPERATORS.search(str(error))
    if found is None:
        return f"OpenVINO cannot load it: {_reason(error)}"
    operators = [name.strip().rpartition("-")[0] or name.strip() for name in found[1].split(",")]
    return f"OpenVINO cannot run the operators {', '.join(operators)}"


def _reason(error: RuntimeError) -> str:
    """Return the line of OpenVINO's message that says most: not those that say where in its source it was raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not _PLACES.match(line)]
    return (kept or [first_line(error)])[0]
