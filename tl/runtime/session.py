"""A model file, open and checked: its contract, its graph and its outputs.

Runs uint8 batches in an engine: onnxruntime or OpenVINO, which `engines` wraps. Handles tensors and metadata only, not
images, votes or results.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import DeviceError, ModelFileError
from tl.runtime.engines.engine import INPUT_NAME as INPUT_NAME
from tl.runtime.engines.engine import Engine, RunEndedError, RunFailedError
from tl.runtime.engines.onnxruntime import open_onnxruntime
from tl.runtime.engines.openvino import OpenVino
from tl.runtime.model_file.contract import METADATA_KEY, OLD_OUTPUTS, Contract, Precision, parse_contract
from tl.runtime.model_file.safety import check_model_file
from tl.runtime.providers import parse_device

# Probabilities in half precision may exceed 1 by this much.
_ROUNDING = 1e-2
# Sums of probabilities in half precision or int8 are rounded more.
_SUM_TOLERANCE = 0.02


class Session:
    """A model file ready to run. Thread-safe: engines allow concurrent `run` calls.

    `device`: "auto" (CUDA where it works, else the CPU), "cpu", "cuda", "cuda:1", "openvino", or another name of
    `providers.PROVIDERS`. `threads`: CPU threads for inference, None for all usable cores. `precision`: in which an
    fp32 graph is computed. None: fp32, or bf16 where the engine can and the contract allows it, because agreement was
    measured. `provider`: what computes. `fault`: why "auto" did not use an installed CUDA.
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
        precision: Literal["fp32", "bf16"] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._engine: Engine | None = None
        self._pid = os.getpid()
        text = check_model_file(self.path).contract_text
        contract = None if text is None else parse_contract(text, self.path)
        if contract is not None and contract.preprocessing.any_size and parse_device(device)[0] == "openvino":
            raise DeviceError(
                f"{self.path}: OpenVINO resizes images differently than the graph states: use device cpu, or the file "
                "of fixed size"
            )
        allows_bf16 = contract is not None and contract.precision == "bf16"
        bf16 = allows_bf16 if precision is None else precision == "bf16"
        self._engine, self.fault = _open(self.path, device, threads, bf16)
        self.provider = self._engine.provider
        # The precision in which the network is computed here.
        self.precision: Precision = contract.precision if contract is not None and not allows_bf16 else "fp32"
        if self._engine.is_bf16:
            self.precision = "bf16"
        # Graphs made before schema 3 of the contract use another name for one output.
        graph_outputs = [name for name, _, _ in self._engine.outputs]
        self._graph_names = {OLD_OUTPUTS.get(name, name): name for name in graph_outputs}
        self.outputs = tuple(self._graph_names)
        if self._read_metadata() != text:
            raise ModelFileError(f"{self.path}: the file changed while it was being opened: try again")
        if text is None and require_contract:
            raise ModelFileError(
                f"{self.path}: not a tl model file (it contains no {METADATA_KEY!r}); create one with tl export"
            )
        self.contract = contract
        if contract is not None:
            self._check_graph(contract)

    @property
    def takes_any_size(self) -> bool:
        """Whether the graph resizes images itself, so that a batch must be of one size."""
        return self.contract is not None and self.contract.preprocessing.any_size

    def output(self, name: str) -> tuple[str, tuple[int | None, ...]]:
        """Return the type of an output, such as tensor(float), and its shape, None for dynamic sizes."""
        wanted = self._graph_names[name]
        return next((kind, shape) for graph_name, kind, shape in self._opened.outputs if graph_name == wanted)

    def run(
        self, images: NDArray[np.uint8], outputs: Sequence[str], *, max_seconds: float | None = None
    ) -> list[NDArray[np.float32]]:
        """Run a batch and return the named outputs in order.

        `images`: uint8 (N, H, W, 3) RGB of the input size, or of any one size if the graph takes it.

        `max_seconds`: ends the run at the next operator after this time. Raises `DeviceError`, and `ModelFileError` for
        outputs that cannot be right, whatever the contract says, and for a run that was ended.
        """
        names = [self._graph_names.get(name, name) for name in outputs]
        engine = self._opened
        try:
            results = engine.run(names, images, max_seconds)
        except RunEndedError as error:
            reason = "was interrupted" if max_seconds is None else f"did not finish within {max_seconds:.3g} s"
            raise ModelFileError(f"{self.path}: {reason}") from error
        except RunFailedError as error:
            raise DeviceError(f"{self.path}: {engine.name} failed on {self.provider}: {error}") from error
        declared = () if self.contract is None else self.contract.outputs
        for name, values in zip(outputs, results, strict=True):
            if name in declared:
                self._check_output(name, values, len(images))
        return results

    def end_runs(self) -> None:
        """End the runs that are in progress, in any thread, at their next operator."""
        self._opened.end_runs()

    @property
    def _opened(self) -> Engine:
        if self._engine is None:
            raise ValueError("this session was not opened")
        return self._engine

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
            return self._opened.read_metadata(METADATA_KEY)
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{self.path}: its metadata is damaged ({error})") from error

    def __del__(self) -> None:
        # In a forked process, the engine would join threads that exist only in the parent, and crash. So never free
        # the copy.
        # Source: onnxruntime pull request 31961.
        if getattr(self, "_pid", None) not in (None, os.getpid()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._engine))

    def _check_graph(self, contract: Contract) -> None:
        wanted = (INPUT_NAME, "tensor(uint8)", (None, *contract.preprocessing.graph_shape))
        inputs = [*self._opened.inputs]
        if inputs != [wanted]:
            raise ModelFileError(f"{self.path}: expected one input {INPUT_NAME} uint8 {[*wanted[2]]}, found {inputs}")
        shapes = {name: shape for name, _, shape in self._opened.outputs}
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


def _open(path: str, device: str, threads: int | None, bf16: bool) -> tuple[Engine, str | None]:
    """Return the engine and, for "auto", why it does not use CUDA although onnxruntime-gpu is installed."""
    if parse_device(device)[0] == "openvino":
        return OpenVino(path, threads, bf16=bf16), None
    return open_onnxruntime(path, device, threads)
