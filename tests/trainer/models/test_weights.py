from __future__ import annotations

import hashlib
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.trainer.make import RunsCode
from tl.errors import WeightsError
from tl.trainer.models.backbone_info import BackboneInfo
from tl.trainer.models.backbones import Trunk, build_classifier, build_trunk, find_backbone_info
from tl.trainer.models.weight_files import WeightsFile, find_weights, read_colors
from tl.trainer.models.weights import Weights, load_into, read_tensors, read_weights
from tl.trainer.run_folder.checkpoints import load_best
from tl.trainer.run_folder.run import Run


def tensors_of(seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_trunk("smallcnn").state_dict()


@pytest.fixture
def trunk() -> Trunk:
    torch.manual_seed(0)
    return build_trunk("smallcnn")


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and downloads redirected to a closed port, whatever the machine's network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "TL_WEIGHTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def find(backbone: str, asked: object) -> WeightsFile | None:
    return find_weights(find_backbone_info(backbone), str(asked))


def read(backbone: str, asked: object) -> Weights:
    file = find(backbone, asked)
    assert file is not None
    return read_weights(file, backbone)


def equal(left: nn.Module, right: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.state_dict().items())


def test_load_into__copies_every_tensor(trunk: Trunk) -> None:
    load_into(trunk, Weights(tensors_of(), "w"))
    assert equal(trunk, tensors_of())


def test_load_into__half_precision_becomes_float(trunk: Trunk) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors_of().items()}
    load_into(trunk, Weights(half, "w"))
    assert trunk.state_dict()["block1.0.weight"].dtype == torch.float32
    assert equal(trunk, {name: tensor.float() for name, tensor in half.items()})


def test_load_into__step_counters_may_be_missing(trunk: Trunk) -> None:
    few = {name: tensor for name, tensor in tensors_of().items() if not name.endswith("num_batches_tracked")}
    load_into(trunk, Weights(few, "w"))
    assert all(torch.equal(trunk.state_dict()[name], tensor) for name, tensor in few.items())


def test_load_into__names_missing_unknown_and_misshapen_tensors_together(trunk: Trunk) -> None:
    tensors = tensors_of()
    del tensors["block2.0.weight"]
    tensors["extra.bias"] = torch.zeros(1)
    tensors["block1.0.weight"] = torch.zeros(32, 1, 3, 3)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_into(trunk, Weights(tensors, "file.pth"))
    text = str(caught.value)
    assert text.startswith("file.pth: the weights belong to a different network")
    assert "lack 1 tensors, such as block2.0.weight" in text
    assert "have unknown 1 tensors, such as extra.bias" in text
    assert "block1.0.weight (32, 1, 3, 3) instead of (32, 3, 3, 3)" in text
    assert equal(trunk, before)


def test_load_into__the_original_classifier_may_be_there(trunk: Trunk) -> None:
    tensors = {**tensors_of(), "fc.weight": torch.zeros(10, 128)}
    load_into(trunk, Weights(tensors, "w"), unused={"fc.weight", "fc.bias"})
    assert equal(trunk, tensors_of())


def test_read_colors__as_shares_of_255(tmp_path: Path) -> None:
    # The network's normalization is in bytes and has the shape of a batch.
    mean, std = torch.tensor([51.0, 102.0, 127.5]).view(1, 3, 1, 1), torch.tensor([25.5, 51.0, 255.0]).view(1, 3, 1, 1)
    save_file({"normalize.mean": mean, "normalize.std": std}, tmp_path / "best.safetensors")
    colors = read_colors(WeightsFile(tmp_path / "best.safetensors", "", "run", is_run=True))
    assert colors == (pytest.approx((0.2, 0.4, 0.5), rel=1e-6), pytest.approx((0.1, 0.2, 1.0), rel=1e-6))  # float32
    assert all(type(value) is float for value in (*colors[0], *colors[1]))


def test_read_colors__of_something_else(tmp_path: Path) -> None:
    save_file(tensors_of(), tmp_path / "best.safetensors")
    with pytest.raises(WeightsError, match=r"best.safetensors: does not contain the network of a run"):
        read_colors(WeightsFile(tmp_path / "best.safetensors", "", "run", is_run=True))
    with pytest.raises(WeightsError, match=r"gone: does not contain the network of a run"):
        read_colors(WeightsFile(tmp_path / "gone", "", "run", is_run=True))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("given_as", ["file", "folder", "variable"])
def test_find_weights__from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: Trunk, suffix: str, given_as: str
) -> None:
    path = tmp_path / f"smallcnn{suffix}"
    save_file(tensors_of(), path) if suffix == ".safetensors" else torch.save(tensors_of(), path)
    monkeypatch.setenv("TL_WEIGHTS_DIR", str(tmp_path))
    asked = {"file": str(path), "folder": str(tmp_path), "variable": "imagenet"}[given_as]
    file = find("smallcnn", asked)
    assert file is not None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file == WeightsFile(path, digest, f"smallcnn{suffix} (smallcnn, sha256 {digest[:16]})", is_run=False)
    found = read_weights(file, "smallcnn")
    load_into(trunk, found)
    assert equal(trunk, tensors_of())
    assert found.description == file.description
    assert str(tmp_path) not in found.description  # the description is written into model files


def test_find_weights__none() -> None:
    assert find("resnet18", "none") is None


def test_find_weights__safetensors_before_pth_and_names_of_timm_without_slashes(tmp_path: Path) -> None:
    info = BackboneInfo("timm:hub/tiny", 32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    for suffix in (".pt", ".pth", ".safetensors"):
        path = tmp_path / f"timm_hub_tiny{suffix}"
        path.write_bytes(suffix.encode())
        found = find_weights(info, str(tmp_path))
        assert found is not None
        assert found.path == path


def test_find_weights__no_tensor_is_opened(tmp_path: Path) -> None:
    # With cached features, only the hash of a weights file is needed.
    (tmp_path / "resnet18.pth").write_bytes(b"no tensors")
    found = find("resnet18", tmp_path)
    assert found is not None
    assert found.sha256 == hashlib.sha256(b"no tensors").hexdigest()


def test_find_weights__imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    code = (
        "import sys; from tl.trainer.models.backbone_info import BackboneInfo\n"
        "from tl.trainer.models.weight_files import *\n"
        "find_weights(BackboneInfo('x', 8, 8, 'bilinear', (0, 0, 0), (1, 1, 1)), sys.argv[1])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False).returncode == 0


def test_find_weights__whole_classifier_fits_the_trunk(tmp_path: Path) -> None:
    classifier = build_classifier("squeezenet1_0")
    torch.save({"state_dict": classifier.state_dict(), "epoch": 3}, tmp_path / "x.pth")
    found = read("squeezenet1_0", tmp_path / "x.pth")
    trunk = build_trunk("squeezenet1_0")
    load_into(trunk, found, unused=set(classifier.state_dict()) - set(trunk.state_dict()))
    assert equal(trunk, classifier.state_dict())


def test_find_weights__an_earlier_run(finished_run: Run, trunk: Trunk) -> None:
    file = find("smallcnn", finished_run.folder)
    assert file == WeightsFile(
        finished_run.best_path,
        hashlib.sha256(finished_run.best_path.read_bytes()).hexdigest(),
        "run finished",
        is_run=True,
    )
    found = read_weights(file, "smallcnn")
    assert found.description == "run finished"
    load_into(trunk, found)
    best, _ = load_best(finished_run)
    assert equal(trunk, {name.removeprefix("trunk."): tensor for name, tensor in best.items()})


def test_find_weights__run_of_another_backbone(finished_run: Run) -> None:
    found = read("squeezenet1_0", finished_run.folder)
    with pytest.raises(WeightsError, match="run finished: the weights belong to a different network: they lack"):
        load_into(build_trunk("squeezenet1_0"), found)


def test_find_weights__nothing_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights 'gone.pth': no such file or folder \(or give imagenet, or none\)"):
        find("resnet18", "gone.pth")
    with pytest.raises(
        WeightsError, match=r"expected a run folder, or a folder that contains resnet18.safetensors\|.pth\|.pt"
    ):
        find("resnet18", tmp_path)


def test_find_weights__download_that_fails_names_the_file_and_three_ways(no_network: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find("resnet18", "imagenet")
    text = str(caught.value)
    assert "resnet18 (resnet18-f37072fd.pth) could not be downloaded" in text
    assert "put resnet18.pth or .safetensors into a folder and set TL_WEIGHTS_DIR" in text
    assert caught.value.options == ("weights=FILE",)
    assert f"copy resnet18-f37072fd.pth into {no_network}" in text


def test_find_weights__torchs_cache_is_used(no_network: Path) -> None:
    # The name ends in the first digits of the file's hash, which torch checks for downloads but not for the cache.
    no_network.mkdir(parents=True)
    tensors = build_classifier("squeezenet1_0").state_dict()
    torch.save(tensors, no_network / "squeezenet1_0-b66bff10.pth")
    file = find("squeezenet1_0", "imagenet")
    assert file is not None
    assert file.path == no_network / "squeezenet1_0-b66bff10.pth"
    assert file.description == f"squeezenet1_0-b66bff10.pth (squeezenet1_0, sha256 {file.sha256[:16]})"
    assert read_weights(file, "squeezenet1_0").tensors.keys() == tensors.keys()


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_find_weights__torchs_cache_lies_where_torch_says(
    tmp_path: Path, no_network: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "there"))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").touch()
    file = find("resnet18", "imagenet")
    assert file is not None
    assert file.path == folder / "resnet18-f37072fd.pth"


@pytest.mark.parametrize("backbone", ["smallcnn", "vgg_cnn_s"])
def test_find_weights__own_backbones_have_none(backbone: str) -> None:
    with pytest.raises(WeightsError, match=f"{backbone} has no published weights: train from scratch"):
        find(backbone, "imagenet")


@pytest.mark.parametrize("zipped", [True, False])
def test_read_tensors__a_pickle_that_would_run_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    path, proof = tmp_path / "w.pth", tmp_path / "ran"
    if zipped:
        torch.save({"a": torch.zeros(1), "b": RunsCode(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"b": RunsCode(proof)}, protocol=2))
    with pytest.raises(WeightsError, match=r"w.pth: .*not loaded, because loading it could run code"):
        read_tensors(path)
    assert not proof.exists()


def test_read_tensors__a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"<html>404</html>", bytes(range(256)) * 4])
def test_read_tensors__damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: not a readable weights file"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_read_tensors__cut_short(tmp_path: Path, name: str) -> None:
    whole = tmp_path / f"whole-{name}"
    save_file(tensors_of(), whole) if name.endswith("safetensors") else torch.save(tensors_of(), whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"state_dict": 3}, torch.zeros(2)])
def test_read_tensors__no_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="contains no named tensors"):
        read_tensors(tmp_path / "w.pth")


def test_find_weights__run_folder_without_best_is_named(tmp_path: Path, finished_run: Run) -> None:
    shutil.copy(finished_run.config_path, tmp_path / "config.yaml")
    with pytest.raises(WeightsError, match="expected a run folder, or"):
        find("smallcnn", tmp_path)


def test_load_into__densenet_files_name_their_layers_otherwise(tmp_path: Path) -> None:
    classifier = build_classifier("densenet121")
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", name): tensor
        for name, tensor in classifier.state_dict().items()
    }
    assert any("denselayer1.norm.1.weight" in name for name in published)
    torch.save(published, tmp_path / "densenet121.pth")
    load_into(build_classifier("densenet121"), read("densenet121", tmp_path))


def test_load_into__mnasnet_keeps_its_version(tmp_path: Path) -> None:
    torch.save(build_classifier("mnasnet0_5").state_dict(), tmp_path / "mnasnet0_5.pth")
    load_into(build_classifier("mnasnet0_5"), read("mnasnet0_5", tmp_path))
