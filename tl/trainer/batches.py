"""Training batches from a picture store: order, augmentation and workers, all derived from seed, epoch and picture.

Knows torch's DataLoader. Does not know models. Batches are uint8 NHWC; normalisation is the network's.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tl.errors import TlError
from tl.runtime.ahead import map_ahead
from tl.runtime.devices import usable_cores
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


class _AugmentedPictures(Dataset[tuple[Tensor, int] | TlError]):
    """(epoch, position in `indices`) -> picture uint8 (H, W, 3) and class id. `class_ids` are of the whole store.

    A fault is returned, not raised: torch loses an exception's type and text on the way out of a worker.
    """

    def __init__(
        self, store: PictureStore, indices: Sequence[int], class_ids: Sequence[int], augment: Augment | None, seed: int
    ) -> None:
        self.store, self.indices, self.class_ids, self.augment, self.seed = store, indices, class_ids, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | TlError:
        epoch, position = key
        index = self.indices[position]
        try:
            image = self._image(epoch, index)
        except TlError as error:
            return error
        return torch.from_numpy(image if image.flags.writeable else image.copy()), self.class_ids[index]

    def _image(self, epoch: int, index: int) -> NDArray[np.uint8]:
        if self.augment is None:
            return self.store.input(index)
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        return self.augment(self.store.working(index), seed)


def _collate(items: list[tuple[Tensor, int] | TlError]) -> Batch | TlError:
    fault = next((item for item in items if isinstance(item, TlError)), None)
    if fault is not None:
        return fault
    batch: Batch = default_collate(items)
    return batch


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
            collate_fn=_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # Forked workers share the kept pictures; spawned ones would each get a copy.
            multiprocessing_context="fork" if workers and sys.platform.startswith("linux") else None,
            generator=torch.Generator(),  # its own: DataLoader would draw from the global one, which dropout uses
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch. Raises the `TlError` of a picture that cannot be read or changed."""
        self._order.epoch = number
        for batch in self._loader:
            if isinstance(batch, TlError):
                raise batch
            yield batch[0], batch[1]


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
    if store.kept is None:  # decoding takes long: in threads, ahead of the network
        images = map_ahead(store.input, indices, workers=usable_cores(), ahead=2 * batch_size)
    else:
        images = map(store.input, indices)
    while batch := list(itertools.islice(images, batch_size)):
        yield torch.from_numpy(np.stack(batch))
