"""Put a contract into an ONNX graph and give the file its name once it has been checked.

Knows onnx files. Does not know torch modules or pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx

from tl.errors import ModelFileError
from tl.runtime.contract import METADATA_KEY, Contract, dump_contract
from tl.runtime.files import atomic_path, output_errors

MAX_BYTES = 2_000_000_000  # protobuf's limit is 2 GiB


def embed_contract(model: onnx.ModelProto, contract: Contract) -> None:
    """Write the contract into the model's metadata, replacing an earlier one."""
    kept = [(prop.key, prop.value) for prop in model.metadata_props if prop.key != METADATA_KEY]
    onnx.helper.set_model_props(model, dict([*kept, (METADATA_KEY, dump_contract(contract))]))


def publish(
    model: onnx.ModelProto,
    out: str | os.PathLike[str],
    certify: Callable[[Path], Contract],
    self_test: Callable[[Path], object],
) -> Contract:
    """Write a model file that holds what it proves.

    `certify` runs the graph at a temporary path and returns the final contract, or raises; `self_test` then runs on
    the finished file. Only after both does the file get its name.
    Raises `OutputError`, `ModelFileError` or what they raise.
    """
    if model.ByteSize() > MAX_BYTES:
        raise ModelFileError(f"{out}: {model.ByteSize() / 1e9:.1f} GB do not fit into one ONNX file (2 GB)")
    onnx.checker.check_model(model)
    with atomic_path(out) as temporary:
        _write(model, temporary)
        contract = certify(temporary)
        embed_contract(model, contract)
        _write(model, temporary)
        self_test(temporary)
    return contract


def _write(model: onnx.ModelProto, path: Path) -> None:
    with output_errors(path):
        path.write_bytes(model.SerializeToString())
