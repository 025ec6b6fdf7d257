"""Divide images among machines: which shard an image belongs to, and what one shard has seen of the whole list.

The shard of an image depends on its name only, so that new images move no other one. Opens no files.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from tl.errors import ConfigError

MAX_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `total`, counted from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def holds(self, name: str) -> bool:
        """Return whether an image belongs to this shard. `name`: as in its row."""
        plain = os.path.normpath(name).replace(os.sep, "/")
        digest = blake2b(plain.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.number - 1

    @property
    def file_name(self) -> str:
        """Name of the shard's file of rows: `shard-003-of-064.jsonl`."""
        width = max(3, len(str(self.total)))
        return f"shard-{self.number:0{width}d}-of-{self.total:0{width}d}.jsonl"


def parse_shard(text: str) -> Shard:
    """Parse `3/64`. Raises `ConfigError`."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    number, total = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= total <= MAX_SHARDS:
        raise ConfigError(
            f"shard: expected a number from 1 and the number of shards (at most {MAX_SHARDS}), as in 3/64, "
            f"found '{text}'"
        )
    return Shard(number, total)


@dataclass
class Listing:
    """The whole list of images, and the places of those of one shard in it.

    `count`: number of images in the whole list. `positions`: place of each image of the shard, counted from 0.
    """

    count: int = 0
    positions: array[int] = field(default_factory=lambda: array("Q"))

    def __post_init__(self) -> None:
        self._names = blake2b(digest_size=32)

    @property
    def digest(self) -> str:
        """Digest of all names in order: shards with the same one have seen the same list."""
        return self._names.hexdigest()

    def select(
        self, given: Iterable[str], shard: Shard, shown: Callable[[str], str] = lambda name: name
    ) -> Iterator[str]:
        """Yield the names that belong to a shard, while taking note of all. `shown`: a name as it is in its row."""
        for address in given:
            name = shown(address)
            self._names.update(name.encode(errors="surrogateescape") + b"\0")
            if shard.holds(name):
                self.positions.append(self.count)
                yield address
            self.count += 1
