from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.models import COLORS, make_contract, make_model
from tl.errors import OutputError, ParityError
from tl.exporter.publish import embed_contract, publish
from tl.runtime.model_file.contract import METADATA_KEY, Contract, dump_contract
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.session import Session


@pytest.fixture
def model(tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(make_model(tmp_path / "source.onnx", contract=None))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model.onnx"


def certified(_: Path) -> Contract:
    return make_contract()


def verify(path: Path) -> object:
    return run_selftest(path, device="cpu", threads=1)


def nothing_written(out: Path) -> bool:
    return not out.parent.exists() or list(out.parent.iterdir()) == []


def test_embed_contract__replaces_an_earlier_one_and_keeps_the_rest(model: onnx.ModelProto) -> None:
    onnx.helper.set_model_props(model, {"author": "me", METADATA_KEY: "old"})
    for _ in range(2):
        embed_contract(model, make_contract())
    found = {prop.key: prop.value for prop in model.metadata_props}
    assert len(model.metadata_props) == 2
    assert found == {"author": "me", METADATA_KEY: dump_contract(make_contract())}


def test_publish__file_carries_the_certified_contract(model: onnx.ModelProto, out: Path) -> None:
    embed_contract(model, make_contract(("x", "y", "z")))
    assert publish(model, out, certified, verify) == make_contract()
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    session = Session(out, device="cpu", threads=1)
    assert session.contract == make_contract()
    assert session.contract.class_names == COLORS


def test_publish__certify_and_self_test_see_a_runnable_file_without_its_name(model: onnx.ModelProto, out: Path) -> None:
    embed_contract(model, make_contract())
    seen: list[Path] = []

    def look(path: Path) -> Contract:
        assert not out.exists()
        seen.append(path)
        return make_contract(provenance=make_contract().provenance) if Session(path, device="cpu") else make_contract()

    publish(model, out, look, look)
    assert len(seen) == 2
    assert all(path != out and path.parent == out.parent for path in seen)


def raise_parity(_: Path) -> Contract:
    raise ParityError("differs")


def raise_interrupt(_: Path) -> Contract:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("certify", "self_test"), [(raise_parity, verify), (certified, raise_parity), (raise_interrupt, verify)]
)
def test_publish__what_fails_leaves_no_file(
    model: onnx.ModelProto, out: Path, certify: Callable[[Path], Contract], self_test: Callable[[Path], object]
) -> None:
    with pytest.raises((ParityError, KeyboardInterrupt)):
        publish(model, out, certify, self_test)
    assert nothing_written(out)


def test_publish__what_fails_leaves_the_earlier_file(model: onnx.ModelProto, out: Path) -> None:
    publish(model, out, certified, verify)
    before = out.read_bytes()
    with pytest.raises(ParityError):
        publish(model, out, raise_parity, verify)
    assert out.read_bytes() == before
    assert len(list(out.parent.iterdir())) == 1


def test_publish__a_graph_that_no_longer_computes_its_samples(model: onnx.ModelProto, out: Path) -> None:
    # A perturbed initializer: the contract's golden samples come from the unmodified color model.
    (matrix,) = (tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    values = onnx.numpy_helper.to_array(matrix) * 1.05
    matrix.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), "matrix"))
    with pytest.raises(ParityError, match="the golden samples differ by"):
        publish(model, out, certified, verify)
    assert nothing_written(out)


def test_publish__an_invalid_graph_is_not_written(model: onnx.ModelProto, out: Path) -> None:
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        publish(model, out, certified, verify)
    assert nothing_written(out)


def test_publish__place_that_cannot_be_written(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        publish(model, tmp_path / "file" / "model.onnx", certified, verify)
