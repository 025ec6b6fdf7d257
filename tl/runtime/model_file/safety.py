"""Check whether a model file is safe to open: its tensors, operators and nesting, before onnxruntime reads it.

An untrusted file may refer to other files, recurse endlessly, or crash an older onnxruntime. Parses ONNX's protobuf
messages and finds the contract by its key. Never executes anything.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from tl.errors import ModelFileError
from tl.runtime.model_file.contract import MAX_CONTRACT_BYTES, METADATA_KEY
from tl.runtime.model_file.declared_sizes import MAX_SHAPE_VALUES, SIZED, DeclaredSizes
from tl.runtime.model_file.protobuf import (
    ATTRIBUTE,
    ENTRY,
    FUNCTION,
    GRAPH,
    MODEL,
    NODE,
    SPARSE,
    TENSOR,
    TRAINING,
    Wire,
    WireError,
)

Operator = tuple[str, str]  # domain ("" for ai.onnx), name

# Domains built into onnxruntime. Its optimizer writes files with some of the com.microsoft ones.
DOMAINS = frozenset(
    (
        "",
        "ai.onnx.ml",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
    )
)
# When loading a file, onnxruntime inlines each function at every call. A chain of 14 functions that each call the next
# one twice takes 7 s, and nearly four times as long with each further one. A recursive function crashes version 1.18.
MAX_CALL_DEPTH = 32
MAX_WRITTEN_OUT = 50_000


class Operators:
    """The operator calls of one model: in its graph, and in each model-local function."""

    def __init__(self) -> None:
        self.graph: Counter[Operator] = Counter()
        self._functions: dict[Operator, Counter[Operator]] = {}

    def define(self, function: Operator, calls: Counter[Operator]) -> None:
        """Add a model-local function. Overloads, which share a name, count as one."""
        self._functions.setdefault(function, Counter()).update(calls)

    def check(self) -> None:
        """Raise `ModelFileError` without the file's name for custom operators and unbounded recursion."""
        called = set(self.graph).union(*self._functions.values())
        foreign = sorted(one for one in called if one[0] not in DOMAINS and one not in self._functions)
        if foreign:
            shown = ", ".join(f"{name!r} of {domain!r}" for domain, name in foreign[:3])
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise ModelFileError(
                f"it requires the operators {shown}{more}, expected only operators built into "
                "onnxruntime: operator libraries are never loaded, export it with standard operators"
            )
        if self._written_out(self.graph, {}, 0) > MAX_WRITTEN_OUT:
            raise ModelFileError(
                f"its functions expand to more than {MAX_WRITTEN_OUT} nodes: export it without functions"
            )

    def _written_out(self, calls: Counter[Operator], known: dict[Operator, int], depth: int) -> int:
        """Return the node count after inlining the functions in `calls`. `known`: counts of functions seen before."""
        if depth > MAX_CALL_DEPTH:
            raise ModelFileError(
                f"its functions are nested more than {MAX_CALL_DEPTH} levels deep: export it without functions"
            )
        total = 0
        for function, count in calls.items():
            body = self._functions.get(function)
            if body is None:
                continue
            if function not in known:
                known[function] = body.total() + self._written_out(body, known, depth + 1)
            total += count * known[function]
        return total


MAX_DIMS = 16  # real models need at most 8
MAX_UNPACKED_BYTES = 1 << 31  # of all sparse tensors; a few bytes could request any amount of memory on loading

# TensorProto.DataType -> bits per element. Strings and 6-bit floats have no defined size.
_BITS = (
    dict.fromkeys((25, 26), 2)
    | dict.fromkeys((21, 22, 23), 4)
    | dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8)
    | dict.fromkeys((4, 5, 10, 16), 16)
    | dict.fromkeys((1, 6, 12), 32)
    | dict.fromkeys((7, 11, 13, 14), 64)
    | {15: 128}
)
_INT64 = 7
_MAX_BITS = max(_BITS.values())
_ELEMENTS_A_BYTE = 4  # maximum, for 2-bit integers
_CURE = "the file is damaged or malicious, download or export it again"


@dataclass(slots=True)
class _Tensor:
    """A TensorProto without its elements. `raw`, `typed`: payload bytes, in `raw_data` and in typed lists.

    `places`: where 64-bit integers are stored, as raw data or as varints.
    """

    name: tuple[int, int] | None = None
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    raw: int | None = None
    typed: int = 0
    is_external: bool = False
    places: list[tuple[int, int]] = field(default_factory=list)


class TensorCheck:
    """Check the tensors of one model."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._unpacked_bytes = 0

    def tensor(self, begin: int, end: int) -> _Tensor:
        """Check a TensorProto. Raises `ModelFileError` without the file's name."""
        tensor = self._read(begin, end)
        if fault := _fault(tensor):
            raise ModelFileError(f"tensor {self._wire.text(tensor.name, 'a tensor name')[:80]!r}: {fault}")
        return tensor

    def shape_values(self, tensor: _Tensor) -> list[int] | None:
        """Return the numbers of a checked tensor if it is a short list of 64-bit integers, as shapes are."""
        if tensor.data_type != _INT64 or math.prod(tensor.dims) > MAX_SHAPE_VALUES:
            return None
        if tensor.raw is not None:
            return [value for place in tensor.places for value in self._wire.integers(*place)]
        return [value for place in tensor.places for value in islice(self._wire.numbers(*place), MAX_SHAPE_VALUES)]

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
                tensor.places = [(start, stop)]
            elif name == "data_location":
                tensor.is_external = start != 0
            else:
                tensor.typed += max(stop - start, 1)  # an unpacked number, or a text, takes at least one byte
                if name == "int64_data" and tensor.raw is None and len(tensor.places) < MAX_SHAPE_VALUES:
                    tensor.places.append((start, stop))
        return tensor

    def _add_dims(self, dims: list[int], start: int, stop: int) -> None:
        """Append sizes to `dims`, but only slightly more than allowed."""
        dims += islice(self._wire.numbers(start, stop), MAX_DIMS + 1 - len(dims))


def _fault(tensor: _Tensor) -> str | None:
    """Return what is wrong with a tensor, and the fix; None if nothing is."""
    if tensor.is_external:
        return "its data is in another file, expected inside the model file: save it without external data"
    return _dims_fault(tensor.dims) or _payload_fault(tensor)


def _dims_fault(dims: list[int]) -> str | None:
    if len(dims) > MAX_DIMS:
        return f"it has more than {MAX_DIMS} dimensions: {_CURE}"
    if min(dims, default=0) < 0:
        return f"its shape {dims} has a negative size: {_CURE}"
    return None


def _payload_fault(tensor: _Tensor) -> str | None:
    """Check that raw data fit exactly and typed data are not far too short: at least a quarter byte per element."""
    elements, bits = math.prod(tensor.dims), _BITS.get(tensor.data_type)
    if tensor.raw is not None and bits is not None:
        fits = tensor.raw == (elements * bits + 7) // 8
    else:
        fits = elements <= (tensor.raw or tensor.typed) * _ELEMENTS_A_BYTE or tensor.data_type == 0
    found = tensor.typed if tensor.raw is None else tensor.raw
    return None if fits else f"{found} bytes do not match its shape {tensor.dims} and type {tensor.data_type}: {_CURE}"


MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's limit for a message
MAX_FIELDS = 3_000_000  # limits the time to a few seconds; 100,000 nodes have about this many
MAX_SUBGRAPHS = 12  # nested; onnxruntime 1.18 takes 0.2 s for 12, doubling with each more

# Other files that are mistaken for models: first bytes -> what it is, and the fix.
_IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself: run 'git lfs pull' in its repository"),
    (b"PK\x03\x04", "a zip archive (as PyTorch checkpoints are), expected an ONNX model: unpack or export it"),
    (b"\x1f\x8b", "a gzip archive, expected an ONNX model: unpack it"),
    (b"<", "a web page or XML, expected an ONNX model: the download failed or requires a login, download it again"),
)


_WITH_SIZE = {("", name) for name in (*SIZED, "Constant")}


@dataclass(frozen=True)
class ModelSummary:
    """Result of a passed check. `contract_text`: None for a file without a contract."""

    contract_text: str | None


def check_model_file(path: str | os.PathLike[str]) -> ModelSummary:
    """Check the structure of a model file. Reads no tensor data and executes nothing.

    The file must not change between this check and its use. Raises `ModelFileError`.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            return check_model(file)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def check_model(file: BinaryIO) -> ModelSummary:
    """Like `check_model_file`, for an open, seekable file. Raises `ModelFileError` without the file's name."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ModelFileError("an empty file, expected an ONNX model: download or export it again")
    if size > MAX_FILE_BYTES:
        raise ModelFileError(f"{size} bytes, expected less than 2 GiB, the limit of protobuf: export it again")
    file.seek(0)
    head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, text in _IMPOSTORS:
        if head.startswith(start):
            raise ModelFileError(text)
    try:
        return ModelSummary(_Walk(Wire(file, MAX_FIELDS)).model(size))
    except WireError as error:
        fault = f"not an ONNX model, or a damaged one ({error}): download or export it again"
        raise ModelFileError(fault) from error


class _Walk:
    """One pass over a model file. Raises `WireError`, and `ModelFileError` without the file's name."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tensors = TensorCheck(wire)
        self._operators = Operators()
        self._sizes = DeclaredSizes()

    def model(self, size: int) -> str | None:
        """Check everything. Returns the contract's text, None without one."""
        contracts: list[str] = []
        has_graph = False
        for name, start, stop in self._wire.fields(0, size, MODEL):
            if name == "graph":
                has_graph = True
                self._graph(start, stop, self._operators.graph, 0)
            elif name == "functions":
                self._function(start, stop)
            elif name == "training_info":
                for _, begin, end in self._wire.fields(start, stop, TRAINING):
                    self._graph(begin, end, self._operators.graph, 0)
            else:
                contracts += self._contract(start, stop)
                if len(contracts) > 1:
                    raise ModelFileError(f"it has {METADATA_KEY!r} twice, expected one contract: export it again")
        if not has_graph:
            raise WireError("it contains no graph")
        self._operators.check()
        self._sizes.check()
        return contracts[0] if contracts else None

    def _contract(self, begin: int, end: int) -> list[str]:
        """Return the contract's text in a list, or [] if this metadata entry is not the contract."""
        entry = {name: (start, stop) for name, start, stop in self._wire.fields(begin, end, ENTRY)}
        if self._wire.text(entry.get("key"), "a metadata key") != METADATA_KEY:
            return []
        start, stop = entry.get("value", (0, 0))
        if stop - start > MAX_CONTRACT_BYTES:
            found = f"a contract of {stop - start} bytes, expected at most {MAX_CONTRACT_BYTES}"
            raise ModelFileError(f"it has {found}: export it with fewer or smaller golden samples")
        return [self._wire.text((start, stop), "a contract", MAX_CONTRACT_BYTES)]

    def _function(self, begin: int, end: int) -> None:
        names = {}
        calls: Counter[Operator] = Counter()
        around, self._sizes = self._sizes, DeclaredSizes()  # its names are its own
        for name, start, stop in self._wire.fields(begin, end, FUNCTION):
            if name == "node":
                self._node(start, stop, calls, 0)
            elif name == "attribute_proto":
                self._attribute(start, stop, calls, 0)
            else:
                names[name] = start, stop
        self._sizes.check()
        self._sizes = around
        self._operators.define(self._operator(names.get("domain"), names.get("name")), calls)

    def _operator(self, domain: tuple[int, int] | None, name: tuple[int, int] | None) -> Operator:
        text = self._wire.text(domain, "an operator domain")
        return "" if text == "ai.onnx" else text, self._wire.text(name, "an operator name")

    def _graph(self, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
        """Check a graph. `calls`: counter of its nodes. `depth`: number of graphs that enclose it."""
        if depth > MAX_SUBGRAPHS:
            raise ModelFileError(f"it has more than {MAX_SUBGRAPHS} nested graphs: export a model with less nesting")
        for name, start, stop in self._wire.fields(begin, end, GRAPH):
            if name == "node":
                self._node(start, stop, calls, depth)
            elif name == "initializer":
                tensor = self._tensors.tensor(start, stop)
                self._constant(self._wire.text(tensor.name, "a tensor name"), tensor)
            else:
                self._tensors.sparse(start, stop)

    def _constant(self, name: str, tensor: _Tensor) -> None:
        self._sizes.constant(name, math.prod(tensor.dims), self._tensors.shape_values(tensor))

    def _node(self, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
        names = {}
        ends: dict[str, list[tuple[int, int]]] = {"input": [], "output": []}
        tensors: list[_Tensor] = []
        for name, start, stop in self._wire.fields(begin, end, NODE):
            if name == "attribute":
                tensors += self._attribute(start, stop, calls, depth)
            elif name in ends:
                ends[name].append((start, stop))
            else:
                names[name] = start, stop
        operator = self._operator(names.get("domain"), names.get("op_type"))
        calls[operator] += 1
        if operator in _WITH_SIZE and ends["output"]:
            output = self._wire.text(ends["output"][0], "a name")
            if operator[1] == "Constant":
                for tensor in tensors[:1]:
                    self._constant(output, tensor)
            else:
                self._sizes.node(operator[1], [self._wire.text(place, "a name") for place in ends["input"]], output)

    def _attribute(self, begin: int, end: int, calls: Counter[Operator], depth: int) -> list[_Tensor]:
        """Check an attribute. Returns its tensors."""
        tensors = []
        for name, start, stop in self._wire.fields(begin, end, ATTRIBUTE):
            if name in ("g", "graphs"):
                self._graph(start, stop, calls, depth + 1)
            elif name in ("t", "tensors"):
                tensors.append(self._tensors.tensor(start, stop))
            else:
                self._tensors.sparse(start, stop)
        return tensors
