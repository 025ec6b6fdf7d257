from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.models import COLORS, color_probabilities, make_contract, make_model, solid
from tests.runtime.images import noise
from tl.errors import DeviceError, ModelFileError
from tl.runtime import session as session_module
from tl.runtime.engines.onnxruntime import cuda_fault, cuda_version
from tl.runtime.model_file.contract import METADATA_KEY, dump_contract
from tl.runtime.session import Session

# float32 softmax in the graph against float64 by hand, on probabilities up to 1.
ATOL = 1e-6

no_gpu = pytest.mark.skipif(cuda_fault() is None, reason="CUDA works here; this is about machines where it does not")


def fault(path: Path, **options: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        Session(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def constant_model(path: Path, contract: str | None, inputs: list[onnx.ValueInfoProto]) -> Path:
    """A model that ignores its inputs."""
    value = numpy_helper.from_array(np.array([[0, 0, 1]], np.float32))
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["probabilities"], value=value)],
        "constant",
        inputs,
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if contract is not None:
        helper.set_model_props(model, {METADATA_KEY: contract})
    path.write_bytes(model.SerializeToString())
    return path


def test_session__reads_the_contract(color_model: Path) -> None:
    session = Session(color_model, device="cpu", threads=1)
    assert session.contract == make_contract()
    assert session.path == str(color_model)
    assert session.outputs == ("probabilities",)
    assert session.provider == "CPUExecutionProvider"


def test_run__probabilities_by_hand(color_model: Path) -> None:
    images = np.stack([noise(8, 8, seed) for seed in range(5)])
    (probabilities,) = Session(color_model, device="cpu").run(images, ["probabilities"])
    expected = np.stack([color_probabilities(image) for image in images])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=ATOL)


def test_run__threads(color_model: Path) -> None:
    session = Session(color_model, device="cpu", threads=1)
    images = [noise(8, 8, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda image: session.run(image[None], ["probabilities"])[0][0], images))
    np.testing.assert_allclose(results, [color_probabilities(image) for image in images], atol=ATOL)


# --- files that are not our models


def test_session__no_such_file(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "missing.onnx")
    assert "no such file" in fault(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a model" * 20, b"\x08\x08"], ids=["empty", "text", "no graph"])
@pytest.mark.parametrize("require_contract", [True, False])
def test_session__not_onnx(tmp_path: Path, data: bytes, require_contract: bool) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    assert "ONNX model" in fault(tmp_path / "a.onnx", device="cpu", require_contract=require_contract)


def test_session__truncated(tmp_path: Path, color_model: Path) -> None:
    data = color_model.read_bytes()
    for share in 0.1, 0.5, 0.95:
        (tmp_path / "a.onnx").write_bytes(data[: int(len(data) * share)])
        fault(tmp_path / "a.onnx", device="cpu")


def test_session__without_contract(tmp_path: Path) -> None:
    path = make_model(tmp_path / "plain.onnx", contract=None)
    assert "not a tl model file" in fault(path, device="cpu")
    assert Session(path, device="cpu", require_contract=False).contract is None


@pytest.mark.parametrize("text", ["", "{}", "[", '{"schema_version": 99}'])
def test_session__faulty_contract(tmp_path: Path, text: str) -> None:
    path = make_model(tmp_path / "a.onnx", contract=text)
    assert "invalid contract" in fault(path, device="cpu")
    assert "invalid contract" in fault(path, device="cpu", require_contract=False)


def test_session__contract_with_damaged_bytes(tmp_path: Path, color_model: Path) -> None:
    data = color_model.read_bytes()
    assert data.count(b'"synthetic"') == 1
    (tmp_path / "a.onnx").write_bytes(data.replace(b'"synthetic"', b'"synth\xff\xfeic"'))
    fault(tmp_path / "a.onnx", device="cpu")


def test_session__contract_of_another_size(tmp_path: Path) -> None:
    path = make_model(tmp_path / "a.onnx", contract=dump_contract(make_contract()).replace("[8,8]", "[8,9]"))
    message = fault(path, device="cpu")
    assert "expected one input images uint8 [None, 8, 9, 3]" in message
    assert "None, 8, 8, 3" in message


def test_session__contract_with_other_outputs(tmp_path: Path) -> None:
    path = make_model(tmp_path / "a.onnx", contract=make_contract(outputs=("probabilities", "embedding")))
    assert "outputs that the graph does not have: ['embedding']" in fault(path, device="cpu")


def test_session__contract_with_more_classes_than_the_graph(tmp_path: Path) -> None:
    text = dump_contract(make_contract()).replace('"blue"]', '"blue","gray"]')
    path = make_model(tmp_path / "a.onnx", contract=re.sub(r'"samples":\[.*', '"samples":[]}}', text))
    fault(path, device="cpu")


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [("images", TensorProto.FLOAT, ["N", 8, 8, 3])],
        [("pixels", TensorProto.UINT8, ["N", 8, 8, 3])],
        [("images", TensorProto.UINT8, ["N", 3, 8, 8])],
        [("images", TensorProto.UINT8, [1, 8, 8, 3])],
        [("images", TensorProto.UINT8, ["N", "H", "W", 3])],
        [("images", TensorProto.UINT8, ["N", 8, 8, 3]), ("more", TensorProto.FLOAT, [1])],
    ],
    ids=["none", "float", "name", "nchw", "fixed batch", "dynamic size", "two"],
)
def test_session__other_inputs_are_refused(tmp_path: Path, inputs: list[tuple[str, int, list[Any]]]) -> None:
    infos = [helper.make_tensor_value_info(*one) for one in inputs]
    path = constant_model(tmp_path / "a.onnx", dump_contract(make_contract()), infos)
    assert "expected one input images uint8 [None, 8, 8, 3]" in fault(path, device="cpu")


@pytest.mark.parametrize("require_contract", [True, False])
def test_session__tensor_in_another_file(tmp_path: Path, require_contract: bool) -> None:
    model = onnx.load(make_model(tmp_path / "a.onnx"))
    (tmp_path / "secret.bin").write_bytes(bytes(36))
    outside = model.graph.initializer[1]
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="secret.bin")
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert ort.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"]).get_inputs()
    message = fault(tmp_path / "a.onnx", device="cpu", require_contract=require_contract)
    assert "tensor 'matrix': its data is in another file" in message


def test_session__format_of_onnxruntime(tmp_path: Path, color_model: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "a.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(color_model, options, providers=["CPUExecutionProvider"])
    assert (tmp_path / "a.ort").read_bytes()[4:8] == b"ORTM"
    assert "not an ONNX model" in fault(tmp_path / "a.ort", device="cpu")
    # An unknown field that contains the other format's magic number, followed by the model.
    (tmp_path / "b.ort").write_bytes(b"\xaa\x7c\x06\x00ORTM\x00" + color_model.read_bytes())
    assert Session(tmp_path / "b.ort", device="cpu").contract == make_contract()


@pytest.mark.parametrize(
    "level", [ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL]
)
def test_session__model_that_onnxruntime_wrote(tmp_path: Path, color_model: Path, level: Any) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(tmp_path / "a.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(color_model, options, providers=["CPUExecutionProvider"])
    assert Session(tmp_path / "a.onnx", device="cpu").contract == make_contract()


def test_session__file_that_changes_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "a.onnx")
    real = session_module._open

    def replaced(*arguments: Any) -> Any:
        make_model(path, ("blue", "green", "red"))
        return real(*arguments)

    monkeypatch.setattr(session_module, "_open", replaced)
    assert "the file changed while it was being opened: try again" in fault(path, device="cpu")


def test_session__opset_newer_than_onnxruntime_supports(tmp_path: Path) -> None:
    model = onnx.load(make_model(tmp_path / "a.onnx"))
    model.opset_import[0].version = 999
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert "onnxruntime cannot load it" in fault(tmp_path / "a.onnx", device="cpu")


# --- devices


@pytest.mark.parametrize("device", ["", "gpu", "CUDA", "cpu:0", "auto:1", "cuda:x", "cuda:-1", "cuda:²", "cuda:1:2"])
def test_session__unknown_device(color_model: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=r"expected auto, cpu, cuda, openvino, .* or a number of one, as in cuda:1"):
        Session(color_model, device=device)


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_session__cuda_that_cannot_be_used(color_model: Path, device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Session(color_model, device=device)
    assert str(caught.value) == f"device {device!r} cannot be used: {cuda_fault()}"


@no_gpu
def test_session__auto_falls_back_to_the_cpu(color_model: Path) -> None:
    assert Session(color_model, device="auto").provider == "CPUExecutionProvider"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime is built with CUDA"
)
def test_cuda_fault__gpu_wheel_whose_files_were_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.31.1"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "built without CUDA" in str(cuda_fault())


def test_cuda_fault__wheel_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.31.1")
    assert "both onnxruntime and onnxruntime-gpu" in str(cuda_fault())


def test_cuda_version__of_this_build() -> None:
    built_with_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    assert bool(re.fullmatch(r"\d+\.\d+.*", cuda_version())) == built_with_cuda


def test_run__members_reorder_their_classes(tmp_path: Path) -> None:
    order = ("blue", "red", "green")
    session = Session(make_model(tmp_path / "b.onnx", order), device="cpu")
    (probabilities,) = session.run(solid((10, 200, 90))[None], ["probabilities"])
    expected = color_probabilities(solid((10, 200, 90)))[[COLORS.index(name) for name in order]]
    np.testing.assert_allclose(probabilities[0], expected, atol=ATOL)


def changed_model(path: Path, node: str, constant: NDArray[Any]) -> Path:
    """The color model, whose probabilities go through another node with a constant."""
    model = onnx.load(make_model(path))
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(constant, "constant"))
    model.graph.node.append(helper.make_node(node, ["before", "constant"], ["probabilities"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["M", 3]))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("node", "constant", "message"),
    [
        ("Tile", np.array([2, 1]), "output probabilities has 4 rows for 2 images"),
        ("Sub", np.array(0.9, np.float32), "output probabilities has values from -0.9 to 0.1: these are no"),
        (
            "Add",
            np.array(0.5, np.float32),
            "output probabilities has values from 0.5 to 1.5: these are no probabilities",
        ),
    ],
)
def test_run__refuses_what_cannot_be_probabilities_of_the_images(
    tmp_path: Path, node: str, constant: NDArray[Any], message: str
) -> None:
    session = Session(changed_model(tmp_path / "m.onnx", node, constant), device="cpu")
    images = np.stack([solid((255, 0, 0)), solid((0, 255, 0))])
    with pytest.raises(ModelFileError) as caught:
        session.run(images, ["probabilities"])
    assert message in str(caught.value)


def test_run__allows_rounding_and_nan(tmp_path: Path) -> None:
    images = solid((255, 0, 0))[None]
    (found,) = Session(changed_model(tmp_path / "m.onnx", "Mul", np.array(1.005, np.float32)), device="cpu").run(
        images, ["probabilities"]
    )
    assert found.max() > 1
    (found,) = Session(changed_model(tmp_path / "n.onnx", "Mul", np.array(np.nan, np.float32)), device="cpu").run(
        images, ["probabilities"]
    )
    assert np.isnan(found).all()  # the caller names the image


def test_session__a_newer_format_says_what_to_upgrade(color_model: Path, tmp_path: Path) -> None:
    model = onnx.load(color_model)
    model.ir_version = 99
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    message = fault(tmp_path / "m.onnx", device="cpu")
    assert "Unsupported model IR version: 99" in message
    assert message.endswith(f"it is newer than onnxruntime {ort.__version__}; upgrade onnxruntime")
