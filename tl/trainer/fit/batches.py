"""Training batches from an image store. Order and augmentation depend only on seed, epoch and image.

Depends on torch's DataLoader, not on models. Batches are uint8 NHWC; the network normalizes them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tl.data.images import ImageStore
from tl.errors import TlError
from tl.trainer.config import Sampling
from tl.trainer.fit.augment import Augment
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.steps import Batch

# A remainder of at least this many images forms its own batch, whatever the batch size.
_SMALL_BATCH = 16


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """Own share of batches of (epoch, position). Each epoch's order is new, determined by seed and epoch.

    A small last batch is merged into the previous one, because batch norm would learn little from it. For up to eight
    processes, the batches do not depend on the number of processes. `balance`: class ids to sample equally often, with
    replacement; None for a plain shuffle.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, *, ranks: Ranks, balance: Sequence[int] | None = None
    ) -> None:
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0
        self._ranks = ranks
        self._chances: NDArray[np.float64] | None = None
        if balance is not None:
            counts = np.bincount(balance)
            self._chances = 1 / counts[np.asarray(balance)] / np.count_nonzero(counts)

    def __len__(self) -> int:
        rest = self.count % self.batch_size
        worth_a_batch = max(2, min(_SMALL_BATCH, self.batch_size // 2), 2 * self._ranks.world)
        return max(1, self.count // self.batch_size + (rest >= worth_a_batch))

    def sizes(self) -> list[int]:
        """Number of images in each batch, over all processes."""
        full = [self.batch_size] * (len(self) - 1)
        return [*full, self.count - sum(full)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self._chances is None:
            order = rng.permutation(self.count).tolist()
        else:
            order = rng.choice(self.count, self.count, p=self._chances).tolist()
        start = 0
        for size in self.sizes():
            yield [(self.epoch, position) for position in self._ranks.shard(order[start : start + size])]
            start += size


class Items(Protocol):
    """A training data set: (epoch, index in the store) -> image uint8 (H, W, 3) and its target."""

    def __call__(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], Any]:
        """Deterministic in epoch and index. Raises `TlError` for an image that cannot be read or augmented."""


@dataclass(frozen=True)
class LabeledItems:
    """Augmented images and their targets, such as class ids. Targets cover the whole store."""

    store: ImageStore
    targets: Sequence[Any]
    augment: Augment | None
    seed: int

    def __call__(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], Any]:
        """One image and its target."""
        if self.augment is None:
            return self.store.input(index), self.targets[index]
        return self.augment(self.store.working(index), item_seed(self.seed, epoch, index)), self.targets[index]


def item_seed(seed: int, epoch: int, index: int) -> int:
    """The seed for the augmentation of one image in one epoch."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


class _Images(Dataset[tuple[Tensor, Any] | TlError]):
    """(epoch, position in `indices`) -> image and target.

    Errors are returned, not raised: torch loses the type and text of an exception raised in a worker.
    """

    def __init__(self, items: Items, indices: Sequence[int]) -> None:
        self.items, self.indices = items, indices

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any] | TlError:
        epoch, position = key
        try:
            image, target = self.items(epoch, self.indices[position])
        except TlError as error:
            return error
        return torch.from_numpy(image if image.flags.writeable else image.copy()), target


def _collate(items: list[tuple[Tensor, Any] | TlError]) -> tuple[Tensor, Tensor] | TlError:
    fault = next((item for item in items if isinstance(item, TlError)), None)
    if fault is not None:
        return fault
    images, targets = default_collate(items)
    return images, targets


class _Onward(Sampler[list[tuple[int, int]]]):
    """The batches of every epoch from `first` to `last`, in order."""

    def __init__(self, order: EpochOrder, first: int, last: int) -> None:
        self._order, self._first, self._last = order, first, last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self._first, self._last + 1):
            self._order.epoch = epoch
            yield from self._order


class ImageBatches:
    """Augmented batches of the images at `indices`: uint8 (N, H, W, 3), targets (N, ...).

    Workers prefetch the next epoch during validation, up to epoch `epochs`, so that no epoch waits for its first batch.
    `balance`: class ids of these images to sample equally often, None for a plain shuffle.
    """

    def __init__(
        self,
        items: Items,
        indices: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        workers: int,
        pin_memory: bool,
        epochs: int = 1,
        balance: Sequence[int] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._order = EpochOrder(len(indices), batch_size, seed, ranks=ranks or Ranks(), balance=balance)
        self.count, self._epochs = len(indices), epochs
        self._dataset = _Images(items, indices)
        self._workers, self._pin_memory = workers, pin_memory
        self._stream: Iterator[tuple[Tensor, Tensor] | TlError] = iter(())
        self._next: int | None = None  # the epoch that the stream yields next

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch. Raises `TlError` for an image that cannot be read or augmented."""
        if number != self._next:
            self._stream = iter(())  # stops the workers of the previous stream
            self._stream = iter(self._loader(number))
        self._next = None  # an epoch that is abandoned midway restarts from its beginning
        for size in self._order.sizes():
            batch = next(self._stream)
            if isinstance(batch, TlError):
                raise batch
            yield batch[0], batch[1], size
        self._next = number + 1 if number < self._epochs else None

    def _loader(self, first: int) -> Iterable[tuple[Tensor, Tensor] | TlError]:
        return DataLoader(
            self._dataset,
            batch_sampler=_Onward(self._order, first, max(first, self._epochs)),
            collate_fn=_collate,
            num_workers=self._workers,
            pin_memory=self._pin_memory,
            # Forked workers share the cached images; spawned workers would each get a copy.
            multiprocessing_context="fork" if self._workers and sys.platform.startswith("linux") else None,
            generator=torch.Generator(),  # a separate one: DataLoader would advance the global one, which dropout uses
        )


class TensorBatches:
    """Batches of in-memory tensors, in the same orders: cached features. `inputs` (N, ...), `class_ids` int64 (N,)."""

    def __init__(
        self, inputs: Tensor, class_ids: Tensor, *, batch_size: int, seed: int, sampler: Sampling = "shuffle"
    ) -> None:
        self._inputs, self._class_ids = inputs, class_ids
        balance = class_ids.tolist() if sampler == "balanced" else None
        self._order = EpochOrder(len(inputs), batch_size, seed, ranks=Ranks(), balance=balance)
        self.count = len(inputs)

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        self._order.epoch = number
        for keys in self._order:
            positions = torch.tensor([position for _, position in keys])
            yield self._inputs[positions], self._class_ids[positions], len(positions)


def iter_inputs(store: ImageStore, indices: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """The images as seen in deployment, uint8 (N, H, W, 3), in the order of `indices`."""
    images = store.map(store.input, indices, ahead=2 * batch_size)
    while batch := list(itertools.islice(images, batch_size)):
        yield torch.from_numpy(np.stack(batch))
