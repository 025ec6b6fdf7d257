"""Check that shards together are one prediction: none missing, none twice, the same models, settings and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tl.errors import DataError
from tl.runtime.model_file.contract import Task
from tl.runtime.output.columns import ColumnType
from tl.runtime.results import ClassFields, Fields, MultilabelFields, PointFields, RegressionFields
from tl.runtime.sources.shards import Shard

_SHOWN = 10  # problems in a message
# Task -> the fields of its results.
FIELDS: dict[Task, type[Fields]] = {
    "classification": ClassFields,
    "landmarks": PointFields,
    "multilabel": MultilabelFields,
    "regression": RegressionFields,
}


@dataclass(frozen=True)
class ShardFacts:
    """What the rows of a shard depend on, besides its images.

    `models`: name and SHA-256 of each file. `key`: hash of models, settings and columns. `notes`: columns that are
    added to each row. `has_boxes`: whether boxes were given, of which a landmark model's columns say nothing.
    """

    models: dict[str, str]
    key: str
    fields: Fields
    notes: dict[str, ColumnType]
    has_boxes: bool = False

    @property
    def task(self) -> Task:
        """The task of the models."""
        return next(task for task, kind in FIELDS.items() if isinstance(self.fields, kind))

    @property
    def model_names(self) -> list[str]:
        """The names of the model files."""
        return [name.partition(":")[2] for name in self.models]


@dataclass(frozen=True)
class StoredShard:
    """A finished shard. `rows`, `failed`: number of rows, and of those with an error.

    `listing`: digest of the whole list of images that it has seen, which has `images` names. `sha256`: of its rows.
    """

    path: Path
    shard: Shard
    facts: ShardFacts
    rows: int
    failed: int
    images: int
    listing: str
    sha256: str


def check_shards(
    root: Path, shards: Sequence[StoredShard], problems: Iterable[str] = (), unfinished: Collection[int] = ()
) -> None:
    """Raise `DataError` that names all `problems`, and every shard that does not belong to one complete prediction.

    `unfinished`: numbers of shards that `problems` names.
    """
    faults = [*problems]
    if not shards and not faults:
        raise DataError(f"{root}: contains no shards, which prediction in shards writes")
    if shards:
        total = Counter(each.shard.total for each in shards).most_common(1)[0][0]
        for each in shards:
            if each.shard.total != total:
                faults.append(f"{each.path.stem} is of {each.shard.total} shards, the others are of {total}")
        ours = [each for each in shards if each.shard.total == total]
        faults += _count_faults(ours, total, unfinished)
        faults += _foreign(ours)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError(f"{root}: cannot be joined: {'; '.join(faults[:_SHOWN])}{more}")


def _count_faults(shards: Sequence[StoredShard], total: int, unfinished: Collection[int]) -> list[str]:
    names: dict[int, list[str]] = {}
    for each in shards:
        names.setdefault(each.shard.number, []).append(each.path.stem)
    faults = [f"shard {n} of {total} is there twice: {' and '.join(who)}" for n, who in names.items() if len(who) > 1]
    if missing := [n for n in range(1, total + 1) if n not in names and n not in unfinished]:
        faults.append(f"missing: {'shard' if len(missing) == 1 else 'shards'} {_ranges(missing)} of {total}")
    return faults


def _foreign(shards: Sequence[StoredShard]) -> list[str]:
    """Name the shards that differ from most others."""
    faults = []
    models = _usual(shards, lambda each: tuple(each.facts.models.values()))
    key = _usual(shards, lambda each: (each.facts.key, tuple(each.facts.notes)))
    listing = _usual(shards, lambda each: each.listing)
    count = next((each.images for each in shards if each.listing == listing), 0)
    for each in shards:
        if tuple(each.facts.models.values()) != models:
            shown = ", ".join(each.facts.model_names)
            faults.append(f"{each.path.stem} was predicted with other model files ({shown})")
        elif (each.facts.key, tuple(each.facts.notes)) != key:
            faults.append(f"{each.path.stem} was predicted with other settings or columns")
        elif each.listing != listing:
            faults.append(
                f"{each.path.stem} has seen another list of images ({each.images}, most shards {count}): "
                "resume it, which predicts only new images"
            )
    return faults


def _usual(shards: Sequence[StoredShard], of: Callable[[StoredShard], Hashable]) -> Hashable:
    """Return the most frequent value, of several the first."""
    return Counter(map(of, shards)).most_common(1)[0][0] if shards else None


def _ranges(numbers: Sequence[int]) -> str:
    """`[1, 3, 4, 5]` -> `1, 3-5`."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        else:
            groups.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in groups)
