from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.make import make_png
from tl.data import Cache
from tl.data.images import ImageStore, load_images
from tl.data.manifests import LabeledImage
from tl.errors import ImageReadError
from tl.progress import Silent
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.trainer.fit.augment import Augment, build_augment
from tl.trainer.fit.batches import EpochOrder, ImageBatches, LabeledItems, TensorBatches, iter_inputs
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.steps import Batch

SIDE = 12
# Interleaved splits, as from class folders with a random split: indices in the split differ from those in the store.
SPLITS = ("val", "train", "train", "val", "train", "test", "train", "train", "val", "train")


@pytest.fixture
def preprocessing() -> Preprocessing:
    return build_preprocessing((SIDE, SIDE))


@pytest.fixture
def store(tmp_path: Path, preprocessing: Preprocessing) -> ImageStore:
    """Ten images, each of a single gray: image i has the value 20 i everywhere, and class id i."""
    images = []
    for i, split in enumerate(SPLITS):
        path = make_png(tmp_path / f"{i}.png", np.full((SIDE, SIDE, 3), 20 * i, np.uint8))
        images.append(LabeledImage(str(path), path.name, str(i), split))
    return load_images(images, preprocessing, "ram", Silent())[0]


def batches_of(
    store: ImageStore, augment: Augment | None = None, *, workers: int = 0, seed: int = 0, size: int = 4, **more: Any
) -> ImageBatches:
    items = LabeledItems(store, range(10), augment, seed)
    return ImageBatches(
        items, store.indices("train"), batch_size=size, seed=seed, workers=workers, pin_memory=False, **more
    )


def collected(batches: ImageBatches, epochs: int = 2) -> Iterator[Batch]:
    for epoch in range(1, epochs + 1):
        yield from batches.epoch(epoch)


@pytest.mark.parametrize("preset", ["none", "flip", "light"])
@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches__labels_reach_the_right_images(store: ImageStore, preset: str, workers: int) -> None:
    # Regression test: class ids were once indexed by position in the split instead of by image.
    augment = build_augment(preset, store.preprocessing)
    seen = []
    for images, class_ids, _ in batches_of(store, augment, workers=workers).epoch(1):
        # Neither a flip nor an affine transform with reflected borders changes a constant image.
        grays = images.flatten(1).float().mean(dim=1)
        assert (grays / 20).round().long().tolist() == class_ids.tolist()
        seen += class_ids.tolist()
    assert sorted(seen) == [i for i, split in enumerate(SPLITS) if split == "train"]


def test_image_batches__form(store: ImageStore) -> None:
    batches = batches_of(store)
    assert (batches.count, len(batches)) == (6, 2)
    sizes = []
    for images, class_ids, count in batches.epoch(1):
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (SIDE, SIDE, 3)
        assert class_ids.dtype == torch.int64
        sizes.append((len(images), count))
    assert sizes == [(4, 4), (2, 2)]


def test_image_batches__none_is_what_validation_sees(store: ImageStore) -> None:
    for images, class_ids, _ in batches_of(store).epoch(1):
        for image, class_id in zip(images, class_ids.tolist(), strict=True):
            np.testing.assert_array_equal(image.numpy(), store.input(class_id))


def test_image_batches__workers_change_nothing(store: ImageStore) -> None:
    augment = build_augment("strong", store.preprocessing)
    alone = list(collected(batches_of(store, augment, workers=0)))
    together = list(collected(batches_of(store, augment, workers=2)))
    for (images, ids, _), (other_images, other_ids, _) in zip(alone, together, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(ids, other_ids)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_image_batches__kept_anywhere_the_same_pixels(
    store: ImageStore, cache: Cache, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    elsewhere, _ = load_images(store.images, store.preprocessing, cache, Silent())
    assert elsewhere.kept == {}
    augment = build_augment("strong", store.preprocessing)
    wanted, found = (list(collected(batches_of(s, augment, workers=workers))) for s in (store, elsewhere))
    for (images, ids, _), (other_images, other_ids, _) in zip(wanted, found, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(ids, other_ids)


def test_image_batches__augmentation_differs_by_epoch_and_seed(tmp_path: Path, store: ImageStore) -> None:
    make_png(tmp_path / "n.png", np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8))
    noisy, _ = load_images(
        [LabeledImage(str(tmp_path / "n.png"), "n", "a", "train")], store.preprocessing, "ram", Silent()
    )
    augment = build_augment("strong", store.preprocessing)

    def image(seed: int, epoch: int) -> bytes:
        items = LabeledItems(noisy, [0], augment, seed)
        batches = ImageBatches(items, [0], batch_size=1, seed=seed, workers=0, pin_memory=False)
        ((images, _, _),) = batches.epoch(epoch)
        return images.numpy().tobytes()

    assert image(0, 1) == image(0, 1)
    assert len({image(seed, epoch) for seed in (0, 1) for epoch in (1, 2)}) == 4


def test_image_batches__equal_images_are_augmented_differently(tmp_path: Path, preprocessing: Preprocessing) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    paths = [make_png(tmp_path / f"{i}.png", noise) for i in range(4)]
    labeled = [LabeledImage(str(path), path.name, "a", "train") for path in paths]
    store, _ = load_images(labeled, preprocessing, "ram", Silent())
    ((images, _, _),) = batches_of(store, build_augment("strong", preprocessing)).epoch(1)
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_image_batches__an_epoch_does_not_depend_on_those_before(store: ImageStore) -> None:
    augment = build_augment("strong", store.preprocessing)
    through = list(collected(batches_of(store, augment), epochs=3))[4:]
    straight = list(batches_of(store, augment).epoch(3))
    for (images, ids, _), (other_images, other_ids, _) in zip(through, straight, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(ids, other_ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches__leave_torchs_randomness_alike_in_every_epoch(store: ImageStore, workers: int) -> None:
    # Dropout draws after the first batch is fetched. Fetching must therefore draw the same numbers in every epoch and
    # with any number of workers, or a resumed run differs from an uninterrupted one.
    drawn = []
    batches = batches_of(store, workers=workers)
    for epoch in (1, 2, 3):
        torch.manual_seed(5)
        for _ in batches.epoch(epoch):
            pass
        drawn.append(torch.rand(1).item())
    torch.manual_seed(5)
    for _ in batches_of(store, workers=0).epoch(1):
        pass
    assert drawn == [torch.rand(1).item()] * 3


def test_tensor_batches__rows_keep_their_ids() -> None:
    inputs = torch.arange(10.0)[:, None] * torch.ones(1, 3)
    batches = TensorBatches(inputs, torch.arange(10), batch_size=4, seed=1)
    assert (batches.count, len(batches)) == (10, 3)
    seen: list[int] = []
    for rows, ids, count in batches.epoch(1):
        assert count == len(rows)
        assert torch.equal(rows[:, 0].long(), ids)
        seen += ids.tolist()
    assert sorted(seen) == list(range(10))


def test_tensor_batches__same_order_as_images(store: ImageStore) -> None:
    train = store.indices("train")
    tensors = TensorBatches(torch.zeros(6, 1), torch.tensor(train), batch_size=4, seed=3)
    for epoch in (1, 2):
        ids = [batch_ids.tolist() for _, batch_ids, _ in tensors.epoch(epoch)]
        assert ids == [batch_ids.tolist() for _, batch_ids, _ in batches_of(store, seed=3).epoch(epoch)]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (3, 4, [3]), (5, 4, [5]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_epoch_order__sizes(count: int, batch_size: int, sizes: list[int]) -> None:
    order = EpochOrder(count, batch_size, seed=0, ranks=Ranks())
    batches = list(order)
    assert [len(batch) for batch in batches] == sizes
    assert len(order) == len(sizes)
    assert sorted(position for batch in batches for _, position in batch) == list(range(count))


def test_epoch_order__new_order_each_epoch() -> None:
    order = EpochOrder(50, 8, seed=0, ranks=Ranks())
    orders = []
    for epoch in (1, 2, 1):
        order.epoch = epoch
        orders.append([position for batch in order for _, position in batch])
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert list(islice(EpochOrder(50, 8, seed=1, ranks=Ranks()), 1)) != list(
        islice(EpochOrder(50, 8, seed=0, ranks=Ranks()), 1)
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("count", "batch_size"), [(15, 6), (13, 6), (24, 8), (7, 6), (6, 6), (20, 7)])
@pytest.mark.parametrize("balance", [False, True])
def test_epoch_order__shares_partition_the_global_batches(
    world: int, count: int, batch_size: int, balance: bool
) -> None:
    ids = [i % 3 for i in range(count)] if balance else None
    orders = [EpochOrder(count, batch_size, seed=5, ranks=Ranks(r, world), balance=ids) for r in range(world)]
    # The order of images does not depend on the number of processes; only the boundaries of the last batches may
    # differ.
    flat = [key for batch in EpochOrder(count, batch_size, seed=5, ranks=Ranks(), balance=ids) for key in batch]
    shares = [list(order) for order in orders]
    sizes = orders[0].sizes()
    assert all(order.sizes() == sizes and len(order) == len(sizes) for order in orders)
    assert sum(sizes) == count
    start = 0
    for step, size in enumerate(sizes):
        own = [share[step] for share in shares]
        whole: list[Any] = [None] * size
        for rank, part in enumerate(own):
            assert len(part) >= 2  # batch norm cannot train on one value
            whole[rank::world] = part
        assert whole == flat[start : start + size]
        start += size


def drawn(order: EpochOrder, epochs: int) -> list[int]:
    positions = []
    for epoch in range(1, epochs + 1):
        order.epoch = epoch
        positions += [position for batch in order for _, position in batch]
    return positions


def test_epoch_order__balanced_draws_every_class_equally_often() -> None:
    ids = [0] * 90 + [1] * 9 + [3]  # class 2 has no image
    positions = drawn(EpochOrder(100, 10, seed=0, ranks=Ranks(), balance=ids), 60)
    shares = np.bincount(np.array(ids)[positions], minlength=4) / 6000
    # Binomial with 6000 draws: a standard deviation of 0.0061; the tolerance is four of them.
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 0, 1 / 3], rtol=0, atol=0.0245)
    within = np.bincount(positions, minlength=100)[:90]
    # The 90 images of class 0 share about 2000 draws: 22.2 each, Poisson; five standard deviations.
    assert np.abs(within - 2000 / 90).max() < 5 * np.sqrt(2000 / 90)


def test_epoch_order__balanced_is_a_function_of_seed_and_epoch() -> None:
    ids = [i % 2 for i in range(30)]
    orders = [EpochOrder(30, 8, seed=seed, ranks=Ranks(), balance=ids) for seed in (0, 0, 1)]
    assert drawn(orders[0], 2) == drawn(orders[1], 2)
    assert drawn(orders[0], 1) != drawn(orders[2], 1)
    assert drawn(orders[0], 2)[:30] != drawn(orders[0], 2)[30:]


@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches__balanced_images_keep_their_ids(store: ImageStore, workers: int) -> None:
    # Class ids 0 and 1 in the store; only one of the six training images is of class 1.
    class_ids = [int(i == 4) for i in range(10)]
    train = store.indices("train")
    balance = [class_ids[i] for i in train]
    items = LabeledItems(store, class_ids, None, 0)
    batches = ImageBatches(items, train, batch_size=3, seed=0, workers=workers, pin_memory=False, balance=balance)
    assert (batches.count, len(batches)) == (6, 2)
    grays, ids = [], []
    for images, own, _ in collected(batches, epochs=40):
        grays += (images[:, 0, 0, 0] // 20).tolist()
        ids += own.tolist()
    assert all((gray == 4) == bool(own) for gray, own in zip(grays, ids, strict=True))
    assert set(grays) == set(store.indices("train"))
    # 240 draws with probability one half: a standard deviation of 7.7; four of them.
    assert abs(sum(ids) - 120) < 31


def test_tensor_batches__balanced_rows_keep_their_ids() -> None:
    ids = torch.tensor([0] * 9 + [1])
    batches = TensorBatches(torch.arange(10.0)[:, None], ids, batch_size=5, seed=0, sampler="balanced")
    seen = [
        row for epoch in range(1, 41) for rows, own, _ in batches.epoch(epoch) for row in zip(rows, own, strict=True)
    ]
    assert all(ids[int(row)] == own for row, own in seen)
    assert abs(sum(int(own) for _, own in seen) - 200) < 40  # 400 draws, probability 1/2: four times 10


def test_image_batches__ranks_give_each_its_share_and_the_whole_count(store: ImageStore) -> None:
    alone = list(batches_of(store, size=6).epoch(1))
    shared = [list(batches_of(store, size=6, ranks=Ranks(rank, 2)).epoch(1)) for rank in range(2)]
    for (images, ids, count), *parts in zip(alone, *shared, strict=True):
        for rank, (own_images, own_ids, own_count) in enumerate(parts):
            assert own_count == count
            assert torch.equal(own_images, images[rank::2])
            assert torch.equal(own_ids, ids[rank::2])


def test_iter_inputs__in_the_order_asked(store: ImageStore) -> None:
    parts = list(iter_inputs(store, [3, 0, 7, 2, 9], 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert (torch.cat(parts)[:, 0, 0, 0] // 20).tolist() == [3, 0, 7, 2, 9]
    assert parts[0].dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_image_batches__a_image_lost_meanwhile_is_named(store: ImageStore, workers: int) -> None:
    fresh = dataclasses.replace(store, kept={})
    Path(store.images[1].path).unlink()
    with pytest.raises(ImageReadError, match=r"1\.png: No such file"):
        list(batches_of(fresh, workers=workers).epoch(1))


def test_iter_inputs__same_pixels_kept_or_decoded(store: ImageStore) -> None:
    kept, decoded = (
        torch.cat(list(iter_inputs(s, [3, 1, 2], 2))) for s in (store, dataclasses.replace(store, kept={}))
    )
    assert torch.equal(kept, decoded)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches__an_epoch_left_halfway_begins_anew(store: ImageStore, workers: int) -> None:
    augment = build_augment("strong", store.preprocessing)
    wanted = [ids.tolist() for _, ids, _ in collected(batches_of(store, augment, size=2), epochs=2)]
    batches = batches_of(store, augment, size=2, workers=workers, epochs=2)
    next(batches.epoch(1))
    assert [ids.tolist() for _, ids, _ in collected(batches, epochs=2)] == wanted


def test_image_batches__workers_go_on_into_the_next_epoch(store: ImageStore, tmp_path: Path) -> None:
    class Noted:
        """Writes a file for each epoch from which an image was requested."""

        def __call__(self, epoch: int, index: int) -> tuple[Any, int]:
            (tmp_path / f"epoch-{epoch}").touch()
            return store.input(index), index

    def begun() -> set[str]:
        return {path.name for path in tmp_path.glob("epoch-*")}

    batches = ImageBatches(Noted(), store.indices("train"), batch_size=2, seed=0, workers=2, pin_memory=False, epochs=2)
    list(batches.epoch(1))
    for _ in range(200):
        if "epoch-2" in begun():
            break
        time.sleep(0.05)
    assert begun() == {"epoch-1", "epoch-2"}
    assert len(list(batches.epoch(2))) == 3
    assert begun() == {"epoch-1", "epoch-2"}  # none beyond the last
