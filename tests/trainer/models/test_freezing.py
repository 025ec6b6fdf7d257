from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainer.make import StopsAt, assert_same_run, stop_and_resume, train_here
from tl.errors import ConfigError
from tl.trainer.fit.optimizers import build_optimizer
from tl.trainer.models.backbones import Trunk, build_trunk
from tl.trainer.models.freezing import ParameterGroup, freeze_trunk, frozen_names, parameter_groups, stages, thaw_trunk
from tl.trainer.run_folder.run import Run

# Stages counted by hand in the papers' tables: a stem and its blocks, or each convolution of a VGG.
STAGE_COUNTS = {
    "mobilenet_v2": 19,
    "resnet18": 9,
    "vgg16": 13,
    "vgg_cnn_s": 5,
    "vit_b_16": 13,
    "swin_t": 16,
    "densenet121": 8,
    "efficientnet_b0": 18,
    "inception_v3": 16,
    "timm:resnet18": 9,
    "smallcnn": 3,
}
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def trunk_of(name: str) -> Trunk:
    with torch.device("meta"):  # names only, no values
        return build_trunk(name)


def named(trunk: nn.Module) -> list[str]:
    return [name for name, _ in trunk.named_parameters()]


def trained(trunk: nn.Module) -> set[str]:
    return {name for name, parameter in trunk.named_parameters() if parameter.requires_grad}


def of_layers(trunk: nn.Module, *layers: str) -> set[str]:
    return {name for name in named(trunk) if name.startswith(tuple(f"{layer}." for layer in layers))}


@pytest.mark.parametrize("name", STAGE_COUNTS)
def test_stages__hold_every_parameter_once(name: str) -> None:
    trunk = trunk_of(name)
    found = stages(trunk)
    assert sorted(parameter for stage in found for parameter in stage) == sorted(named(trunk))
    assert all(found)
    assert len(found) == STAGE_COUNTS[name]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vgg16", "swin_t", "densenet121", "inception_v3"])
def test_stages__run_from_the_input_on(name: str) -> None:
    trunk = trunk_of(name)
    joined = [parameter for stage in stages(trunk) for parameter in stage]
    assert joined == named(trunk)  # torchvision registers layers in the order of use


def test_stages__of_resnet18_by_hand() -> None:
    trunk = trunk_of("resnet18")
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [set(stage) for stage in stages(trunk)] == [
        {"conv1.weight", "bn1.weight", "bn1.bias"},
        *(of_layers(trunk, block) for block in blocks),
    ]


def test_stages__of_a_vision_transformer_by_hand() -> None:
    trunk = trunk_of("vit_b_16")
    first, *blocks = stages(trunk)
    assert set(first) == {"class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias"}
    assert set(blocks[-1]) == of_layers(trunk, "encoder.layers.encoder_layer_11", "encoder.ln")


def test_stages__a_norm_with_its_activation_joins_the_stage_before() -> None:
    # timm's BatchNormAct2d is a norm layer with two children that have no parameters.
    first, *_ = stages(trunk_of("timm:mobilenetv3_small_050"))
    assert set(first) == {"model.conv_stem.weight", "model.bn1.weight", "model.bn1.bias"}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg16", [f"features.{i}" for i in VGG16_CONVOLUTIONS[:6]]),
        ("resnet18", ["conv1", "bn1", "layer1", "layer2.0"]),
        ("mobilenet_v2", [f"features.{i}" for i in range(9)]),
        ("densenet121", [f"features.{x}" for x in ("conv0", "norm0", "denseblock1", "transition1", "denseblock2")]),
        ("smallcnn", ["block1"]),
    ],
)
def test_frozen_names__half(name: str, layers: list[str]) -> None:
    trunk = trunk_of(name)
    frozen = frozen_names(trunk, "half")
    if name == "densenet121":
        layers = [*layers, "features.transition2.norm"]  # a standalone norm belongs to the preceding stage
    assert frozen == of_layers(trunk, *layers)


def test_frozen_names__none_all_and_numbers() -> None:
    trunk = trunk_of("smallcnn")
    assert frozen_names(trunk, "none") == frozen_names(trunk, "0") == set()
    assert frozen_names(trunk, "all") == frozen_names(trunk, "3") == set(named(trunk))
    assert frozen_names(trunk, "2") == of_layers(trunk, "block1", "block2")


def test_frozen_names__all_but_batch_norm() -> None:
    trunk = trunk_of("resnet18")
    free = set(named(trunk)) - frozen_names(trunk, "all-but-bn")
    assert len(free) == 2 * 20  # weight and bias; He et al. 2016 have a norm after each of 20 convolutions
    assert all(".bn" in f".{name}" or "downsample.1" in name for name in free)


@pytest.mark.parametrize(
    ("freeze", "layers"),
    [
        ("features.1", ["features.1"]),  # not features.10 to features.18
        ("features.0, features.18.0", ["features.0", "features.18.0"]),
        (r"^features\.[0-2]\.", ["features.0", "features.1", "features.2"]),
        (r"features.17,\.18\.", ["features.17", "features.18"]),
        ("features", ["features"]),
    ],
)
def test_frozen_names__layers_and_regular_expressions(freeze: str, layers: list[str]) -> None:
    trunk = trunk_of("mobilenet_v2")
    assert frozen_names(trunk, freeze) == of_layers(trunk, *layers)


@pytest.mark.parametrize(
    ("name", "freeze", "message"),
    [
        ("vgg16", "all-but-bn", "freeze all-but-bn: this backbone has no batch norm layers"),
        ("smallcnn", "4", "freeze 4: this backbone has only 3 stages"),
        ("smallcnn", "blok1", r"freeze: 'blok1' matches no layer \(nearest: 'block1"),
        ("smallcnn", "block1,blok2.0", r"'blok2.0' matches no layer \(nearest: 'block2.0'\): give none, all, half"),
        ("smallcnn", "-1", "'-1' matches no layer"),
        ("smallcnn", "block[1", r"'block\[1' is neither a layer nor a regular expression"),
        # An empty pattern matches every name and would freeze everything by accident.
        ("smallcnn", "", "freeze: "),
        ("smallcnn", "block1,", "freeze: "),
        ("smallcnn", "block1, ,block2", "freeze: "),
    ],
)
def test_frozen_names__faults(name: str, freeze: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        frozen_names(trunk_of(name), freeze)
    assert "\n" not in str(caught.value)


def test_freeze_trunk__trains_the_rest_again() -> None:
    trunk = trunk_of("smallcnn")
    freeze_trunk(trunk, "all")
    assert trained(trunk) == set()
    freeze_trunk(trunk, "block1")
    assert trained(trunk) == of_layers(trunk, "block2", "block3")


def test_thaw_trunk__by_epoch() -> None:
    trunk = trunk_of("smallcnn")
    wanted = [(), (), ("block3",), ("block3",), ("block2", "block3"), ("block2", "block3")]
    for epoch, layers in enumerate([*wanted, ("block",), ("block",), ("block",)], start=1):
        thaw_trunk(trunk, epoch, 2)
        all_of_them = set(named(trunk)) if layers == ("block",) else of_layers(trunk, *layers)
        assert trained(trunk) == (all_of_them if layers else set()), epoch


def test_parameter_groups__decay_by_hand() -> None:
    trunk, head, aux = build_trunk("smallcnn"), nn.Linear(128, 2), nn.Linear(3, 2)
    groups = parameter_groups(trunk, [head, aux], 0.5)
    # Each stage has half the rate of the next; the head follows the last stage.
    assert [group.lr_factor for group in groups] == [0.125, 0.25, 0.5, 1.0]
    wanted = [*(list(block.parameters()) for block in trunk), [*head.parameters(), *aux.parameters()]]
    assert [[id(p) for p in group.parameters] for group in groups] == [[id(p) for p in part] for part in wanted]
    optimizer = build_optimizer("sgd", groups, 0.1, momentum=0.0, weight_decay=0.0)
    # One float64 product each.
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0125, 0.025, 0.05, 0.1], rel=1e-12)


def test_parameter_groups__without_decay() -> None:
    trunk, head = build_trunk("smallcnn"), nn.Linear(128, 2)
    (group,) = parameter_groups(trunk, [head], 1.0)
    assert group == ParameterGroup((*trunk.parameters(), *head.parameters()), 1.0)


@pytest.mark.parametrize("freeze", ["half", "all"])
def test_parameter_groups__frozen_ones_are_there(freeze: str) -> None:
    trunk = trunk_of("resnet18")
    freeze_trunk(trunk, freeze)
    groups = parameter_groups(trunk, [], 0.9)
    assert sum(len(group.parameters) for group in groups) == len(named(trunk))


def last_state(run: Run) -> dict[str, Tensor]:
    """The network after its last epoch, best or not."""
    state: dict[str, Tensor] = torch.load(run.last_path, weights_only=True)["module"]
    return state


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if name.startswith("trunk.") and not torch.equal(before[name], after[name])}


FREEZING = {
    "all": set(),
    "block1": {f"trunk.block{i}.{place}" for i in (2, 3) for place in ("0", "1")},
    "half": {f"trunk.block{i}.{place}" for i in (2, 3) for place in ("0", "1")},
    "all-but-bn": {f"trunk.block{i}.1" for i in (1, 2, 3)},
    "none": {f"trunk.block{i}.{place}" for i in (1, 2, 3) for place in ("0", "1")},
}


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("freeze", FREEZING)
def test_train__moves_what_is_not_frozen(
    photos: Path, finished_run: Run, tmp_path: Path, freeze: str, ema_decay: float | None
) -> None:
    changes = {"method": "finetune", "weights": str(finished_run.folder), "freeze": freeze, "ema_decay": ema_decay}
    changes |= {"optimizer": "sgd"}  # the default does not update batch-norm statistics
    # Weight decay and momentum would change a parameter without a gradient.
    run = train_here(photos, tmp_path / "r", weight_decay=0.1, momentum=0.9, audit=False, **changes).run
    before = load_file(finished_run.best_path)
    # For a batch norm: weight, bias, running mean and variance, and the number of batches.
    wanted = {name for name in before if name.rpartition(".")[0] in FREEZING[freeze]}
    assert moved(before, last_state(run)) == wanted
    frozen = {name for name in before if name.startswith("trunk.")} - wanted
    best = load_file(run.best_path)
    assert all(torch.equal(best[name], before[name]) for name in frozen)


def test_train__unfreezes_from_the_output_on(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    changes = {"method": "finetune", "weights": str(finished_run.folder), "audit": False, "unfreeze_every": 1}
    before = load_file(finished_run.best_path)
    seen = [moved(before, last_state(train_here(photos, tmp_path / f"{n}", epochs=n, **changes).run)) for n in (1, 3)]
    assert seen[0] == set()
    assert {name.split(".")[1] for name in seen[1]} == {"block2", "block3"}


def test_train__resumed_unfreezing_equals_never_interrupted(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    changes = {"method": "finetune", "weights": str(finished_run.folder), "audit": False, "unfreeze_every": 1}
    changes |= {"epochs": 4, "optimizer": "adamw", "layer_lr_decay": 0.8}
    whole = train_here(photos, tmp_path / "whole", **changes).run
    assert_same_run(stop_and_resume(photos, tmp_path / "stopped", StopsAt(3), **changes), whole)
