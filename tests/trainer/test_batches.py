from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.make import make_png
from tl.errors import ImageReadError
from tl.runtime.recipe import Recipe, build_recipe
from tl.trainer.augment import Augment, build_augment
from tl.trainer.batches import EpochOrder, PictureBatches, TensorBatches, iter_inputs
from tl.trainer.data import Picture
from tl.trainer.pictures import PictureStore, load_pictures
from tl.trainer.progress import Silent

SIDE = 12
# Splits interleaved, as class folders with a random split are: places in the split differ from places in the store.
SPLITS = ("val", "train", "train", "val", "train", "test", "train", "train", "val", "train")


@pytest.fixture
def recipe() -> Recipe:
    return build_recipe((SIDE, SIDE))


@pytest.fixture
def store(tmp_path: Path, recipe: Recipe) -> PictureStore:
    """Ten pictures of one grey each: picture i has the value 20 i everywhere, and class id i."""
    pictures = []
    for i, split in enumerate(SPLITS):
        path = make_png(tmp_path / f"{i}.png", np.full((SIDE, SIDE, 3), 20 * i, np.uint8))
        pictures.append(Picture(str(path), path.name, str(i), split))
    return load_pictures(pictures, recipe, "ram", Silent())[0]


def batches_of(store: PictureStore, augment: Augment | None = None, *, workers: int = 0, seed: int = 0, size: int = 4):
    return PictureBatches(
        store, range(10), augment=augment, batch_size=size, seed=seed, workers=workers, pin_memory=False
    )


def collected(batches: PictureBatches, epochs: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(1, epochs + 1):
        yield from batches.epoch(epoch)


@pytest.mark.parametrize("preset", ["none", "flip", "light"])
@pytest.mark.parametrize("workers", [0, 2])
def test_picture_batches__labels_reach_the_right_pictures(store: PictureStore, preset: str, workers: int) -> None:
    # A regression: class ids were once indexed by the place in the split instead of the picture.
    augment = build_augment(preset, store.recipe)
    seen = []
    for images, class_ids in batches_of(store, augment, workers=workers).epoch(1):
        # Neither a flip nor an affine change with reflected borders alters a picture of one value.
        greys = images.flatten(1).float().mean(dim=1)
        assert (greys / 20).round().long().tolist() == class_ids.tolist()
        seen += class_ids.tolist()
    assert sorted(seen) == [i for i, split in enumerate(SPLITS) if split == "train"]


def test_picture_batches__form(store: PictureStore) -> None:
    batches = batches_of(store)
    assert (batches.count, len(batches)) == (6, 2)
    sizes = []
    for images, class_ids in batches.epoch(1):
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (SIDE, SIDE, 3)
        assert class_ids.dtype == torch.int64
        sizes.append(len(images))
    assert sizes == [4, 2]


def test_picture_batches__none_is_what_validation_sees(store: PictureStore) -> None:
    for images, class_ids in batches_of(store).epoch(1):
        for image, class_id in zip(images, class_ids.tolist(), strict=True):
            np.testing.assert_array_equal(image.numpy(), store.input(class_id))


def test_picture_batches__workers_change_nothing(store: PictureStore) -> None:
    augment = build_augment("strong", store.recipe)
    alone = list(collected(batches_of(store, augment, workers=0)))
    together = list(collected(batches_of(store, augment, workers=2)))
    for (images, ids), (other_images, other_ids) in zip(alone, together, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(ids, other_ids)


def test_picture_batches__augmentation_differs_by_epoch_and_seed(tmp_path: Path, store: PictureStore) -> None:
    make_png(tmp_path / "n.png", np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8))
    noisy, _ = load_pictures([Picture(str(tmp_path / "n.png"), "n", "a", "train")], store.recipe, "ram", Silent())
    augment = build_augment("strong", store.recipe)

    def picture(seed: int, epoch: int) -> bytes:
        batches = PictureBatches(noisy, [0], augment=augment, batch_size=1, seed=seed, workers=0, pin_memory=False)
        ((images, _),) = batches.epoch(epoch)
        return images.numpy().tobytes()

    assert picture(0, 1) == picture(0, 1)
    assert len({picture(seed, epoch) for seed in (0, 1) for epoch in (1, 2)}) == 4


def test_picture_batches__equal_pictures_are_augmented_differently(tmp_path: Path, recipe: Recipe) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    paths = [make_png(tmp_path / f"{i}.png", noise) for i in range(4)]
    pictures = [Picture(str(path), path.name, "a", "train") for path in paths]
    store, _ = load_pictures(pictures, recipe, "ram", Silent())
    ((images, _),) = batches_of(store, build_augment("strong", recipe)).epoch(1)
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_picture_batches__an_epoch_does_not_depend_on_those_before(store: PictureStore) -> None:
    augment = build_augment("strong", store.recipe)
    through = list(collected(batches_of(store, augment), epochs=3))[4:]
    straight = list(batches_of(store, augment).epoch(3))
    for (images, ids), (other_images, other_ids) in zip(through, straight, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(ids, other_ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_picture_batches__leave_torchs_randomness_alike_in_every_epoch(store: PictureStore, workers: int) -> None:
    # Dropout draws after the first batch is fetched: what fetching draws must not depend on epoch or workers,
    # or a resumed run differs from one that was never interrupted.
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
    for rows, ids in batches.epoch(1):
        assert torch.equal(rows[:, 0].long(), ids)
        seen += ids.tolist()
    assert sorted(seen) == list(range(10))


def test_tensor_batches__same_order_as_pictures(store: PictureStore) -> None:
    train = store.indices("train")
    tensors = TensorBatches(torch.zeros(6, 1), torch.tensor(train), batch_size=4, seed=3)
    for epoch in (1, 2):
        ids = [batch_ids.tolist() for _, batch_ids in tensors.epoch(epoch)]
        assert ids == [batch_ids.tolist() for _, batch_ids in batches_of(store, seed=3).epoch(epoch)]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (3, 4, [3]), (5, 4, [5]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_epoch_order__sizes(count: int, batch_size: int, sizes: list[int]) -> None:
    order = EpochOrder(count, batch_size, seed=0)
    batches = list(order)
    assert [len(batch) for batch in batches] == sizes
    assert len(order) == len(sizes)
    assert sorted(position for batch in batches for _, position in batch) == list(range(count))


def test_epoch_order__new_order_each_epoch() -> None:
    order = EpochOrder(50, 8, seed=0)
    orders = []
    for epoch in (1, 2, 1):
        order.epoch = epoch
        orders.append([position for batch in order for _, position in batch])
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert list(islice(EpochOrder(50, 8, seed=1), 1)) != list(islice(EpochOrder(50, 8, seed=0), 1))


def test_iter_inputs__in_the_order_asked(store: PictureStore) -> None:
    parts = list(iter_inputs(store, [3, 0, 7, 2, 9], 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert (torch.cat(parts)[:, 0, 0, 0] // 20).tolist() == [3, 0, 7, 2, 9]
    assert parts[0].dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_batches__a_picture_lost_meanwhile_is_named(store: PictureStore, workers: int) -> None:
    fresh = dataclasses.replace(store, kept=None)
    Path(store.pictures[1].path).unlink()
    with pytest.raises(ImageReadError, match=r"1\.png: No such file"):
        list(batches_of(fresh, workers=workers).epoch(1))


def test_iter_inputs__same_pixels_kept_or_decoded(store: PictureStore) -> None:
    kept, decoded = (
        torch.cat(list(iter_inputs(s, [3, 1, 2], 2))) for s in (store, dataclasses.replace(store, kept=None))
    )
    assert torch.equal(kept, decoded)
