"""What a model file holds, checked before anything opens it: a file from strangers must not surprise its host.

Walks the protobuf fields itself, in bounded time and memory, and refuses what no honest model file has: tensors in
other files, operators of custom libraries, absurd shapes, endless nesting. Knows ONNX's structure; knows neither what
the operators compute nor the contract's fields. A file that passes may still be faulty: onnxruntime says so on loading.
docs/model-file.md lists what is refused.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

from tl.errors import ModelFileError
from tl.runtime.contract import MAX_CONTRACT_BYTES, METADATA_KEY
from tl.runtime.onnx_messages import ATTRIBUTE, ENTRY, FUNCTION, GRAPH, MODEL, NODE, TRAINING
from tl.runtime.operators import Operator, Operators
from tl.runtime.tensor_check import TensorCheck
from tl.runtime.wire import Wire, WireError

MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's limit for a message
MAX_FIELDS = 3_000_000  # bounds the time to some seconds; 100,000 nodes have about as many
MAX_SUBGRAPHS = 12  # in each other; onnxruntime 1.18 takes 0.2 s for 12, and with each the double

# What else arrives under the name of a model: first bytes -> what it is, and the cure.
_IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself: run 'git lfs pull' in its repository"),
    (b"PK\x03\x04", "a zip archive (as PyTorch checkpoints are), expected an ONNX model: unpack or export it"),
    (b"\x1f\x8b", "a gzip archive, expected an ONNX model: unpack it"),
    (b"<", "a web page or XML, expected an ONNX model: the download failed or needs a login, fetch it again"),
)


@dataclass(frozen=True)
class ModelSummary:
    """What a model file that passed says of itself. `contract_text`: None where there is none."""

    contract_text: str | None


def check_model_file(path: str | os.PathLike[str]) -> ModelSummary:
    """Read what a model file holds and refuse what it must not. Reads no tensors and starts nothing.

    Nobody may change the file between this check and its use. Raises `ModelFileError`.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            return check_model(file)
    except OSError as error:
        raise ModelFileError(f"{path}: it cannot be read: {error.strerror}") from error
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def check_model(file: BinaryIO) -> ModelSummary:
    """The same for an open, seekable file. Raises `ModelFileError` without the file's name."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ModelFileError("an empty file, expected an ONNX model: fetch or export it again")
    if size > MAX_FILE_BYTES:
        raise ModelFileError(f"{size} bytes, expected under 2 GiB, all that protobuf reads: export it again")
    file.seek(0)
    head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, text in _IMPOSTORS:
        if head.startswith(start):
            raise ModelFileError(text)
    try:
        return ModelSummary(_Walk(Wire(file, MAX_FIELDS)).model(size))
    except WireError as error:
        fault = f"no ONNX model or a damaged one ({error}): fetch or export it again"
        raise ModelFileError(fault) from error


class _Walk:
    """One pass over a model file. Raises `WireError`, and `ModelFileError` without the file's name."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tensors = TensorCheck(wire)
        self._operators = Operators()

    def model(self, size: int) -> str | None:
        """Check everything. Returns the contract's text."""
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
            raise WireError("there is no graph in it")
        self._operators.check()
        return contracts[0] if contracts else None

    def _contract(self, begin: int, end: int) -> list[str]:
        """The contract's text, if this entry of the metadata holds it."""
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
        for name, start, stop in self._wire.fields(begin, end, FUNCTION):
            if name == "node":
                self._node(start, stop, calls, 0)
            elif name == "attribute_proto":
                self._attribute(start, stop, calls, 0)
            else:
                names[name] = start, stop
        self._operators.define(self._operator(names.get("domain"), names.get("name")), calls)

    def _operator(self, domain: tuple[int, int] | None, name: tuple[int, int] | None) -> Operator:
        text = self._wire.text(domain, "an operator domain")
        return "" if text == "ai.onnx" else text, self._wire.text(name, "an operator name")

    def _graph(self, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
        """`calls`: where to count its nodes. `depth`: how many graphs this one is inside of."""
        if depth > MAX_SUBGRAPHS:
            raise ModelFileError(f"it has more than {MAX_SUBGRAPHS} graphs inside each other: export a flatter model")
        for name, start, stop in self._wire.fields(begin, end, GRAPH):
            if name == "node":
                self._node(start, stop, calls, depth)
            elif name == "initializer":
                self._tensors.tensor(start, stop)
            else:
                self._tensors.sparse(start, stop)

    def _node(self, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
        names = {}
        for name, start, stop in self._wire.fields(begin, end, NODE):
            if name == "attribute":
                self._attribute(start, stop, calls, depth)
            else:
                names[name] = start, stop
        calls[self._operator(names.get("domain"), names.get("op_type"))] += 1

    def _attribute(self, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
        for name, start, stop in self._wire.fields(begin, end, ATTRIBUTE):
            if name in ("g", "graphs"):
                self._graph(start, stop, calls, depth + 1)
            elif name in ("t", "tensors"):
                self._tensors.tensor(start, stop)
            else:
                self._tensors.sparse(start, stop)
