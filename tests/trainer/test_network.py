from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tl.trainer.backbones import Trunk, build_trunk
from tl.trainer.heads import build_head
from tl.trainer.network import Deployed, DeployedClassifier, Network, Normalise, Standardise, feature_length

MEAN, STD = (0.5, 0.25, 0.0), (0.25, 0.5, 1.0)


def make_network(*, frozen: bool = False, pooling: str = "gap", side: int = 16) -> Network:
    torch.manual_seed(0)
    features = feature_length((128, side // 8, side // 8), pooling)  # type: ignore[arg-type]
    return Network(
        Normalise(MEAN, STD),
        build_trunk("smallcnn"),
        Standardise(features),
        build_head("linear", features, 3, sizes=(), dropout=0.0),
        pooling=pooling,  # type: ignore[arg-type]
        frozen_trunk=frozen,
    )


def make_images(count: int = 4, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def train_a_step(network: Network) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    network.train()
    nn.functional.cross_entropy(network(make_images()), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()


def test_normalise__by_hand() -> None:
    images = torch.tensor([[[[0, 0, 0]], [[255, 255, 255]], [[51, 102, 204]]]], dtype=torch.uint8)  # (1, 3, 1, 3)
    pixels = Normalise(MEAN, STD)(images)
    assert pixels.shape == (1, 3, 3, 1)
    wanted = [[-2.0, 2.0, -1.2], [-0.5, 1.5, 0.3], [0.0, 1.0, 0.8]]
    # Two float32 roundings of values up to 255, divided by at least 63: under 1e-6.
    torch.testing.assert_close(pixels[0, :, :, 0], torch.tensor(wanted), rtol=0, atol=1e-6)


def test_normalise__is_no_parameter_but_is_saved() -> None:
    normalise = Normalise(MEAN, STD)
    assert list(normalise.parameters()) == []
    assert set(normalise.state_dict()) == {"mean", "std"}


def test_standardise__is_the_identity_before_it_is_fitted() -> None:
    embeddings = torch.randn(3, 5)
    assert torch.equal(Standardise(5)(embeddings), embeddings)


def test_standardise__by_hand() -> None:
    # Spreads 1 and 3, mean spread 4/3 with the constant third feature, whose spread is held at a tenth of that.
    standardise = Standardise(3)
    standardise.fit(torch.tensor([[1.0, 10.0, 7.0], [3.0, 16.0, 7.0]]))
    found = standardise(torch.tensor([[1.0, 16.0, 7.0 + 4 / 30], [2.0, 13.0, 7.0]]))
    # 7 + 4/30 is rounded to float32 (2^-22 around 7) and then divided by 4/30.
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), rtol=0, atol=5e-6)


def test_standardise__a_single_picture_gives_finite_numbers() -> None:
    standardise = Standardise(4)
    standardise.fit(torch.ones(1, 4))
    assert torch.equal(standardise(torch.ones(2, 4)), torch.zeros(2, 4))


def test_network__logits_are_of_standardised_embeddings() -> None:
    network = make_network().eval()
    embeddings = network.embed(make_images()).detach()
    network.standardise.fit(embeddings)
    wanted = network.head((embeddings - network.standardise.mean) / network.standardise.std)
    assert torch.equal(network(make_images()), wanted)
    assert torch.equal(network.classify(embeddings), wanted)


def test_network__gap_is_the_mean_of_the_map() -> None:
    network = make_network().eval()
    features = network.trunk(network.normalise(make_images()))
    assert features.shape == (4, 128, 2, 2)
    wanted = features.sum(dim=(2, 3)) / 4
    torch.testing.assert_close(network.embed(make_images()), wanted, rtol=0, atol=1e-6)  # a sum of four in any order
    assert network(make_images()).shape == (4, 3)


def test_network__flatten_keeps_the_map() -> None:
    network = make_network(pooling="flatten").eval()
    features = network.trunk(network.normalise(make_images()))
    assert torch.equal(network.embed(make_images()), features.reshape(4, 512))


def test_network__embedding_trunks_are_not_pooled() -> None:
    class Flat(Trunk):
        kind = "embedding"

    network = Network(
        Normalise(MEAN, STD), Flat(nn.Flatten()), Standardise(12), nn.Linear(12, 2), pooling="gap", frozen_trunk=False
    )
    assert network.embed(make_images(2, 2)).shape == (2, 12)


@pytest.mark.parametrize("start_in_training", [True, False])
def test_network__frozen_trunk_stays_bit_for_bit(start_in_training: bool) -> None:
    network = make_network(frozen=True).train(start_in_training)
    before = {name: tensor.clone() for name, tensor in network.trunk.state_dict().items()}
    head = network.head.weight.clone()
    for _ in range(3):
        train_a_step(network)
    after = network.trunk.state_dict()
    assert any("running_var" in name for name in after)
    assert any("num_batches_tracked" in name for name in after)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert not torch.equal(head, network.head.weight)


def test_network__trunk_that_is_not_frozen_trains() -> None:
    network = make_network()
    before = {name: tensor.clone() for name, tensor in network.trunk.state_dict().items()}
    train_a_step(network)
    assert all(not torch.equal(before[name], tensor) for name, tensor in network.trunk.state_dict().items())


def test_network__train_and_eval_modes() -> None:
    frozen, free = make_network(frozen=True), make_network()
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
    assert torch.equal(embedding, network.embed(make_images()))


def test_deployed__a_batch_equals_its_pictures_alone() -> None:
    module = Deployed(make_network().eval(), 1.0)
    batched, _ = module(make_images(5))
    alone = torch.cat([module(image[None])[0] for image in make_images(5)])
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-6)  # the project's bound for batch N against N batches


def test_deployed_classifier__softmax_of_its_logits() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    (probabilities,) = DeployedClassifier(Normalise(MEAN, STD), classifier)(make_images(3, 2))
    wanted = torch.softmax(classifier(Normalise(MEAN, STD)(make_images(3, 2))), dim=1)
    assert torch.equal(probabilities, wanted)


@pytest.mark.parametrize(
    ("shape", "pooling", "length"),
    [((5, 2, 3), "gap", 5), ((5, 2, 3), "flatten", 30), ((5,), "gap", 5), ((5,), "flatten", 5)],
)
def test_feature_length__by_hand(shape: tuple[int, ...], pooling: str, length: int) -> None:
    assert feature_length(shape, pooling) == length  # type: ignore[arg-type]
