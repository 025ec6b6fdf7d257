"""Tensors in a model file: do shape and payload fit, and does all of it lie in the file? Reads no elements.

Knows TensorProto and SparseTensorProto. Does not know graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice

from tl.errors import ModelFileError
from tl.runtime.onnx_messages import SPARSE, TENSOR
from tl.runtime.wire import Wire

MAX_DIMS = 16  # nothing needs more than 8
MAX_UNPACKED_BYTES = 1 << 31  # of all sparse tensors: unpacked when loaded, a few bytes could ask for any memory

# TensorProto.DataType -> bits an element. Neither strings nor 6-bit floats have a size that is settled.
_BITS = (
    dict.fromkeys((25, 26), 2)
    | dict.fromkeys((21, 22, 23), 4)
    | dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8)
    | dict.fromkeys((4, 5, 10, 16), 16)
    | dict.fromkeys((1, 6, 12), 32)
    | dict.fromkeys((7, 11, 13, 14), 64)
    | {15: 128}
)
_MAX_BITS = max(_BITS.values())
_ELEMENTS_A_BYTE = 4  # at most, and for 2-bit integers
_CURE = "the file is damaged or made to harm, fetch or export it again"


@dataclass(slots=True)
class _Tensor:
    """One TensorProto without its elements. `raw`, `typed`: bytes of payload, in `raw_data` and in typed lists."""

    name: tuple[int, int] | None = None
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    raw: int | None = None
    typed: int = 0
    is_external: bool = False


class TensorCheck:
    """Checks the tensors of one model."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._unpacked_bytes = 0

    def tensor(self, begin: int, end: int) -> None:
        """Check a TensorProto. Raises `ModelFileError` without the file's name."""
        tensor = self._read(begin, end)
        if fault := _fault(tensor):
            raise ModelFileError(f"tensor {self._wire.text(tensor.name, 'a tensor name')[:80]!r}: {fault}")

    def sparse(self, begin: int, end: int) -> None:
        """Check a SparseTensorProto. Raises `ModelFileError` without the file's name."""
        dims: list[int] = []
        for name, start, stop in self._wire.fields(begin, end, SPARSE):
            if name == "dims":
                self._add_dims(dims, start, stop)
            else:
                self.tensor(start, stop)
        if fault := _dims_fault(dims):
            raise ModelFileError(f"a sparse tensor: {fault}")
        self._unpacked_bytes += math.prod(dims) * _MAX_BITS // 8
        if self._unpacked_bytes > MAX_UNPACKED_BYTES:
            found = f"its sparse tensors may take {self._unpacked_bytes} bytes when unpacked"
            raise ModelFileError(f"{found}, expected at most {MAX_UNPACKED_BYTES}: store them as plain tensors")

    def _read(self, begin: int, end: int) -> _Tensor:
        tensor = _Tensor()
        for name, start, stop in self._wire.fields(begin, end, TENSOR):
            if name == "dims":
                self._add_dims(tensor.dims, start, stop)
            elif name == "data_type":
                tensor.data_type = start
            elif name == "name":
                tensor.name = start, stop
            elif name == "raw_data":
                tensor.raw = stop - start
            elif name == "data_location":
                tensor.is_external = start != 0
            else:
                tensor.typed += max(stop - start, 1)  # a number that stands alone, and any text, take one at least
        return tensor

    def _add_dims(self, dims: list[int], start: int, stop: int) -> None:
        """Append sizes to `dims`, but not many more than may be."""
        dims += islice(self._wire.numbers(start, stop), MAX_DIMS + 1 - len(dims))


def _fault(tensor: _Tensor) -> str | None:
    """What is wrong with a tensor, and the cure."""
    if tensor.is_external:
        return "its data lie in another file, expected inside the model file: save it without external data"
    return _dims_fault(tensor.dims) or _payload_fault(tensor)


def _dims_fault(dims: list[int]) -> str | None:
    if len(dims) > MAX_DIMS:
        return f"it has more than {MAX_DIMS} dimensions: {_CURE}"
    if min(dims, default=0) < 0:
        return f"its shape {dims} has a negative size: {_CURE}"
    return None


def _payload_fault(tensor: _Tensor) -> str | None:
    """Raw data must fit exactly. Typed data must not be far too short: an element takes a quarter byte or more."""
    elements, bits = math.prod(tensor.dims), _BITS.get(tensor.data_type)
    if tensor.raw is not None and bits is not None:
        fits = tensor.raw == (elements * bits + 7) // 8
    else:
        fits = elements <= (tensor.raw or tensor.typed) * _ELEMENTS_A_BYTE or tensor.data_type == 0
    found = tensor.typed if tensor.raw is None else tensor.raw
    return None if fits else f"{found} bytes do not fit its shape {tensor.dims} and type {tensor.data_type}: {_CURE}"
