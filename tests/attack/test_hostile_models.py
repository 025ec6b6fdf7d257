"""Model files that are made to harm: each command refuses them in one line, within the memory of a small machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.attack.conftest import finish, start_tl
from tests.models import make_contract
from tests.runtime.model_file.test_selftest import endless
from tl.runtime.model_file.contract import dump_contract

MEMORY = "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))"


def write(path: Path, nodes: list[onnx.NodeProto], values: list[onnx.TensorProto]) -> Path:
    """Write a classifier-like graph with a valid contract."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    entry = model.metadata_props.add()
    entry.key, entry.value = "tl.contract", dump_contract(make_contract())
    path.write_bytes(model.SerializeToString())
    return path


def huge(path: Path) -> Path:
    """A constant of 100 GB."""
    shape = numpy_helper.from_array(np.array([25_000, 1_000_000], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceMax", ["big"], ["one"], keepdims=0),
        helper.make_node("Identity", ["one"], ["probabilities"]),
    ]
    return write(path, nodes, [shape])


def elsewhere(path: Path) -> Path:
    """A tensor that another file holds."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return write(path, [helper.make_node("Identity", ["w"], ["probabilities"])], [tensor])


def foreign(path: Path) -> Path:
    """An operator of an unknown library."""
    return write(path, [helper.make_node("Run", ["images"], ["probabilities"], domain="evil")], [])


@pytest.mark.parametrize("make", [huge, elsewhere, foreign])
@pytest.mark.parametrize("command", ["predict", "verify", "inspect", "evaluate", "bench", "merge"])
def test_command__refuses_a_hostile_file(command: str, make: object, tmp_path: Path, photos: Path) -> None:
    path = make(tmp_path / "m.onnx")  # type: ignore[operator]
    words = {
        "predict": [photos, "--model", path],
        "verify": [path],
        "inspect": [path],
        "evaluate": [photos, "--model", path],
        "bench": [path],
        "merge": [path, path, "-o", tmp_path / "out.onnx"],
    }
    code, out, err = finish(start_tl(command, *words[command], before=MEMORY))
    assert (code, out) == (1, ""), err
    assert err.splitlines()[-1].startswith(("tl: ", "hint: ")), err
    assert "Traceback" not in err
    assert not (tmp_path / "out.onnx").exists()


def test_verify__an_endless_model(tmp_path: Path) -> None:
    path = endless(tmp_path / "m.onnx")
    code, _, err = finish(start_tl("verify", path, "--max-seconds", "3"), seconds=90)
    assert code == 1
    assert err.startswith("tl: ") or "\ntl: " in err
