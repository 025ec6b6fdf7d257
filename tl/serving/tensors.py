"""Tensors of the Open Inference Protocol: JSON or binary -> image files and pixels, arrays and texts -> JSON or binary.

Source: KServe, "Open Inference Protocol V2" and "Binary Tensor Data Extension". Knows no models.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

Texts = list[list[bytes]]


@dataclass(frozen=True)
class InputSpec:
    """An input that a model takes. `shape`: with -1 for the number of images."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} {list(self.shape)}"

    def plain(self) -> dict[str, Any]:
        """Return it as in the metadata of a model."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class InputTensor:
    """A tensor of a request, checked against its specification. `binary`: its bytes, None if `data` is JSON."""

    spec: InputSpec
    shape: tuple[int, ...]
    data: Any
    binary: memoryview | None

    def pixels(self) -> list[NDArray[np.uint8]]:
        """Return the images of a UINT8 tensor, each (H, W, C). Raises 400."""
        if self.binary is not None:
            values = np.frombuffer(self.binary, np.uint8)
        else:
            values = _bytes_of(self.data, self.spec.name)
        if values.size != math.prod(self.shape):
            raise HTTPException(400, f"input {self.spec.name!r} has {values.size} values for shape {list(self.shape)}")
        return list(values.reshape(self.shape))

    def files(self) -> list[bytes]:
        """Return the elements of a BYTES tensor, which JSON holds as base64. Raises 400."""
        files = _text_files(self.data, self.spec.name) if self.binary is None else _split(self.binary, self.spec.name)
        if len(files) != self.shape[0]:
            raise HTTPException(400, f"input {self.spec.name!r} has {len(files)} elements for shape {list(self.shape)}")
        return files


def read_input(tensor: Any, rest: memoryview, known: Sequence[InputSpec]) -> InputTensor:
    """Check a tensor of a request. `rest`: what follows the JSON. Raises 400."""
    expected = " or ".join(map(str, known))
    if not isinstance(tensor, dict):
        raise HTTPException(400, f"an input must be an object, {expected}")
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    spec = next((one for one in known if one.name == name), None)
    if spec is None:
        raise HTTPException(400, f"unknown input {str(name)[:80]!r}: expected {expected}")
    if datatype != spec.datatype:
        raise HTTPException(400, f"input {name!r} has datatype {str(datatype)[:80]!r}: expected {spec.datatype}")
    is_shape = isinstance(shape, list) and all(type(size) is int for size in shape) and len(shape) == len(spec.shape)
    if not isinstance(shape, list) or not is_shape or tuple(shape[1:]) != spec.shape[1:] or shape[0] < 1:
        raise HTTPException(400, f"input {name!r} has shape {str(shape)[:80]}: expected {list(spec.shape)}")
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None and len(rest):
        raise HTTPException(400, f"input {name!r} has no binary_data_size, but {len(rest)} bytes follow the JSON")
    if size is not None and (type(size) is not int or size != len(rest)):
        raise HTTPException(
            400, f"input {name!r} has binary_data_size {str(size)[:80]}, but {len(rest)} bytes follow the JSON"
        )
    return InputTensor(spec, tuple(shape), tensor.get("data"), None if size is None else rest)


def _bytes_of(data: Any, name: str) -> NDArray[np.uint8]:
    """Return the numbers of JSON lists, flat or nested."""
    try:
        found = np.array(data)
    except ValueError:  # lists of different lengths
        found = np.array(None)
    if found.dtype.kind not in "iu" or (found.size and (found.min() < 0 or found.max() > 255)):
        raise HTTPException(400, f"the data of input {name!r} must be whole numbers from 0 to 255")
    return found.astype(np.uint8).ravel()


def _text_files(data: Any, name: str) -> list[bytes]:
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise HTTPException(400, f"the data of input {name!r} must be a list of base64 texts, or binary")
    try:
        return [base64.b64decode(one, validate=True) for one in data]
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"the data of input {name!r} is not base64: {error}") from error


def _split(binary: memoryview, name: str) -> list[bytes]:
    """Split a binary tensor of BYTES: before each element, its length as 4 bytes, little-endian."""
    files: list[bytes] = []
    at = 0
    while at < len(binary):
        length = struct.unpack_from("<I", binary, at)[0] if at + 4 <= len(binary) else len(binary)
        if at + 4 + length > len(binary):
            raise HTTPException(400, f"input {name!r}: element {len(files)} is longer than the binary data")
        files.append(bytes(binary[at + 4 : at + 4 + length]))
        at += 4 + length
    return files


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of an answer. `values`: rows of texts for BYTES, else an array."""

    name: str
    datatype: str
    values: NDArray[Any] | Texts

    def plain(self) -> dict[str, Any]:
        """Return the tensor as JSON."""
        if isinstance(self.values, list):
            data: list[Any] = [each.decode() for row in self.values for each in row]
        else:
            data = self.values.ravel().tolist()
        return {**self._head(), "data": data}

    def binary(self) -> tuple[dict[str, Any], bytes]:
        """Return what JSON says of the tensor, and its bytes."""
        if isinstance(self.values, list):
            content = b"".join(struct.pack("<I", len(each)) + each for row in self.values for each in row)
        else:
            content = np.ascontiguousarray(self.values).tobytes()
        return {**self._head(), "parameters": {"binary_data_size": len(content)}}, content

    def _head(self) -> dict[str, Any]:
        shape = [len(self.values), len(self.values[0])] if isinstance(self.values, list) else list(self.values.shape)
        return {"name": self.name, "datatype": self.datatype, "shape": shape}
