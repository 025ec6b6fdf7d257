from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tl.trainer.models.backbones import Trunk, build_trunk
from tl.trainer.models.freezing import freeze_trunk
from tl.trainer.models.network import (
    Deployed,
    DeployedClassifier,
    FeaturePooling,
    Network,
    Normalize,
    Standardize,
    build_head,
    pooled_shape,
)

MEAN, STD = (0.5, 0.25, 0.0), (0.25, 0.5, 1.0)


def make_network(*, freeze: str = "none", pooling: FeaturePooling = "gap", side: int = 16) -> Network:
    torch.manual_seed(0)
    trunk = build_trunk("smallcnn")
    freeze_trunk(trunk, freeze)
    shape = pooled_shape((128, side // 8, side // 8), pooling)
    head = build_head("conv" if pooling == "map" else "linear", shape, 3, sizes=(4,), dropout=0.0)
    return Network(Normalize(MEAN, STD), trunk, Standardize(shape), head, pooling=pooling)


def make_images(count: int = 4, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def train_a_step(network: Network) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    network.train()
    nn.functional.cross_entropy(network(make_images()), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()


def test_normalize__by_hand() -> None:
    images = torch.tensor([[[[0, 0, 0]], [[255, 255, 255]], [[51, 102, 204]]]], dtype=torch.uint8)  # (1, 3, 1, 3)
    pixels = Normalize(MEAN, STD)(images)
    assert pixels.shape == (1, 3, 3, 1)
    wanted = [[-2.0, 2.0, -1.2], [-0.5, 1.5, 0.3], [0.0, 1.0, 0.8]]
    # Two float32 roundings of values up to 255, divided by at least 63: under 1e-6.
    torch.testing.assert_close(pixels[0, :, :, 0], torch.tensor(wanted), rtol=0, atol=1e-6)


def test_normalize__is_no_parameter_but_is_saved() -> None:
    normalize = Normalize(MEAN, STD)
    assert list(normalize.parameters()) == []
    assert set(normalize.state_dict()) == {"mean", "std"}


def test_standardize__is_the_identity_before_it_is_fitted() -> None:
    embeddings = torch.randn(3, 5)
    assert torch.equal(Standardize((5,))(embeddings), embeddings)


def test_standardize__by_hand() -> None:
    # Standard deviations 1 and 3, with a mean of 4/3 including the constant third feature, which is clamped to a tenth
    # of it.
    standardize = Standardize((3,))
    standardize.fit(torch.tensor([[1.0, 10.0, 7.0], [3.0, 16.0, 7.0]]))
    found = standardize(torch.tensor([[1.0, 16.0, 7.0 + 4 / 30], [2.0, 13.0, 7.0]]))
    # 7 + 4/30 is rounded to float32 (2^-22 around 7) and then divided by 4/30.
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), rtol=0, atol=5e-6)


def test_standardize__each_channel_of_a_map() -> None:
    maps = 5 * torch.randn(6, 3, 4, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 9, -9]).view(
        1, 3, 1, 1
    )
    standardize = Standardize((3, 4, 2))
    assert standardize.mean.shape == standardize.std.shape == (3, 1, 1)
    assert torch.equal(standardize(maps), maps)
    standardize.fit(maps)
    values = maps.numpy().astype("float64").transpose(1, 0, 2, 3).reshape(3, -1)
    # float32 sums of 48 values up to 25 against float64.
    torch.testing.assert_close(
        standardize.mean.flatten().double(), torch.tensor(values.mean(axis=1)), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(standardize.std.flatten().double(), torch.tensor(values.std(axis=1)), rtol=0, atol=1e-5)
    wanted = (maps - standardize.mean) / standardize.std
    assert torch.equal(standardize(maps), wanted)


def test_standardize__a_map_may_have_another_size_than_it_was_measured_on() -> None:
    standardize = Standardize((3, 4, 2))
    standardize.fit(torch.randn(6, 3, 4, 2))
    assert standardize(torch.randn(1, 3, 7, 5)).shape == (1, 3, 7, 5)


def test_standardize__a_dead_channel_is_not_blown_up() -> None:
    maps = torch.zeros(4, 2, 2, 2)
    maps[:, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1)
    standardize = Standardize((2, 2, 2))
    standardize.fit(maps)
    # Standard deviations 1 and 0: the second is clamped to a tenth of their mean.
    torch.testing.assert_close(standardize.std.flatten(), torch.tensor([1.0, 0.05]), rtol=1e-6, atol=0)  # float32


def test_standardize__a_single_image_gives_finite_numbers() -> None:
    standardize = Standardize((4,))
    standardize.fit(torch.ones(1, 4))
    assert torch.equal(standardize(torch.ones(2, 4)), torch.zeros(2, 4))


def test_network__logits_are_of_standardized_embeddings() -> None:
    network = make_network().eval()
    embeddings = network.features(make_images()).detach()
    network.standardize.fit(embeddings)
    wanted = network.head((embeddings - network.standardize.mean) / network.standardize.std)
    assert torch.equal(network(make_images()), wanted)
    assert torch.equal(network.classify(embeddings), wanted)


def test_network__gap_is_the_mean_of_the_map() -> None:
    network = make_network().eval()
    features = network.trunk(network.normalize(make_images()))
    assert features.shape == (4, 128, 2, 2)
    wanted = features.sum(dim=(2, 3)) / 4
    torch.testing.assert_close(network.features(make_images()), wanted, rtol=0, atol=1e-6)  # a sum of four in any order
    assert network(make_images()).shape == (4, 3)


def test_network__flatten_keeps_the_map() -> None:
    network = make_network(pooling="flatten").eval()
    features = network.trunk(network.normalize(make_images()))
    assert torch.equal(network.features(make_images()), features.reshape(4, 512))


def test_network__embedding_trunks_are_not_pooled() -> None:
    class Flat(Trunk):
        kind = "embedding"

    network = Network(Normalize(MEAN, STD), Flat(nn.Flatten()), Standardize((12,)), nn.Linear(12, 2), pooling="gap")
    assert network.features(make_images(2, 2)).shape == (2, 12)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are no longer bitwise equal."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize("start_in_training", [True, False])
def test_network__frozen_trunk_stays_bit_for_bit(start_in_training: bool) -> None:
    network = make_network(freeze="all").train(start_in_training)
    before, head = tensors_of(network.trunk), tensors_of(network.head)
    for _ in range(3):
        train_a_step(network)
    assert any("running_var" in name for name in before)
    assert any("num_batches_tracked" in name for name in before)
    assert changed(network.trunk, before) == set()
    assert changed(network.head, head) == set(head)


@pytest.mark.parametrize("frozen", [1, 2])
def test_network__frozen_stages_keep_their_statistics_still(frozen: int) -> None:
    network = make_network(freeze=str(frozen))
    before = tensors_of(network.trunk)
    for _ in range(3):
        train_a_step(network)
    moved = {name for name in before if int(name[len("block")]) > frozen}
    assert {name.split(".")[0] for name in moved} == {f"block{i}" for i in range(frozen + 1, 4)}
    assert any("running_mean" in name for name in moved)
    assert changed(network.trunk, before) == moved


def test_network__trained_batch_norm_measures_over_frozen_convolutions() -> None:
    network = make_network(freeze="all-but-bn")
    before = tensors_of(network.trunk)
    for _ in range(3):
        train_a_step(network)
    assert changed(network.trunk, before) == {name for name in before if name.split(".")[1] == "1"}


def test_network__a_frozen_batch_norm_beside_trained_convolutions_keeps_its_statistics() -> None:
    network = make_network(freeze=r"\.1\.")  # the norms of every block
    before = tensors_of(network.trunk)
    for _ in range(3):
        train_a_step(network)
    assert changed(network.trunk, before) == {name for name in before if name.split(".")[1] == "0"}


def test_network__fixed_batch_norm_trains_without_new_statistics() -> None:
    network = make_network()
    network.trunk.has_fixed_batch_norm = True
    before = tensors_of(network.trunk)
    for _ in range(3):
        train_a_step(network)
    assert [[module.training for module in block[:2]] for block in network.trunk] == [[True, False]] * 3
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed(network.trunk, before) == {name for name in before if not name.endswith(statistics)}


def test_network__modes_follow_what_is_frozen_at_the_time() -> None:
    network = make_network(freeze="all")
    for freeze, modes in (("2", [False, False, True]), ("none", [True] * 3), ("all", [False] * 3)):
        freeze_trunk(network.trunk, freeze)
        network.train()
        assert [block[1].training for block in network.trunk] == modes


def test_network__trunk_that_is_not_frozen_trains() -> None:
    network = make_network()
    before = {name: tensor.clone() for name, tensor in network.trunk.state_dict().items()}
    train_a_step(network)
    assert all(not torch.equal(before[name], tensor) for name, tensor in network.trunk.state_dict().items())


def test_network__train_and_eval_modes() -> None:
    frozen, free = make_network(freeze="all"), make_network()
    assert frozen.train() is frozen
    assert frozen.head.training
    assert not any(module.training for module in frozen.trunk.modules())
    assert all(module.training for module in free.train().trunk.modules())
    assert not any(module.training for module in free.eval().modules())


def test_deployed__temperature_softmax_and_embedding() -> None:
    network = make_network().eval()
    probabilities, embedding = Deployed(network, 2.0)(make_images())
    wanted = torch.softmax(network(make_images()).double() / 2.0, dim=1)
    # float32 softmax of three classes against float64.
    torch.testing.assert_close(probabilities.double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(embedding, network.features(make_images()))


def test_deployed__embedding_of_a_map_is_its_average() -> None:
    network = make_network(pooling="map").eval()
    probabilities, embedding = Deployed(network, 1.0)(make_images())
    assert (probabilities.shape, embedding.shape) == ((4, 3), (4, 128))
    assert torch.equal(embedding, network.features(make_images()).mean(dim=(2, 3)))


def test_deployed__maps_need_a_linear_head_on_an_average() -> None:
    with pytest.raises(ValueError, match="no class activation maps"):
        Deployed(make_network(pooling="map"), 1.0, with_cam=True)


class Tapped(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))[:, :3]


def test_network__auxiliary_classifier_is_used_only_in_training() -> None:
    plain = make_network(freeze="all")
    network = Network(
        plain.normalize, plain.trunk, plain.standardize, plain.head, pooling="gap", aux=Tapped(), aux_layer="block2"
    )
    logits = network.eval()(make_images())
    assert isinstance(logits, Tensor)
    first, second = network.train()(make_images())
    assert torch.equal(first, logits)
    pixels = network.normalize(make_images())
    assert torch.equal(second, network.trunk[:2](pixels).mean(dim=(2, 3))[:, :3])


def test_deployed__a_batch_equals_its_images_alone() -> None:
    module = Deployed(make_network().eval(), 1.0)
    batched, _ = module(make_images(5))
    alone = torch.cat([module(image[None])[0] for image in make_images(5)])
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-6)  # tolerance for batch N against N batches


def test_deployed_classifier__softmax_of_its_logits() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    (probabilities,) = DeployedClassifier(Normalize(MEAN, STD), classifier)(make_images(3, 2))
    wanted = torch.softmax(classifier(Normalize(MEAN, STD)(make_images(3, 2))), dim=1)
    assert torch.equal(probabilities, wanted)


@pytest.mark.parametrize(
    ("shape", "pooling", "wanted"),
    [
        ((5, 2, 3), "gap", (5,)),
        ((5, 2, 3), "flatten", (30,)),
        ((5, 2, 3), "map", (5, 2, 3)),
        ((5,), "gap", (5,)),
        ((5,), "flatten", (5,)),
        ((5,), "map", (5,)),
    ],
)
def test_pooled_shape__by_hand(shape: tuple[int, ...], pooling: FeaturePooling, wanted: tuple[int, ...]) -> None:
    assert pooled_shape(shape, pooling) == wanted


@pytest.mark.parametrize("pooling", ["gap", "flatten", "map"])
def test_pooled_shape__is_that_of_the_features(pooling: FeaturePooling) -> None:
    network = make_network(pooling=pooling, side=24).eval()
    assert network.features(make_images(2, 24)).shape == (2, *pooled_shape((128, 3, 3), pooling))
    assert network(make_images(2, 24)).shape == (2, 3)
