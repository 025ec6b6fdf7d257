"""Training batches from a picture store: order, augmentation and workers, all derived from seed, epoch and picture.

Knows torch's DataLoader. Does not know models. Batches are uint8 NHWC; normalisation is the network's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tl.trainer.augment import Augment
from tl.trainer.pictures import PictureStore

Batch = tuple[Tensor, Tensor]


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): a new order each epoch, the same for the same seed and epoch.

    A last batch of one is joined to the one before, because batch norm cannot train on a single value.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0

    def __len__(self) -> int:
        return max(1, self.count // self.batch_size + (self.count % self.batch_size > 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist()
        last = len(self) - 1
        for b in range(last + 1):
            end = self.count if b == last else (b + 1) * self.batch_size
            yield [(self.epoch, position) for position in order[b * self.batch_size : end]]


class _AugmentedPictures(Dataset[tuple[Tensor, int]]):
    """(epoch, position in `indices`) -> picture uint8 (H, W, 3) and class id. `class_ids` are of the whole store."""

    def __init__(
        self, store: PictureStore, indices: Sequence[int], class_ids: Sequence[int], augment: Augment | None, seed: int
    ) -> None:
        self.store, self.indices, self.class_ids, self.augment, self.seed = store, indices, class_ids, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, position = key
        index = self.indices[position]
        if self.augment is None:
            image = self.store.input(index)
        else:
            seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
            image = self.augment(self.store.working(index), seed)
        return torch.from_numpy(image.copy() if not image.flags.writeable else image), self.class_ids[index]


class PictureBatches:
    """Augmented batches of the training split: uint8 (N, H, W, 3), int64 (N,). `class_ids` are of the whole store."""

    def __init__(
        self,
        store: PictureStore,
        class_ids: Sequence[int],
        *,
        augment: Augment | None,
        batch_size: int,
        seed: int,
        workers: int,
        pin_memory: bool,
    ) -> None:
        indices = store.indices("train")
        self._order = EpochOrder(len(indices), batch_size, seed)
        self.count = len(indices)
        self._loader = DataLoader(
            _AugmentedPictures(store, indices, class_ids, augment, seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own: DataLoader would draw from the global one, which dropout uses
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        self._order.epoch = number
        yield from self._loader


class TensorBatches:
    """Ready tensors in the same orders: features computed once. `inputs` (N, ...), `class_ids` int64 (N,)."""

    def __init__(self, inputs: Tensor, class_ids: Tensor, *, batch_size: int, seed: int) -> None:
        self._inputs, self._class_ids = inputs, class_ids
        self._order = EpochOrder(len(inputs), batch_size, seed)
        self.count = len(inputs)

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        self._order.epoch = number
        for keys in self._order:
            positions = torch.tensor([position for _, position in keys])
            yield self._inputs[positions], self._class_ids[positions]


def iter_inputs(store: PictureStore, indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """The pictures as deployment sees them, uint8 (N, H, W, 3), in the order of `indices`."""
    for start in range(0, len(indices), batch_size):
        yield torch.from_numpy(np.stack([store.input(i) for i in indices[start : start + batch_size]]))
