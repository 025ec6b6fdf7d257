from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainer.make import Listener, make_config
from tl.progress import Silent
from tl.trainer.features import extraction as embedder
from tl.trainer.features.extraction import build_embedder, extract_features
from tl.trainer.fit.machine import Machine
from tl.trainer.models.backbones import find_backbone_info
from tl.trainer.models.build import build_network
from tl.trainer.models.network import Network
from tl.trainer.options import resolve
from tl.trainer.run_folder.run import Run
from tl.trainer.task import Task, prepare_task

SIZE = (32, 32)
MANY = 400  # enough images to build a graph
# Relative to the largest feature: several hundred float32 products and sums per entry, in a different order.
ROUNDING = 1e-5


def make_network(seed: int = 0, **changes: Any) -> Network:
    """A frozen smallcnn with batch-norm statistics other than the identity."""
    options = {"method": "features", "weights": "given elsewhere", "seed": seed, **changes}
    config = resolve(make_config(Path("x"), Path("y"), **options))
    network = build_network(config, find_backbone_info("smallcnn"), 3, None)
    generator = torch.Generator().manual_seed(seed)
    for module in network.trunk.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.2, 2.0, generator=generator)
            module.bias.data.uniform_(-0.2, 0.5, generator=generator)
    return network.eval()


def make_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def by_hand(network: Network, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The trunk's maps of float32 pixels, averaged."""
    pixels = torch.from_numpy((images.astype(np.float32) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network.trunk(pixels).mean(dim=(2, 3)).numpy()


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING * float(np.abs(wanted).max()))


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph that `build_embedder` caches for `make_network()`; read only."""
    path = tmp_path_factory.mktemp("graph") / "made" / "trunk.onnx"
    listener = Listener()
    build_embedder(make_network(), (*SIZE, 3), MANY, path, Machine(torch.device("cpu"), None, 1), listener)
    assert (listener.tasks, listener.lines) == (["preparing the backbone"], [])
    return path


@pytest.mark.slow
def test_build_embedder__onnxruntime_gives_torch_s_features(graph: Path, cpu: Machine) -> None:
    network, listener = make_network(), Listener()
    embed = build_embedder(network, (*SIZE, 3), 1, graph, cpu, listener)  # the graph is cached, so one image is enough
    assert "onnxruntime" in embed.__name__
    assert (listener.tasks, listener.lines) == ([], [])
    images = make_images(33)
    wanted = by_hand(network, images)
    assert_close(embed(images), wanted)
    for count in (1, 2, 32):
        assert_close(embed(images[:count]), wanted[:count])


@pytest.mark.slow
def test_build_embedder__a_batch_is_its_images_one_by_one(graph: Path, cpu: Machine) -> None:
    embed = build_embedder(make_network(), (*SIZE, 3), 1, graph, cpu, Silent())
    images = make_images(5, seed=1)
    one_by_one = np.concatenate([embed(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(embed(images), one_by_one, rtol=0, atol=1e-6)  # convolutions may be tiled differently


@pytest.mark.slow
def test_build_embedder__the_kept_graph_holds_no_trace_of_this_machine(graph: Path) -> None:
    assert str(Path(__file__).parents[3]).encode() not in graph.read_bytes()
    assert [path.name for path in graph.parent.iterdir()] == ["trunk.onnx"]


@pytest.mark.slow
def test_build_embedder__a_graph_of_other_weights_is_noticed(graph: Path, cpu: Machine) -> None:
    network, listener = make_network(seed=1), Listener()
    embed = build_embedder(network, (*SIZE, 3), MANY, graph, cpu, listener)
    assert listener.lines == [
        "features are computed by torch, which is slower: onnxruntime computes different features for this backbone"
    ]
    assert_close(embed(make_images(3)), by_hand(network, make_images(3)))


@pytest.mark.parametrize("pooling", ["gap", "flatten"])
def test_build_embedder__few_images_go_through_torch_at_once(tmp_path: Path, cpu: Machine, pooling: str) -> None:
    network, listener = make_network(pooling=pooling), Listener()
    network.train()  # an embedder must not update batch-norm statistics
    embed = build_embedder(network, (*SIZE, 3), MANY - 1, tmp_path / "g" / "trunk.onnx", cpu, listener)
    assert (listener.tasks, listener.lines) == ([], [])
    assert not (tmp_path / "g").exists()
    images = make_images(3)
    found = embed(images)
    with torch.no_grad():
        maps = network.trunk(network.normalize(torch.from_numpy(images))).numpy()
    assert_close(found, maps.mean(axis=(2, 3)) if pooling == "gap" else maps.reshape(3, -1))
    np.testing.assert_array_equal(embed(images), found)


def make_wrong_graph(path: Path, width: int = 128) -> Path:
    """A graph with the right shape whose features are all 0."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["color"], keepdims=0),
        helper.make_node("MatMul", ["color", "zeros"], ["features"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2]), "axes"),
        numpy_helper.from_array(np.zeros((3, width), np.float32), "zeros"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *SIZE, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "wrong", [images], [features], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_build_embedder__a_wrong_graph_is_noticed_however_small_features_are(
    tmp_path: Path, cpu: Machine, size: float
) -> None:
    network, listener = make_network(), Listener()
    last = [module for module in network.trunk.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    last.weight.data *= size
    last.bias.data *= size
    embed = build_embedder(network, (*SIZE, 3), 1, make_wrong_graph(tmp_path / "g.onnx"), cpu, listener)
    assert len(listener.lines) == 1
    assert "by torch" in listener.lines[0]
    assert_close(embed(make_images(3)), by_hand(network, make_images(3)))


def assert_said_and_by_torch(listener: Listener, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> str:
    """Check that one plain line reports the fallback to torch, and that torch was used. Returns the line."""
    (line,) = listener.lines
    assert line.startswith("features are computed by torch, which is slower (")
    assert len(line.splitlines()) == 1
    assert line.isprintable()  # no ANSI colors from a library
    assert_close(found, wanted)
    return line


def test_build_embedder__a_damaged_graph_is_said(tmp_path: Path, cpu: Machine) -> None:
    network, listener = make_network(), Listener()
    graph = make_wrong_graph(tmp_path / "trunk.onnx")
    graph.write_bytes(graph.read_bytes()[:100])
    embed = build_embedder(network, (*SIZE, 3), 1, graph, cpu, listener)
    line = assert_said_and_by_torch(listener, embed(make_images(2)), by_hand(network, make_images(2)))
    assert str(graph) in line


@pytest.mark.slow
def test_build_embedder__no_place_for_the_graph_is_said(tmp_path: Path, cpu: Machine) -> None:
    (tmp_path / "c").write_text("in the way", encoding="utf-8")
    network, listener = make_network(), Listener()
    embed = build_embedder(network, (*SIZE, 3), MANY, tmp_path / "c" / "trunk.onnx", cpu, listener)
    line = assert_said_and_by_torch(listener, embed(make_images(2)), by_hand(network, make_images(2)))
    assert str(tmp_path / "c") in line


class Choosy(nn.Module):
    """Cannot be exported: data-dependent control flow."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps if float(maps.sum()) > 0 else maps * 2


@pytest.mark.slow
def test_build_embedder__a_backbone_that_cannot_be_exported_is_said(tmp_path: Path, cpu: Machine) -> None:
    network, listener = make_network(), Listener()
    network.trunk.add_module("choosy", Choosy())
    embed = build_embedder(network, (*SIZE, 3), MANY, tmp_path / "trunk.onnx", cpu, listener)
    assert_said_and_by_torch(listener, embed(make_images(2)), by_hand(network, make_images(2)))
    assert list(tmp_path.iterdir()) == []


class TooLarge:
    """A graph that reports more than protobuf's 2 GiB, without using them."""

    def SerializeToString(self) -> bytes:  # noqa: N802  # protobuf's name
        raise EncodeError("Failed to serialize proto")


def test_build_embedder__a_backbone_beyond_2_gib_is_said(
    tmp_path: Path, cpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "to_onnx", lambda *arguments: TooLarge())
    network, listener = make_network(), Listener()
    embed = build_embedder(network, (*SIZE, 3), MANY, tmp_path / "trunk.onnx", cpu, listener)
    assert_said_and_by_torch(listener, embed(make_images(2)), by_hand(network, make_images(2)))


def make_task(photos: Path, run: Run, **changes: Any) -> Task:
    return prepare_task(make_config(photos, Path("unused"), **{"weights": str(run.folder), **changes}), Silent())


def input_images(task: Task) -> NDArray[np.uint8]:
    return np.stack([task.store.input(i) for i in range(len(task.store.images))])


@pytest.fixture
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_fresh_cache")
def test_extract_features__keeps_features_and_the_network_of_the_weights(photos: Path, finished_run: Run) -> None:
    task = make_task(photos, finished_run, method="features")
    assert task.features is not None
    extract_features(task, task.features.missing(task.store, range(18), (0,)), Silent())
    tensors = load_file(finished_run.best_path)
    network = make_network()
    network.load_state_dict({**network.state_dict(), **tensors})
    assert_close(task.features.get(task.store, range(18)), by_hand(network, input_images(task)))
    wanted = {name: t.numpy() for name, t in tensors.items() if name.split(".")[0] in ("trunk", "normalize")}
    again = make_task(photos, finished_run, method="features").features
    assert again is not None
    assert again.network.keys() == wanted.keys()
    for name, tensor in again.network.items():
        np.testing.assert_array_equal(tensor, wanted[name])
        assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape)


@pytest.mark.usefixtures("_fresh_cache")
def test_extract_features__without_places_keeps_the_network_alone(photos: Path, finished_run: Run) -> None:
    task, listener = make_task(photos, finished_run, method="features"), Listener()
    extract_features(task, [], listener)
    assert task.features is not None
    assert "trunk.block1.0.weight" in task.features.network
    assert len(task.features.missing(task.store, range(18), (0,))) == 18
    assert listener.tasks == []


@pytest.mark.usefixtures("_fresh_cache")
def test_extract_features__finetuning_looks_at_the_same_features(photos: Path, finished_run: Run) -> None:
    looking = make_task(photos, finished_run, method="finetune", head="conv", head_sizes=(4,), freeze="half")
    assert looking.features is not None
    extract_features(looking, looking.features.missing(looking.store, range(18), (0,)), Silent())
    assert looking.features.get(looking.store, range(18)).shape == (18, 128)
    training = make_task(photos, finished_run, method="features")
    assert training.features is not None
    assert training.features.missing(training.store, range(18), (0,)) == []  # same trunk, preprocessing and mean


@pytest.mark.usefixtures("_fresh_cache")
def test_extract_features__needs_a_pretrained_trunk(photos: Path) -> None:
    task = prepare_task(make_config(photos, Path("unused")), Silent())
    assert task.features is None
    with pytest.raises(ValueError, match="pretrained"):
        extract_features(task, [(0, 0)], Silent())
