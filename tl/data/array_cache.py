"""Arrays cached on disk by key for later runs: working images and features.

Handles folders and shards only, not the meaning of an array. Each shard is written once under a unique name and renamed
into place, so runs that share a folder never read a partial shard and never overwrite each other. The whole folder may
be deleted at any time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tl.errors import OutputError
from tl.runtime.output.files import atomic_path

CACHE_DIR_VARIABLE = "TL_CACHE_DIR"
_SHARD_BYTES = 64 << 20
_SUFFIX = ".safetensors"


def cache_folder() -> Path:
    """The folder of all caches: TL_CACHE_DIR, or `tl` in the user's cache folder.

    Source: XDG Base Directory Specification.
    """
    if named := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tl"


class ArrayCache:
    """Arrays by key in one folder. Reading is thread-safe; `put` is not.

    `fault` is the reason why nothing more is written, such as a full disk; a cache fault never stops the caller. Arrays
    that could not be written are dropped, or kept in memory with `keeps_unwritten`.
    """

    def __init__(self, folder: Path, *, keeps_unwritten: bool = False) -> None:
        self._folder, self._keeps_unwritten = folder, keeps_unwritten
        self._waiting: dict[str, NDArray[Any]] = {}
        self._waiting_bytes = 0
        self._shards: dict[str, Any] = {}
        self.fault = ""
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            self._open(path)

    def __contains__(self, key: str) -> bool:
        return key in self._waiting or key in self._shards

    def with_prefix(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Return all arrays whose keys start with `prefix`, by the rest of the key."""
        return {key.removeprefix(prefix): self.get(key) for key in self.keys_with_prefix(prefix)}

    def keys_with_prefix(self, prefix: str) -> Iterator[str]:
        """Return all keys that start with `prefix`."""
        return (key for key in (*self._waiting, *self._shards) if key.startswith(prefix))

    def get(self, key: str) -> NDArray[Any]:
        """Return the array of a key that is `in` the cache. Raises KeyError."""
        if key in self._waiting:
            return self._waiting[key]
        array: NDArray[Any] = self._shards[key].get_tensor(key)
        return array

    def stack(self, keys: Sequence[str]) -> NDArray[Any]:
        """Stack arrays of one shape into (N, ...), in the order of the keys. Requires at least one key."""
        first = self.get(keys[0])
        whole = np.empty((len(keys), *first.shape), first.dtype)
        for row, key in zip(whole, keys, strict=True):
            row[...] = self.get(key)
        return whole

    def put(self, key: str, array: NDArray[Any]) -> None:
        """Cache an array. It is written to disk once enough arrays have accumulated, or by `flush`."""
        if key in self or (self.fault and not self._keeps_unwritten):
            return
        self._waiting[key] = np.asarray(array, order="C")
        self._waiting_bytes += array.nbytes
        if self._waiting_bytes >= _SHARD_BYTES and not self.fault:
            self.flush()

    def flush(self) -> None:
        """Write all pending arrays."""
        if not self._waiting or self.fault:
            return
        path = self._folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(save(self._waiting))
        except OutputError as error:
            self.fault = str(error)
        else:
            self._open(path)
        # With `keeps_unwritten`, keep arrays that cannot be read back because the disk is full or the folder was just
        # emptied.
        unwritten = {key: array for key, array in self._waiting.items() if key not in self._shards}
        self._waiting, self._waiting_bytes = unwritten if self._keeps_unwritten else {}, 0

    def _open(self, path: Path) -> None:
        try:
            shard = safe_open(path, framework="numpy")
            names = shard.keys()  # type: ignore[no-untyped-call]  # safetensors lacks its type
            self._shards.update(dict.fromkeys(names, shard))
        except (SafetensorError, OSError):  # just removed by another process, or damaged: recomputed later
            return
