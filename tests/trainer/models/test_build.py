from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.make import equal, make_class_folders, make_trainable, train_here, weights_of
from tl.errors import ConfigError, WeightsError
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.trainer.config import TrainConfig
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.steps import train_step
from tl.trainer.models.backbone_info import BackboneInfo
from tl.trainer.models.backbones import Trunk, build_classifier, build_timm, build_trunk, cut_trunk, feature_shape
from tl.trainer.models.build import build_network, load_network
from tl.trainer.models.freezing import stages
from tl.trainer.models.network import pooled_shape
from tl.trainer.models.weights import Weights
from tl.trainer.options import resolve
from tl.trainer.run_folder.run import Run

TIMM = "timm:mobilenetv3_small_050"


def trunk_of(name: str) -> Trunk:
    with torch.device("meta"):  # shapes without values, so that large networks cost nothing
        return build_trunk(name)


def shape_of(trunk: Trunk, side: int) -> tuple[int, ...]:
    with torch.device("meta"):
        return feature_shape(trunk, (side, side))


def config_of(backbone: str, **changes: object) -> TrainConfig:
    plain = {"data": "d", "out": "o", "method": "finetune", "weights": "none", "image_size": 32, "backbone": backbone}
    return resolve(TrainConfig(**{**plain, **changes}))  # type: ignore[arg-type]


def info_of(backbone: str) -> BackboneInfo:
    return BackboneInfo(backbone, 224, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "side", "wanted"),
    [
        ("inception_v3", 224, 51_200),  # 5 x 5 x 2048
        ("vgg16", 224, 25_088),  # 7 x 7 x 512, Simonyan & Zisserman 2015
        ("resnet50", 224, 100_352),  # 7 x 7 x 2048
        ("vgg_cnn_s", 224, 18_432),  # 6 x 6 x 512, Chatfield et al. 2014
        ("mobilenet_v2", 224, 62_720),  # 7 x 7 x 1280
        ("smallcnn", 64, 8_192),  # 8 x 8 x 128
    ],
)
def test_pooled_shape__flattened(name: str, side: int, wanted: int) -> None:
    assert pooled_shape(shape_of(trunk_of(name), side), "flatten") == (wanted,)


def test_build_trunk__vgg_cnn_s_layer_by_layer() -> None:
    # Chatfield et al. 2014, table 1: 96, 256 and three of 512 channels; pooling by 3, 2 and 3, rounded up.
    trunk = trunk_of("vgg_cnn_s")
    wanted = {"conv1": (96, 109, 109), "pool1": (96, 37, 37), "conv2": (256, 33, 33), "pool2": (256, 17, 17)}
    for layer, shape in {**wanted, "conv5": (512, 17, 17), "pool5": (512, 6, 6)}.items():
        assert shape_of(cut_trunk(trunk, layer), 224) == shape, layer
    sizes = [tuple(m.weight.shape) for m in trunk if isinstance(m, nn.Conv2d)]
    assert sizes == [(96, 3, 7, 7), (256, 96, 5, 5), (512, 256, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3)]


def test_build_trunk__vgg_cnn_s_normalizes_across_channels_by_hand() -> None:
    (norm,) = [m for m in build_trunk("vgg_cnn_s") if isinstance(m, nn.LocalResponseNorm)]
    pixels = torch.randn(1, 7, 1, 1, generator=torch.Generator().manual_seed(0)) * 30
    found = norm(pixels).flatten().double()
    x = pixels.flatten().double()
    # Krizhevsky et al. 2012: x / (k + alpha / n * sum of squares of n neighbors)^beta, n 5, as Caffe divides by n.
    around = [x[max(0, i - 2) : i + 3].square().sum() for i in range(7)]
    wanted = x / (2 + 5e-4 / 5 * torch.stack(around)) ** 0.75
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)  # a float32 power


@pytest.mark.parametrize(
    ("name", "until", "side", "shape"),
    [
        ("mobilenet_v2", "features.13", 224, (96, 14, 14)),
        ("mobilenet_v2", "features.0", 224, (32, 112, 112)),
        ("resnet18", "layer3", 224, (256, 14, 14)),
        ("resnet18", "layer3.0", 224, (256, 14, 14)),
        ("resnet18", "conv1", 224, (64, 112, 112)),
        ("vgg16", "features.16", 224, (256, 28, 28)),
        ("inception_v3", "Mixed_6e", 299, (768, 17, 17)),
        ("densenet121", "features.denseblock2", 224, (512, 28, 28)),
        ("swin_t", "features.3", 224, (192, 28, 28)),
        ("swin_t", "features.0", 224, (96, 56, 56)),
        ("convnext_tiny", "features.5.3", 224, (384, 14, 14)),
        ("smallcnn", "block2", 64, (64, 16, 16)),
        ("smallcnn", "block2.0", 64, (64, 32, 32)),
    ],
)
def test_cut_trunk__shapes(name: str, until: str, side: int, shape: tuple[int, ...]) -> None:
    cut = cut_trunk(trunk_of(name), until)
    assert shape_of(cut, side) == shape
    whole = trunk_of(name).state_dict()
    kept = cut.state_dict()
    assert kept.keys() < whole.keys()  # names stay, so weights of the whole model still fit
    assert all(kept[key].shape == whole[key].shape for key in kept)


def test_cut_trunk__computes_what_the_whole_computes_on_the_way() -> None:
    trunk = build_trunk("squeezenet1_1").eval()
    seen: list[Tensor] = []
    trunk.get_submodule("features.5").register_forward_hook(lambda module, given, found: seen.append(found))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trunk(pixels.clone())
        # The same operations in the same order: no tolerance.
        assert torch.equal(cut_trunk(trunk, "features.5")(pixels.clone()), seen[0])


@pytest.mark.parametrize(
    ("name", "until", "message"),
    [
        ("resnet18", "layer33", r"trunk_until: no layer 'layer33' \(nearest: 'layer3'\); it can be cut after: conv1, "),
        ("mobilenet_v2", "features.19", r"no layer 'features\.19' \(nearest: 'features\."),
        # Swin's first convolution outputs channels first, everything after it channels last.
        ("swin_t", "features.0.0", r"no layer 'features\.0\.0' \(nearest: 'features\.0'\)"),
        ("resnet18", "layer3.0.conv1", "no layer 'layer3.0.conv1'"),  # inside a residual block
        ("vit_b_16", "encoder", "no layer 'encoder'.*this backbone is not a plain chain of layers"),
        (TIMM, "model.blocks", "no layer 'model.blocks'.*this backbone is not a plain chain of layers"),
        ("smallcnn", "", "no layer ''"),
    ],
)
def test_cut_trunk__unknown_layer(name: str, until: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cut_trunk(trunk_of(name), until)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "has_aux"),
    [
        ({}, True),
        ({"image_size": 300}, True),
        ({"image_size": 224}, False),
        ({"freeze": "all"}, False),
        ({"freeze": "16"}, False),  # all stages, written differently
        ({"method": "features", "weights": "imagenet"}, False),
        ({"trunk_until": "Mixed_6d"}, False),
        ({"trunk_until": "Mixed_6e"}, True),
        ({"freeze": "3"}, True),
        ({"backbone": "googlenet"}, False),
    ],
)
def test_build_network__auxiliary_classifier(changes: dict[str, object], has_aux: bool) -> None:
    with torch.device("meta"):
        config = config_of(**{"backbone": "inception_v3", "image_size": 299, **changes})
        network = build_network(config, info_of(config.backbone), 4, None)
    assert (network.aux is not None) == has_aux


def published_inception() -> dict[str, Tensor]:
    """Tensors of a published file: small numbers that differ from any initialization."""
    with torch.device("meta"):
        shapes = build_classifier("inception_v3").state_dict()
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.rand(tensor.shape, generator=generator) * 0.1
        if tensor.is_floating_point()
        else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in shapes.items()
    }


@pytest.mark.slow
def test_build_network__auxiliary_classifier_takes_the_given_weights(cpu: Machine) -> None:
    given = published_inception()
    config = config_of("inception_v3", image_size=299, weights="imagenet")
    network = build_network(config, info_of("inception_v3"), 4, Weights(given, "w"))
    assert network.aux is not None
    own = network.aux.state_dict()
    convolutions = [name for name in own if not name.startswith("fc.")]
    assert len(convolutions) == 2 * 6  # two layers: convolution, and weight, bias, mean, var, count of its norm
    assert all(torch.equal(own[name], given[f"AuxLogits.{name}"]) for name in convolutions)
    assert own["fc.weight"].shape == (4, 768)  # its classes are new
    assert all(torch.equal(tensor, given[name]) for name, tensor in network.trunk.state_dict().items())


@pytest.mark.slow
def test_inception__trains_with_both_losses(cpu: Machine) -> None:
    network = build_network(config_of("inception_v3", image_size=299), info_of("inception_v3"), 3, None)
    images = torch.randint(0, 256, (2, 299, 299, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 2])
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    trainable, scaler = make_trainable(network.train(), "abc"), torch.amp.GradScaler(enabled=False)
    torch.manual_seed(1)
    (result,) = train_step(trainable, network, [(images, ids, 2)], optimizer, scaler, cpu, Ranks(), None)
    torch.manual_seed(1)  # neither the auxiliary classifier nor the head has dropout
    with torch.no_grad():
        main, aux = network(images)
    wanted = [functional.cross_entropy(logits, ids, reduction="none") for logits in (main, aux)]
    # The same pass twice; sums over thousands of float32 terms, whose order may depend on threads.
    torch.testing.assert_close(result.losses, wanted[0] + 0.4 * wanted[1], rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert isinstance(network.eval()(images[:1]), Tensor)


def test_build_network__flattened_head_fits_the_map() -> None:
    with torch.device("meta"):
        config = config_of("vgg16", image_size=224, pooling="flatten", head="mlp", head_sizes=(8,))
        network = build_network(config, info_of("vgg16"), 3, None)
    assert network.head[0].weight.shape == (8, 25_088)


@pytest.mark.parametrize("name", ["vit_b_16", TIMM])
def test_build_network__conv_head_needs_a_map(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="head conv requires a feature map"):
        build_network(config_of(name, image_size=224, head="conv"), info_of(name), 3, None)


def test_build_network__head_inits_the_same_for_every_trunk() -> None:
    # So that freezing or cutting compares trunks, not random initialization; both trunks end in 512 channels.
    networks = [build_network(config_of(name), info_of(name), 3, None) for name in ("resnet18", "timm:resnet18")]
    assert torch.equal(networks[0].head.weight, networks[1].head.weight)


def test_build_network__cut_and_frozen_half_are_of_the_cut_trunk() -> None:
    network = build_network(config_of("smallcnn", trunk_until="block2", freeze="half"), info_of("smallcnn"), 3, None)
    assert len(stages(network.trunk)) == 2
    assert [p.requires_grad for p in network.trunk.parameters()] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_build_network__published_weights_of_the_whole_model_fit(name: str) -> None:
    whole = {key: tensor.clone() for key, tensor in build_classifier(name).state_dict().items()}
    config = config_of(name, weights="imagenet", image_size=64)
    network = build_network(config, info_of(name), 3, Weights(whole, "w"))
    assert all(torch.equal(tensor, whole[key]) for key, tensor in network.trunk.state_dict().items())


def test_train__cut_run_serves_as_weights_for_the_same_cut(photos: Path, tmp_path: Path) -> None:
    first = train_here(photos, tmp_path / "first", trunk_until="block2").run
    changes = {"method": "finetune", "weights": str(first.folder), "freeze": "all", "audit": False}
    second = train_here(photos, tmp_path / "second", trunk_until="block2", **changes).run
    tensors = [
        {k: t for k, t in weights_of(run).items() if k.startswith("trunk.") and "num_batches" not in k}
        for run in (first, second)
    ]
    assert equal(*tensors)
    # Layers above a cut were never trained, so the run cannot provide the whole trunk.
    with pytest.raises(WeightsError, match=r"they lack 5 tensors, such as block3\.0\.weight"):
        train_here(photos, tmp_path / "third", **changes)


def test_build_network__weights_of_another_backbone_are_named() -> None:
    given = Weights(build_trunk("smallcnn").state_dict(), "small.pth")
    with pytest.raises(WeightsError, match=r"small\.pth: the weights belong to a different network: they lack 100"):
        build_network(config_of("resnet18", weights="w"), info_of("resnet18"), 3, given)


@pytest.mark.slow
def test_vgg_cnn_s__trains_and_exports(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "photos", 4, hw=(40, 40))
    # The dense layers of the paper, with fewer units; 64 px is the smallest image size that its layers can process.
    changes = {"backbone": "vgg_cnn_s", "image_size": 64, "pooling": "flatten", "head": "mlp", "head_sizes": (16, 16)}
    run = train_here(data, tmp_path / "run", epochs=1, **changes).run
    network, _, _ = load_network(run)
    assert isinstance(network.trunk.get_submodule("norm1"), nn.LocalResponseNorm)
    contract = export_run(run, tmp_path / "m.onnx", Silent()).contract
    assert contract.parity.top1_agreement == 1
    assert contract.provenance.backbone == "vgg_cnn_s"


@pytest.mark.slow
def test_timm__trains_and_exports_from_a_weights_file(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "photos", 4, hw=(40, 40))
    torch.manual_seed(7)
    tensors = {name: tensor.contiguous() for name, tensor in build_timm(TIMM).state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    changes = {"method": "finetune", "backbone": TIMM, "weights": str(tmp_path / "w.safetensors"), "image_size": 64}
    run = train_here(data, tmp_path / "run", epochs=1, freeze="all", **changes).run
    network, card, _ = load_network(run)
    assert card.weights.startswith(f"w.safetensors ({TIMM}, sha256 ")
    assert all(torch.equal(t, tensors[k.removeprefix("model.")]) for k, t in network.trunk.state_dict().items())
    assert export_run(run, tmp_path / "m.onnx", Silent()).contract.parity.top1_agreement == 1


def test_timm__unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet81' \(nearest: 'resnet18'\)"):
        build_trunk("timm:resnet81")


@pytest.mark.slow
def test_timm__absent_is_named_with_the_cure(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "photos", 3)
    # None in sys.modules is Python's standard way to make an import fail.
    code = "import sys; sys.modules['timm'] = None; from tl.cli import main; main()"
    words = ["train", data, "--backbone", TIMM, "--weights", "none", "--out", tmp_path / "run", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "tl: timm backbones require an additional package: pip install 'tl-toolkit[train]'\n"
    assert not (tmp_path / "run").exists()


def test_load_network__of_a_run_with_a_cut_trunk(photos: Path, tmp_path: Path) -> None:
    run = train_here(photos, tmp_path / "run", trunk_until="block2", head="conv", head_sizes=(4, 8)).run
    network, card, config = load_network(Run(run.folder))
    assert not network.training
    assert (config.trunk_until, card.class_names) == ("block2", ("blue", "green", "red"))
    assert [name for name, _ in network.trunk.named_children()] == ["block1", "block2"]
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert card.temperature == metrics["temperature"]
