"""One suite for every kind of backbone and head: build it, overfit eight images, export it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from tests.trainer.make import make_class_folders, read_rows, train_here
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.trainer.models import backbones
from tl.trainer.models import build as networks
from tl.trainer.models.backbone_info import OWN_BACKBONES
from tl.trainer.run_folder.run import Run


@dataclass(frozen=True)
class Kind:
    """A backbone with the smallest image size it accepts and its cut point, so that a test takes seconds."""

    name: str
    side: int
    until: str | None = None
    has_map: bool = True
    is_slow: bool = True


KINDS = [
    Kind("smallcnn", 32, is_slow=False),
    Kind("vgg_cnn_s", 64),
    Kind("alexnet", 64, "features.9"),
    Kind("convnext_tiny", 32, "features.2"),
    Kind("densenet121", 32, "features.transition1"),
    Kind("efficientnet_b0", 32, "features.3"),
    Kind("inception_v3", 96, "Mixed_5b"),
    Kind("mnasnet0_5", 32, "layers.8"),
    Kind("mobilenet_v2", 32, "features.5"),
    Kind("regnet_y_400mf", 32, "trunk_output.block2"),
    Kind("resnet18", 32, "layer2"),
    Kind("shufflenet_v2_x0_5", 64, "stage2"),
    Kind("squeezenet1_1", 64),
    Kind("swin_t", 64, "features.1"),
    Kind("vit_b_16", 32, has_map=False),
    Kind("timm:mobilenetv3_small_050", 32, has_map=False),
]
EPOCHS = 12  # of one step each
HEADS_ON = ("smallcnn", "vit_b_16")  # a map and an embedding, the smallest of each


@dataclass(frozen=True)
class TrainedBackbone:
    """A kind of backbone, tensors for it, and a run that started from them."""

    kind: Kind
    photos: Path
    options: dict[str, Any]
    run: Run


def as_parameter(kind: Kind) -> Any:
    return pytest.param(kind, id=kind.name, marks=[pytest.mark.slow] if kind.is_slow else [])


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four red and four blue training images, and as many others."""
    root = tmp_path_factory.mktemp("eight")
    make_class_folders(root / "train", 4, ["blue", "red"], hw=(40, 40))
    make_class_folders(root / "val", 4, ["blue", "red"], hw=(42, 40))
    return root


def build_small_vit(name: str) -> nn.Module:
    """torchvision's vision transformer with two thin blocks for images of 32 px: the published sizes take minutes."""
    options = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return VisionTransformer(**options)


@pytest.fixture(scope="module", params=[as_parameter(kind) for kind in KINDS])
def trained(
    request: pytest.FixtureRequest, eight: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrainedBackbone]:
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        if kind.name == "vit_b_16":
            for module in (backbones, networks):
                patch.setattr(module, "build_classifier", build_small_vit)
        torch.manual_seed(5)
        tensors = backbones.build_trunk(kind.name).state_dict()
        # Names in timm's own files do not start with "model.".
        torch.save({name.removeprefix("model."): t for name, t in tensors.items()}, folder / "weights.pth")
        options = {"backbone": kind.name, "image_size": kind.side, "trunk_until": kind.until, "audit": False}
        options |= {"weights": str(folder / "weights.pth"), "batch_size": 8, "head_init": "random"}
        changes = {
            "warmup_epochs": 0.0,
            "optimizer": "adam",
            "lr": 1e-3,
            "epochs": EPOCHS,
            "schedule": "constant",
            "monitor": "train_loss",
        }
        run = train_here(eight, folder / "run", method="finetune", **options, **changes).run
        yield TrainedBackbone(kind, eight, options, run)


def test_kinds__hold_every_backbone_of_our_own() -> None:
    assert set(OWN_BACKBONES) <= {kind.name for kind in KINDS}


def test_backbone__learns_eight_images(trained: TrainedBackbone) -> None:
    losses = [float(row["train_loss"]) for row in read_rows(trained.run.folder / "history.csv")]
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.5 * losses[0]  # without learning, the loss stays near log 2


def test_backbone__exports(trained: TrainedBackbone, tmp_path: Path) -> None:
    contract = export_run(trained.run, tmp_path / "m.onnx", Silent()).contract
    assert contract.parity.images == 8
    assert contract.parity.top1_agreement == 1
    assert contract.provenance.backbone == trained.kind.name


def suits(kind: Kind, head: str) -> bool:
    """A linear head for every backbone; the others for one map and one embedding, since nothing else affects a head."""
    return head == "linear" or (kind.name in HEADS_ON and (kind.has_map or head != "conv"))


@pytest.mark.parametrize(
    ("trained", "head"),
    [
        pytest.param(kind, head, id=f"{kind.name}-{head}", marks=[pytest.mark.slow] if kind.is_slow else [])
        for kind in KINDS
        for head in ("linear", "mlp", "conv", "svm")
        if suits(kind, head)
    ],
    indirect=["trained"],
)
def test_head__learns_eight_images(trained: TrainedBackbone, tmp_path: Path, head: str) -> None:
    changes = {
        "linear": {"epochs": None},
        "svm": {"epochs": None},
        "mlp": {"epochs": 30, "head_sizes": (32, 16), "lr": 0.01},
        "conv": {"epochs": 30, "head_sizes": (8, 16), "lr": 0.01},
    }[head]
    run = train_here(trained.photos, tmp_path / "run", method="features", head=head, **trained.options, **changes).run
    if head in ("linear", "svm"):  # solved, not trained by steps
        assert max(float(row["train_top1_accuracy"]) for row in read_rows(run.folder / "c_search.csv")) == 1
    else:
        losses = [float(row["train_loss"]) for row in read_rows(run.folder / "history.csv")]
        assert min(losses) < 0.5 * losses[0]
    if trained.kind.name == "smallcnn":  # a head does not depend on the layers below it
        assert export_run(run, tmp_path / "m.onnx", Silent()).contract.parity.top1_agreement == 1
