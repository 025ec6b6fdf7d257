from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.make import assert_same_run, equal, read_rows, train_here, weights_of
from tl.trainer.fit.steps import Mix, build_mix
from tl.trainer.models.network import Normalize

CLASSES = 5


def images(count: int = 4) -> Tensor:
    """Integers that differ between all images and positions, uint8 (N, 6, 10, 3)."""
    values = torch.arange(count * 6 * 10 * 3).reshape(count, 6, 10, 3) * 7 % 251
    return values.to(torch.uint8)


def build(mixup: float, cutmix: float) -> Mix:
    mix = build_mix(mixup, cutmix, CLASSES)
    assert mix is not None
    return mix


def partner_of(shares: Tensor, own: int) -> int:
    """The other class that an image has a share of, or its own class if there is none."""
    others = [i for i, share in enumerate(shares.tolist()) if share > 0 and i != own]
    return others[0] if others else own


def test_build_mix__off() -> None:
    assert build_mix(0, 0, CLASSES) is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_mix__shares_sum_to_one(mixup: float, cutmix: float, seed: int) -> None:
    torch.manual_seed(seed)
    given, ids = images(), torch.tensor([3, 1, 4, 0])
    mixed, shares = build(mixup, cutmix)(given, ids)
    assert (mixed.shape, mixed.dtype, shares.shape) == (given.shape, torch.float32, (4, CLASSES))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))  # two float32 numbers
    assert float(shares.min()) >= 0
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 255
    assert torch.equal(given, images())  # the input is not modified


@pytest.mark.parametrize("seed", range(5))
def test_mixup__blends_pixels_as_it_blends_classes(seed: int) -> None:
    torch.manual_seed(seed)
    mixed, shares = build(1.0, 0.0)(images(), torch.arange(4))
    plain = images().float()
    for i in range(4):
        other = partner_of(shares[i], i)
        wanted = shares[i, i] * plain[i] + (1 - shares[i, i]) * plain[other]
        assert other != i
        # Two float32 products of up to 255: about 2 x 2^-24 x 255.
        torch.testing.assert_close(mixed[i], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix__pastes_real_pixels(seed: int) -> None:
    torch.manual_seed(seed)
    mixed, shares = build(0.0, 1.0)(images(), torch.arange(4))
    plain = images().float()
    for i in range(4):
        other = partner_of(shares[i], i)
        own, pasted = (mixed[i] == plain[i]).all(dim=2), (mixed[i] == plain[other]).all(dim=2)
        assert bool((own | pasted).all())
        # The share equals the area: 60 pixels, counted and divided in float32.
        assert float(own.float().mean()) == pytest.approx(float(shares[i, i]), abs=1e-6)
        if other != i:
            rows, columns = (pasted.any(dim=1).nonzero(), pasted.any(dim=0).nonzero())
            box = pasted[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert bool(box.all())  # one rectangle, not stripes from a wrong memory layout


def test_mix__of_both_draws_each() -> None:
    mix, kinds = build(1.0, 1.0), set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, _ = mix(images(), torch.arange(4))
        kinds.add("cutmix" if torch.equal(mixed, mixed.round()) else "mixup")
    assert kinds == {"cutmix", "mixup"}


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mix__depends_on_torchs_seed_alone(mixup: float, cutmix: float) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(build(mixup, cutmix)(images(), torch.arange(4)))
    first, again, other = found
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0)])
def test_mix__of_one_image_is_itself(mixup: float, cutmix: float) -> None:
    mixed, shares = build(mixup, cutmix)(images(1), torch.tensor([2]))
    # Mixed with itself: two float32 products of up to 255.
    torch.testing.assert_close(mixed, images(1).float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(shares, torch.eye(CLASSES)[[2]])


def test_mix__is_normalized_like_a_image() -> None:
    normalize = Normalize((0.1, 0.2, 0.3), (0.5, 0.4, 0.3))
    torch.manual_seed(0)
    mixed, _ = build(0.0, 1.0)(images(), torch.arange(4))
    # Pasted pixels are integers, so conversion to bytes loses nothing.
    assert torch.equal(normalize(mixed), normalize(mixed.to(torch.uint8)))


def test_train__mixing_repeats_and_matters(photos: Path, tmp_path: Path) -> None:
    changes = {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"}
    first, again = (train_here(photos, tmp_path / name, **changes).run for name in "ab")
    plain = train_here(photos, tmp_path / "c", **{**changes, "mixup": 0.0, "cutmix": 0.0}).run
    assert_same_run(first, again)
    assert not equal(weights_of(first), weights_of(plain))
    assert all(0 < float(row["train_loss"]) < 10 for row in read_rows(first.folder / "history.csv"))
